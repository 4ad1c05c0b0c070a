"""What every stage opens first: tokenizer, template and mesh; a policy from an artifact or file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from posttrain_jax import checkpoint, train_state
from posttrain_jax.api import Artifact, Model, Params
from posttrain_jax.data.chat import ChatTemplate, load_template
from posttrain_jax.data.tokenizer import Tokenizer, load_tokenizer
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, make_model


class Text(NamedTuple):
    """The two halves of a text format."""

    tokenizer: Tokenizer
    template: ChatTemplate


def open_text(config: Mapping[str, Any]) -> Text:
    """Tokenizer and chat template of a stage's config."""
    tokenizer = load_tokenizer(config["tokenizer"])
    return Text(tokenizer, load_template(config["chat_template"], tokenizer))


def open_mesh(config: Mapping[str, Any]) -> Mesh:
    """The mesh of a stage's config."""
    return make_mesh(config["mesh"])


def save_policy(folder: Path, model: Model, params: Params, **more: Any) -> None:
    """Write finished parameters and the sizes of their model into an artifact."""
    about = {"config": dataclasses.asdict(model.config), **more}
    checkpoint.save_params(folder, params, about)


def load_policy(artifact: Artifact, mesh: Mesh, **changes: Any) -> tuple[Model, Params]:
    """The model of an artifact, parameters read straight into their shards.

    Args:
      changes: fields of the model's config to replace (`remat`, `dtype`, ...).
    """
    about = checkpoint.load_about(artifact.path)
    model = make_model(dataclasses.replace(ModelConfig(**about["config"]), **changes))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    where = train_state.param_shardings(model, mesh)
    return model, checkpoint.load_params(artifact.path, shapes, where)


def stage_title(workdir: Path) -> str:
    """The name of the stage whose folder this is, for progress bars."""
    return workdir.name.rsplit("-", 1)[0]

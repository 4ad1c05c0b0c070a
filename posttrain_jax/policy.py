"""What every stage opens first: tokenizer, template and mesh; a policy from an artifact or file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from posttrain_jax import artifacts, checkpoint, train_state, tree
from posttrain_jax.api import Artifact, Model, Params
from posttrain_jax.data.text import Text as Text
from posttrain_jax.data.text import open_text as open_text
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, lora, make_model


def open_mesh(config: Mapping[str, Any]) -> Mesh:
    """The mesh of a stage's config."""
    return make_mesh(config["mesh"])


def save_policy(
    folder: Path, model: Model, params: Params, start: Artifact | None = None, **more: Any
) -> None:
    """Write finished parameters and the sizes of their model into an artifact.

    Of a model with adapters only those are written, and which artifact their weights are of.

    Args:
      start: what `load_trainable` was given; needed where the model has adapters.
    """
    about = {"config": dataclasses.asdict(model.config), **more}
    if model.lora is not None:
        assert start is not None
        base = _further(start, lora.unwrap(model), model.lora) or {
            "stage": start.stage,
            "id": start.id,
        }
        about |= {"lora": dataclasses.asdict(model.lora), "base": base}
        params, _ = train_state.split(model, params)
    checkpoint.save_params(folder, params, about)


def load_policy(artifact: Artifact, mesh: Mesh, **changes: Any) -> tuple[Model, Params]:
    """The model of an artifact, parameters read straight into their shards; adapters are merged.

    Args:
      changes: fields of the model's config to replace (`remat`, `dtype`, ...).

    Raises:
      ArtifactError: the artifact holds adapters, and the one of their weights is not beside it.
    """
    about = checkpoint.load_about(artifact.path)
    model = make_model(dataclasses.replace(ModelConfig(**about["config"]), **changes))
    where = train_state.param_shardings(model, mesh)
    if "lora" in about:
        merge = jax.jit(lora.merge, static_argnums=0, out_shardings=where)
        return model, merge(*load_adapted(artifact, mesh, **changes))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, checkpoint.load_params(artifact.path, shapes, where)


def load_adapted(artifact: Artifact, mesh: Mesh, **changes: Any) -> tuple[Model, Params]:
    """The adapters of an artifact over the frozen weights of another; see `load_policy`.

    Raises:
      ValueError: the artifact has no adapters.
    """
    about = checkpoint.load_about(artifact.path)
    if "lora" not in about:
        raise ValueError(
            f"{artifact.path} has no adapters: the stage {artifact.stage!r} ran with lora.rank=0"
        )
    config = dataclasses.replace(ModelConfig(**about["config"]), **changes)
    model = lora.wrap(make_model(config), lora.LoraConfig(**about["lora"]))
    base = artifacts.beside(artifact, about["base"])
    _, weights = load_policy(base, mesh, **dataclasses.asdict(config))
    shapes, _ = tree.split(jax.eval_shape(model.init, jax.random.key(0)), lora.is_adapter)
    where, rest = tree.split(train_state.param_shardings(model, mesh), lora.is_adapter)
    frozen = jax.device_put(lora.freeze(model, weights), rest)
    return model, tree.join(frozen, checkpoint.load_params(artifact.path, shapes, where))


def load_trainable(
    artifact: Artifact, mesh: Mesh, settings: Mapping[str, Any], seed: int, **changes: Any
) -> tuple[Model, Params]:
    """The model of an artifact for a stage that trains it, with the adapters of its settings.

    Adapters that the artifact has are trained further where the settings are the same; else new
    ones lie over what `load_policy` gives.

    Args:
      settings: fields of `LoraConfig`; rank 0 means no adapters.
      seed: of new adapters.
      changes: see `load_policy`.
    """
    if not settings["rank"]:
        return load_policy(artifact, mesh, **changes)
    wanted, about = lora.LoraConfig(**settings), checkpoint.load_about(artifact.path)
    if _further(artifact, make_model(ModelConfig(**about["config"])), wanted):
        return load_adapted(artifact, mesh, **changes)
    plain, weights = load_policy(artifact, mesh, **changes)
    model = lora.wrap(plain, wanted)
    return model, add_adapters(model, weights, mesh, seed)


def _further(artifact: Artifact, plain: Model, wanted: lora.LoraConfig) -> dict[str, str] | None:
    """What an artifact's adapters lie over, where a stage with these settings goes on with them."""
    about = checkpoint.load_about(artifact.path)
    return about["base"] if "lora" in about and lora.same(plain, about["lora"], wanted) else None


def add_adapters(model: Model, weights: Params, mesh: Mesh, seed: int) -> Params:
    """A plain model's weights as the model with adapters keeps them, frozen, with new adapters."""
    where, rest = tree.split(train_state.param_shardings(model, mesh), lora.is_adapter)
    frozen = jax.device_put(lora.freeze(model, weights), rest)
    make = jax.jit(lora.init_adapters, static_argnums=0, out_shardings=where)
    return tree.join(frozen, make(model, frozen, jax.random.key(seed)))


def stage_title(workdir: Path) -> str:
    """The name of the stage whose folder this is, for progress bars."""
    return workdir.name.rsplit("-", 1)[0]

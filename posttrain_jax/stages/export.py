"""Export a model: safetensors, config, tokenizer and card, as `transformers` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from posttrain_jax import artifacts, process, process_reward, reward_model
from posttrain_jax.api import Artifact
from posttrain_jax.checkpoint import model_kind
from posttrain_jax.data.chat import ChatTemplate
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.model_card import lineage_card
from posttrain_jax.models.peft import save_peft
from posttrain_jax.models.safetensors import save_pretrained
from posttrain_jax.policy import load_adapted, load_policy, open_mesh, open_text

DEFAULTS = {"folder": "model", "dtype": "", "adapters": False}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Write inputs["policy"], which may be a model with a head too, to `workdir/<folder>`.

    `dtype` "" keeps that of a policy's parameters. With `adapters` only those are written, as PEFT
    does; otherwise they are merged.
    """
    mesh, text, policy = open_mesh(config), open_text(config), inputs["policy"]
    with jax.set_mesh(mesh):
        if config.adapters:
            save_peft(workdir / config.folder, *load_adapted(policy, mesh))
        else:
            write(policy, mesh, workdir / config.folder, *text, dtype=config.dtype or None)
    metrics = {}
    if process.index() == 0:  # the one that writes
        size = sum(f.stat().st_size for f in (workdir / config.folder).iterdir())
        metrics = {"megabytes": size / 1e6}
    return artifacts.finish(workdir, metrics=metrics)


def write(
    artifact: Artifact, mesh: Mesh, folder: Path, tokenizer: Tokenizer,
    template: ChatTemplate | None, *, dtype: str | None = None,
) -> None:  # fmt: skip
    """Write the model of an artifact: a policy, a reward model or a process reward model.

    Args:
      template: the tokenizer's own where it is None.
      dtype: of a policy's weights; as they are where it is None.
    """
    kind = model_kind(artifact.path)
    if kind == "policy":
        model, params = load_policy(artifact, mesh)
        save_pretrained(
            folder, model.config, params, tokenizer, template, dtype=dtype,
            card=lineage_card(artifact, model.config.family),
        )  # fmt: skip
    elif kind == "reward_model":
        reward_model.export(artifact, mesh, folder, tokenizer, template)
    else:
        process_reward.export(artifact, mesh, folder, tokenizer, template)

"""Export a policy: safetensors, config, tokenizer and card, as `transformers` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from posttrain_jax import artifacts, process, reward_model
from posttrain_jax.api import Artifact
from posttrain_jax.model_card import lineage_card
from posttrain_jax.models.peft import save_peft
from posttrain_jax.models.safetensors import save_pretrained
from posttrain_jax.policy import load_adapted, load_policy, open_mesh, open_text

DEFAULTS = {"folder": "model", "dtype": "", "adapters": False}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Write inputs["policy"], a reward model too, to `workdir/<folder>`.

    `dtype` "" keeps that of a policy's parameters. With `adapters` only those are written, as PEFT
    does; otherwise they are merged.
    """
    mesh, text, policy = open_mesh(config), open_text(config), inputs["policy"]
    with jax.set_mesh(mesh):
        if policy.kind == "reward_model":
            reward_model.export(policy, mesh, workdir / config.folder, text)
        elif config.adapters:
            save_peft(workdir / config.folder, *load_adapted(policy, mesh))
        else:
            model, params = load_policy(policy, mesh)
            save_pretrained(
                workdir / config.folder, model.config, params, text.tokenizer, text.template,
                dtype=config.dtype or None, card=lineage_card(policy, model.config.family),
            )  # fmt: skip
    metrics = {}
    if process.index() == 0:  # the one that writes
        size = sum(f.stat().st_size for f in (workdir / config.folder).iterdir())
        metrics = {"megabytes": size / 1e6}
    return artifacts.finish(workdir, metrics=metrics)

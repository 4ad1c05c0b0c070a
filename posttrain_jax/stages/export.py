"""Export a policy: safetensors, config and tokenizer, as `transformers` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from posttrain_jax import artifacts, process
from posttrain_jax.api import Artifact
from posttrain_jax.models.safetensors import save_pretrained
from posttrain_jax.policy import load_policy, open_mesh, open_text

DEFAULTS = {"folder": "model"}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Write inputs["policy"] to `workdir/<folder>`."""
    mesh, text = open_mesh(config), open_text(config)
    with jax.set_mesh(mesh):
        model, params = load_policy(inputs["policy"], mesh)
        save_pretrained(
            workdir / config.folder, model.config, params, text.tokenizer, text.template
        )
    metrics = {}
    if process.index() == 0:  # the one that writes
        size = sum(f.stat().st_size for f in (workdir / config.folder).iterdir())
        metrics = {"megabytes": size / 1e6}
    return artifacts.finish(workdir, metrics=metrics)

"""Start from low-rank adapters in a file: a folder as PEFT writes it, over the weights of a policy.

What comes out is that policy with these adapters. A later stage with the same `lora` settings goes
on training them (their scale and targets are those of the folder); any other stage sees them
merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from posttrain_jax import artifacts, train_state, tree
from posttrain_jax.api import Artifact
from posttrain_jax.models import lora
from posttrain_jax.models.peft import load_peft
from posttrain_jax.policy import load_policy, open_mesh, save_policy

DEFAULTS = {"source": ...}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Read the folder `config.source` for inputs["policy"].

    Raises:
      FileNotFoundError: the folder lacks one of the two files.
      ValueError: settings that we don't have, or tensors of another model.
    """
    mesh = open_mesh(config)
    with jax.set_mesh(mesh):
        plain, _ = load_policy(inputs["policy"], mesh)
        model, adapters = load_peft(config.source, plain)
        where, _ = tree.split(train_state.param_shardings(model, mesh), lora.is_adapter)
        save_policy(workdir, model, jax.device_put(adapters, where), inputs["policy"])
    count = sum(leaf.size for leaf in jax.tree.leaves(adapters))
    return artifacts.finish(workdir, metrics={"parameters": count})

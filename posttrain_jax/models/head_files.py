"""Models with a head in Hugging Face's folder layout, as the classes of `head_forms.py`.

The LM head is neither written nor read. A head is written in float32, whatever the other weights
are, in a file of its own behind theirs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from posttrain_jax import mesh
from posttrain_jax.api import Params
from posttrain_jax.data.chat import ChatTemplate
from posttrain_jax.data.tokenizer import Tokenizer, check_vocabulary
from posttrain_jax.folders import whole_folder
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.head_forms import LAYERS, class_settings, find_form, form_of, head_of
from posttrain_jax.models.heads import HeadConfig
from posttrain_jax.models.hf_files import find_family, json_files, read_settings
from posttrain_jax.models.layout import read_tree
from posttrain_jax.models.safetensors import STALE, open_folder
from posttrain_jax.models.stored import DTYPES, INDEX_FILE, open_weights
from posttrain_jax.models.streaming import Leaf, Put, put_numpy
from posttrain_jax.models.write_weights import check_tree, write_weights


class Headed(NamedTuple):
    """A model with a head, as a folder holds it.

    Attributes:
      fields: of its `ModelConfig`.
      head: what its head is.
      reads: where it is read, one of `head_forms.READS`.
      params: {"backbone": ..., "head": ...}.
    """

    fields: dict[str, Any]
    head: HeadConfig
    reads: str
    params: Params


def save_with_head(
    folder: str | Path, config: ModelConfig, params: Params, head: HeadConfig,
    tokenizer: Tokenizer, chat_template: ChatTemplate | None = None, *, reads: str = "sequence",
    card: str | None = None, shard_bytes: int = 5 * 10**9,
) -> None:  # fmt: skip
    """Write a model with a head; as `safetensors.save_pretrained`, which writes policies.

    Args:
      params: {"backbone": ..., "head": ...}.
      reads: where the head is read, one of `head_forms.READS`.

    Raises:
      ValueError: no class of others holds such a head, parameters that are not those of the config,
        or padding that would hide the last token of a sequence.
    """
    folder, first = Path(folder), jax.process_index() == 0
    form = find_form(config.family, head, reads)
    check_vocabulary(tokenizer, config.vocab_size, "the model to be saved")
    if reads == "sequence" and tokenizer.pad_id == tokenizer.eos_id:
        raise ValueError(
            f"the tokenizer pads with its end-of-sequence token, id {tokenizer.eos_id}: "
            f"{form.suffix} reads the last token that is not padding, so one before the end; give "
            "the tokenizer a padding token of its own"
        )
    table, bare = find_family(config.family, "config.family").WEIGHTS, replace(config, tied=True)
    check_tree(table, bare, params["backbone"])
    tensors = {
        LAYERS[head.layers][name]: np.ascontiguousarray(_fetch(x).T, np.float32)
        for name, x in params["head"].items()
    }
    if not first:
        write_weights(folder, table, bare, params["backbone"], shard_bytes, write=False)
    else:
        source = tokenizer.chat_template if chat_template is None else chat_template.source
        files = tokenizer.files()
        contents = json_files(config, tokenizer, files, source)
        contents["config.json"] |= class_settings(config, head, form)
        with whole_folder(folder, "config.json", STALE) as partial:
            write_weights(partial, table, bare, params["backbone"], shard_bytes, write=True)
            _add_file(partial, tensors)
            for name, data in files.items():
                (partial / name).write_bytes(data)
            (partial / "README.md").write_text(
                card or f"# {contents['config.json']['architectures'][0]}\n", "utf-8"
            )
            for name, content in contents.items():
                text = json.dumps(content, indent=2, ensure_ascii=False)
                (partial / name).write_text(text + "\n", encoding="utf-8")
    mesh.barrier(f"{folder} is written")


def _fetch(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _add_file(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Put tensors into a weights file of their own, behind those that are there."""
    stored = open_weights(folder)
    old = sorted({tensor.file.name for tensor in stored.values()})
    count = len(old) + 1
    new = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    renamed = dict(zip(old, new, strict=False))
    for before, after in renamed.items():
        (folder / before).rename(folder / after)
    save_file(dict(tensors), folder / new[-1], metadata={"format": "pt"})
    sizes = [math.prod(t.shape) * DTYPES[t.dtype].itemsize for t in stored.values()]
    content = {
        "metadata": {"total_size": sum(sizes) + sum(array.nbytes for array in tensors.values())},
        "weight_map": {name: renamed[tensor.file.name] for name, tensor in stored.items()}
        | dict.fromkeys(tensors, new[-1]),
    }
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_with_head(folder: str | Path, put: Put = put_numpy, *, dtype: str | None = None) -> Headed:
    """Read a model with a head; its tokenizer is `load_tokenizer(folder)`.

    Args:
      folder: with config.json and model.safetensors (or its index).
      put: `(path, leaf) -> array`; paths start with "backbone" or "head".
      dtype: of the backbone's parameters; default what they are stored in. Heads are float32.

    Raises:
      FileNotFoundError: no config.json or weights.
      ValueError: as `safetensors.load_pretrained`; config.json names no class with a head, or
        another number of labels than the head has outputs; a head of wrong tensors or shapes.
    """
    folder = Path(folder).expanduser()
    settings, opened = read_settings(folder), open_folder(folder)
    form = form_of(folder, settings)
    fields = {**opened.fields, **({"param_dtype": dtype} if dtype else {})}
    score = {n: t for n, t in opened.tensors.items() if n.startswith("score.")}
    head = head_of(folder, settings, form, score, fields["width"])
    bare = {n: t for n, t in opened.tensors.items() if n not in score and n != "lm_head.weight"}
    backbone = read_tree(
        opened._replace(tensors=bare),
        ModelConfig(**{**fields, "tied": True}),
        lambda path, leaf: put(("backbone", *path), leaf),
    )
    params: dict[str, Any] = {"backbone": backbone, "head": {}}
    for name, tensor in LAYERS[form.layers].items():
        if tensor in score:
            stored = score[tensor]
            leaf = Leaf(stored.shape[::-1], np.dtype(np.float32), 0, lambda s=stored: s.read().T)
            params["head"][name] = put(("head", name), leaf)
    return Headed(fields, head, form.reads, params)

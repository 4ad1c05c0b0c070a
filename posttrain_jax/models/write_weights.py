"""Writes safetensors files tensor by tensor: the header is known before the first of them.

Parameters may be numpy arrays, device arrays on any mesh, or leaves that are still in another
file (`streaming.Leaf`). The host holds one tensor, or one layer's experts, at a time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from posttrain_jax.api import Params
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.layout import (
    Table,
    each,
    file_shape,
    letter_sizes,
    relayout,
    rows,
    shapes,
)
from posttrain_jax.models.stored import DTYPES, INDEX_FILE, WEIGHTS_FILE
from posttrain_jax.models.streaming import Leaf

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """A tensor to be written: entry `at` of our parameter `path`."""

    path: str
    at: tuple[int, ...]
    name: str
    layout: str
    dtype: np.dtype
    shape: tuple[int, ...]
    size: int


def write_weights(
    folder: Path, table: Table, config: ModelConfig, params: Params, limit: int, *, write: bool
) -> None:
    """Write every tensor of a model, in the type that the model has it in.

    With several processes all must call it: fetching a tensor's shards takes all of them.

    Args:
      folder: where the files go.
      table: names and layouts.
      config, params: the model.
      limit: bytes of tensors a file; a larger tensor has a file to itself.
      write: whether this process writes.

    Raises:
      ValueError: a parameter's shape is not what the config says.
    """
    files = _split(_entries(table, config), limit)
    tensors = _tensors([entry for entries in files for entry in entries], config, params)
    index = {}
    for number, entries in enumerate(files, 1):
        many = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file = WEIGHTS_FILE if len(files) == 1 else many
        index |= {entry.name: file for entry in entries}
        if write:
            _write(folder / file, entries, tensors)
        else:
            for _ in entries:
                next(tensors)
    if write and len(files) > 1:
        total = sum(entry.size for entries in files for entry in entries)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _entries(table: Table, config: ModelConfig) -> list[Entry]:
    """All tensors; those of wide types first, so that each starts at a multiple of its size."""
    ours, sizes = shapes(config), letter_sizes(config)
    entries = []
    for path, index, name, layout in each(table, config):
        shape, dtype = file_shape(layout, sizes), np.dtype(ours[path].dtype)
        size = math.prod(shape) * dtype.itemsize
        entries.append(Entry(path, index, name, layout, dtype, shape, size))
    return sorted(entries, key=lambda entry: -entry.dtype.itemsize)


def _split(entries: list[Entry], limit: int) -> list[list[Entry]]:
    """Which tensors go into which file."""
    files, used = [[]], 0
    for entry in entries:
        if files[-1] and used + entry.size > limit:
            files, used = [*files, []], 0
        files[-1].append(entry)
        used += entry.size
    return files


def _write(path: Path, entries: list[Entry], tensors: Iterator[np.ndarray]) -> None:
    """One file: 8 bytes of header length, the header padded to 8 bytes, the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [end, end + entry.size],
        }
        end += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in entries:
            file.write(next(tensors).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _tensors(entries: list[Entry], config: ModelConfig, params: Params) -> Iterator[np.ndarray]:
    """The tensors in the file's layout, fetched from where they are."""
    sizes = letter_sizes(config)
    whole: tuple[Any, np.ndarray | None] = (None, None)
    for path, index, name, layout, dtype, *_ in entries:
        leaf = _leaf(params, path)
        if isinstance(leaf, Leaf):
            ours = leaf.read(*index)
        else:
            # The experts of a layer may be split over devices: they are fetched together.
            if whole[0] != (path, index[:1]):
                whole = (path, index[:1]), _fetch(leaf, index[:1])
            assert whole[1] is not None
            ours = whole[1][index[1:]]
        stored = relayout(name, ours, layout, sizes, save=True)
        yield np.ascontiguousarray(stored.astype(dtype, copy=False))


def _leaf(params: Params, path: str) -> Any:
    node = params
    for step in path.split("/"):
        node = node[step]
    return node


def _fetch(leaf: Any, index: tuple[int, ...]) -> np.ndarray:
    """Entry `index` (one layer, or all of it) of an array, on every process."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf[index])
    part = _index(leaf, *index) if index else leaf
    if not part.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(part, tiled=True))
    return np.asarray(part)


@jax.jit
def _index(leaf: jax.Array, layer: int) -> jax.Array:
    """One program a shape: indexing with a Python number would compile one a layer."""
    return leaf[layer]


def check_tree(table: Table, config: ModelConfig, params: Params) -> None:
    """Raise ValueError where the tree has not exactly the parameters of this config."""
    leaves = jax.tree.leaves_with_path(params, is_leaf=lambda x: isinstance(x, Leaf))
    found = {"/".join(step.key for step in path) for path, _ in leaves}
    wanted = set(rows(table, config))
    if found != wanted:
        raise ValueError(
            f"the parameters are not those of a {config.family} of this config: "
            f"missing {sorted(wanted - found)}, besides {sorted(found - wanted)}"
        )

"""Between a checkpoint's tensors and our stacked tree: one table a format, one way to read it.

A table maps a parameter of ours to the file's tensor and the change of layout between the two:

  "layers/q": ("model.layers.{layer}.self_attn.q_proj.weight", "(N H) D -> D N H")

The letters are those of `posttrain_jax/api.py`, with H = R J (R = 2 halves of rotary pairs);
letters in brackets share one axis. Read left to right it loads, right to left it saves. Tensors
are read one at a time, when an array asks for its part: sharded arrays are born sharded.
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from posttrain_jax.api import Params
from posttrain_jax.models.config import ModelConfig

Table = Mapping[str, tuple[str, str]]
"""Our path -> (tensor name, with `{layer}` where there is one a layer; layout)."""
Put = Callable[[tuple[str, ...], "Leaf"], Any]


class Leaf:
    """A parameter that is still in the file: it has a shape and a type, and is read by indexing.

    `np.asarray(leaf)` reads all of it, `leaf[1:3, :, :2]` only the tensors of layers 1 and 2.

    Attributes:
      shape: of the whole parameter, layers first.
      dtype: of what indexing gives.
      read: `layer -> array` (layer 0 where the parameter is not stacked).
      stacked: whether axis 0 is the layers.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, read: Callable, stacked: bool):
        self.shape, self.dtype, self.read, self.stacked = shape, dtype, read, stacked

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if not self.stacked:
            return np.ascontiguousarray(self.read(0)[index].astype(self.dtype))
        first, rest = index[0], index[1:]
        if not isinstance(first, slice):
            return self.read(first)[rest].astype(self.dtype)
        layers = range(self.shape[0])[first]
        return np.stack([self.read(layer)[rest].astype(self.dtype) for layer in layers])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


def put_sharded(shardings: Any) -> Put:
    """A `put` that makes each parameter under its sharding; devices read only their part.

    Args:
      shardings: the tree of shardings, as `mesh.shardings(mesh, model.axes())` gives it.
    """

    def put(path: tuple[str, ...], leaf: Leaf) -> jax.Array:
        sharding = functools.reduce(operator.getitem, path, shardings)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return put


def put_numpy(path: tuple[str, ...], leaf: Leaf) -> np.ndarray:
    """A `put` that reads the whole parameter into host memory."""
    return np.asarray(leaf)


def letter_sizes(config: ModelConfig) -> dict[str, int]:
    """The size of every letter of the layouts."""
    return {
        "V": config.vocab_size,
        "D": config.width,
        "N": config.heads,
        "K": config.kv_heads,
        "H": config.head_dim,
        "R": 2,
        "J": config.head_dim // 2,
        "F": config.ffn,
    }


def _side(text: str) -> list[str]:
    """`"(N H) D"` -> `["NH", "D"]`."""
    return [re.sub(r"[() ]", "", axis) for axis in re.findall(r"\([A-Z ]+\)|[A-Z]", text)]


def _shape(axes: Iterable[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in axes)


def relayout(name: str, array: np.ndarray, layout: str, sizes: Mapping[str, int], *, save: bool):
    """Change one tensor's layout: from the file's to ours, or back where `save`.

    Raises:
      ValueError: the tensor has not the shape that its layout and the sizes say.
    """
    left, right = map(_side, layout.split("->"))
    if save:
        left, right = right, left
    if array.shape != _shape(left, sizes):
        raise ValueError(
            f"tensor {name}: expected shape {_shape(left, sizes)} from the model's config, "
            f"got {array.shape}"
        )
    before, after = "".join(left), "".join(right)
    apart = array.reshape([sizes[letter] for letter in before])
    return apart.transpose([before.index(letter) for letter in after]).reshape(_shape(right, sizes))


def rows(table: Table, config: ModelConfig) -> dict[str, tuple[str, str]]:
    """The table's rows that this config has (no "head" where the embeddings are tied)."""
    return {path: row for path, row in table.items() if not (path == "head" and config.tied)}


def tensor_names(table: Table, config: ModelConfig) -> list[str]:
    """Every tensor that the file of this model holds."""
    return [
        name.format(layer=layer)
        for name, _ in rows(table, config).values()
        for layer in range(config.layers if "{layer}" in name else 1)
    ]


def read_tree(
    table: Table,
    config: ModelConfig,
    read: Callable[[str], np.ndarray],
    put: Put,
    dtype: str = "float32",
) -> Params:
    """Build the params tree from a file.

    Args:
      table: the format's table.
      config: the sizes.
      read: tensor name -> array, in the file's layout.
      put: `(path, Leaf) -> array`: `put_numpy`, or `put_sharded(shardings)`.
      dtype: of the parameters.
    """
    sizes, kind = letter_sizes(config), np.dtype(getattr(ml_dtypes, dtype, dtype))
    params: dict[str, Any] = {}
    for key, (name, layout) in rows(table, config).items():
        stacked = "{layer}" in name

        def one(layer: int, name: str = name, layout: str = layout) -> np.ndarray:
            full = name.format(layer=layer)
            return relayout(full, read(full), layout, sizes, save=False)

        shape = _shape(_side(layout.split("->")[1]), sizes)
        leaf = Leaf((config.layers, *shape) if stacked else shape, kind, one, stacked)
        path = tuple(key.split("/"))
        node = params
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = put(path, leaf)
    return params


def check_names(where: Any, expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise ValueError where a file lacks a tensor, or holds one that nothing would read."""
    expected, found = set(expected), set(found)
    problems = {"missing": expected - found, "not understood": found - expected}
    for what, names in problems.items():
        if names:
            listed = ", ".join(sorted(names)[:5])
            raise ValueError(f"{where}: {len(names)} tensors {what}: {listed}")

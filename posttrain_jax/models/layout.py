"""Between a checkpoint's tensors and our stacked tree: one table a format, one way to read it.

A table maps a parameter of ours to the file's tensor and the change of layout between the two:

  "layers/q": ("model.layers.{layer}.self_attn.q_proj.weight", "(N H) D -> D N H")

The letters are those of `letter_sizes`; letters in brackets share one axis. Read left to right it
loads, right to left it saves. `{layer}` is the layer's number in the model, which for "layers/..."
starts behind the dense layers of a mixture of experts; a row with `{expert}` has one tensor an
expert. A table may have rows for more than a config uses; `rows` picks.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from posttrain_jax.api import Params
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.stored import WEIGHT_DTYPES, Stored
from posttrain_jax.models.streaming import Leaf, Put
from posttrain_jax.models.transformer import make_model

Table = Mapping[str, tuple[str, str]]
"""Our path -> (tensor name, with `{layer}` and `{expert}` where there is one for each; layout)."""


def letter_sizes(config: ModelConfig) -> dict[str, int]:
    """The size of every letter of the layouts.

    Capitals are those of `posttrain_jax/api.py`, with H = R J (R = 2 halves of rotary pairs).
    Small ones, of latent attention: q the rank of queries, c of keys and values, a = c + the
    rotated part, h the width of a query head, b of a head's plain keys and values, v of its
    values. Of experts: f the width of one, s of the shared ones together.
    """
    sizes = {
        "V": config.vocab_size,
        "D": config.width,
        "N": config.heads,
        "K": config.kv_heads,
        "H": config.head_dim,
        "R": 2,
        "J": config.head_dim // 2,
        "F": config.ffn,
    }
    if latent := config.latent:
        sizes |= {
            "q": latent.query_rank,
            "c": latent.rank,
            "a": latent.rank + latent.rope_dim,
            "h": latent.plain_dim + latent.rope_dim,
            "b": latent.plain_dim + latent.value_dim,
            "v": latent.value_dim,
        }
    if experts := config.experts:
        sizes |= {"E": experts.count, "f": experts.ffn, "s": experts.shared * experts.ffn}
    return sizes


def _side(text: str) -> list[str]:
    """`"(N H) D"` -> `["NH", "D"]`."""
    return [re.sub(r"[() ]", "", axis) for axis in re.findall(r"\([A-Za-z ]+\)|[A-Za-z]", text)]


def _shape(axes: Iterable[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in axes)


def file_shape(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of one tensor in the file."""
    return _shape(_side(layout.split("->")[0]), sizes)


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


@functools.lru_cache(maxsize=64)
def shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and type of every parameter that the model of this config has."""
    tree = jax.eval_shape(make_model(config).init, jax.random.key(0))
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(step.key for step in path): leaf for path, leaf in leaves}


def rows(table: Table, config: ModelConfig) -> dict[str, tuple[str, str]]:
    """The table's rows that the model of this config has a parameter for.

    Raises:
      ValueError: the model has a parameter without a row.
    """
    ours = shapes(config)
    if lacking := sorted(ours.keys() - table.keys()):
        raise ValueError(
            f"the {config.family} table of weights has no row for {', '.join(lacking)}: this "
            "format can't hold a model with these switches"
        )
    return {path: row for path, row in table.items() if path in ours}


def lead(name: str) -> int:
    """Over how many of a parameter's first axes the file has one tensor an entry."""
    return ("{layer}" in name) + ("{expert}" in name)


def full_name(path: str, name: str, config: ModelConfig, index: tuple[int, ...]) -> str:
    """The tensor that holds entry `index` of a parameter."""
    first = next((s.first for s in config.stacks if s.key == path.split("/")[0]), 0)
    numbers = dict(zip(("layer", "expert"), index, strict=False))
    return name.format(**{**numbers, "layer": first + numbers.get("layer", 0)})


def each(table: Table, config: ModelConfig) -> Iterable[tuple[str, tuple[int, ...], str, str]]:
    """Every tensor of the model's file: (our path, index in it, tensor name, layout)."""
    ours = shapes(config)
    for path, (name, layout) in rows(table, config).items():
        for index in np.ndindex(ours[path].shape[: lead(name)]):
            yield path, index, full_name(path, name, config, index), layout


def tensor_names(table: Table, config: ModelConfig) -> list[str]:
    """Every tensor that the file of this model holds."""
    return [name for _, _, name, _ in each(table, config)]


class Opened(NamedTuple):
    """A checkpoint of which nothing but the headers was read.

    Attributes:
      where: the folder or file, for messages.
      fields: the `ModelConfig` fields that it says; `param_dtype` is what it is stored in.
      table: its names of the weights.
      tensors: what it holds.
      about: name and licence, where it says them.
    """

    where: Any
    fields: dict[str, Any]
    table: Table
    tensors: Mapping[str, Stored]
    about: Mapping[str, str]


def load(opened: Opened, put: Put, dtype: str | None = None) -> tuple[dict[str, Any], Params]:
    """Read a checkpoint that was opened.

    Args:
      opened: from `safetensors.open_folder` or `gguf.open_gguf`.
      put: see `streaming.py`.
      dtype: of the parameters; default what they are stored in.

    Returns:
      The `ModelConfig` fields, and the params tree.

    Raises:
      ValueError: tensors missing, not understood, or of another shape or type.
    """
    fields = {**opened.fields, **({"param_dtype": dtype} if dtype else {})}
    return fields, read_tree(opened, ModelConfig(**fields), put)


def read_tree(opened: Opened, config: ModelConfig, put: Put) -> Params:
    """The params tree of a model of this config; everything is checked before anything is read.

    Raises:
      ValueError: tensors missing, not understood, or of another shape or type.
    """
    check_tensors(opened, config)
    sizes, params = letter_sizes(config), {}
    for path, (name, layout) in rows(opened.table, config).items():

        def read(*index: int, path: str = path, name: str = name, layout: str = layout):
            full = full_name(path, name, config, index)
            return relayout(full, opened.tensors[full].read(), layout, sizes, save=False)

        ours, steps = shapes(config)[path], path.split("/")
        node = params
        for step in steps[:-1]:
            node = node.setdefault(step, {})
        node[steps[-1]] = put(tuple(steps), Leaf(ours.shape, ours.dtype, lead(name), read))
    return params


def check_tensors(opened: Opened, config: ModelConfig) -> None:
    """Raise ValueError where a checkpoint does not hold exactly the tensors of this config."""
    sizes = letter_sizes(config)
    wanted = {name: layout for _, _, name, layout in each(opened.table, config)}
    check_names(opened.where, wanted, opened.tensors)
    for name, layout in wanted.items():
        file, dtype, shape, _ = opened.tensors[name]
        if shape != file_shape(layout, sizes):
            raise ValueError(
                f"{file}: tensor {name}: expected shape {file_shape(layout, sizes)} from the "
                f"model's config, got {shape}"
            )
        if dtype not in WEIGHT_DTYPES:
            raise ValueError(
                f"{file}: tensor {name}: expected one of the types {', '.join(WEIGHT_DTYPES)}, "
                f"got {dtype}"
            )


def check_names(where: Any, expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise ValueError where a file lacks a tensor, or holds one that nothing would read."""
    expected, found = set(expected), set(found)
    problems = {"missing": expected - found, "not understood": found - expected}
    for what, names in problems.items():
        if names:
            listed = ", ".join(sorted(names)[:5])
            raise ValueError(f"{where}: {len(names)} tensors {what}: {listed}")

"""Which mesh axes split rows, heads and the vocabulary, for kernels that must know.

The names repeat `mesh.RULES` ("batch", "heads", "kv_heads", "vocab"), which kernels may not import;
a test holds the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType

BATCH_AXES = ("data", "fsdp", "expert")
HEAD_AXES = ("tensor",)
VOCAB_AXES = ("tensor",)


def split_axes(axes: tuple[str, ...]) -> dict[str, int]:
    """Those of `axes` over which the current mesh partitions automatically -> their sizes."""
    return _axes_of(AxisType.Auto, axes)


def mapped_axes(axes: tuple[str, ...]) -> dict[str, int]:
    """Those of `axes` over which an outer `shard_map` has split all arrays -> their sizes."""
    return _axes_of(AxisType.Manual, axes)


def over_automatic(inside: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`inside` for Pallas calls, which are opaque to the partitioner: no axis is left to it.

    Args:
      in_specs, out_specs: of `split_axes`, as in `jax.shard_map`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    if not (axes := {name for name, kind in types if kind == AxisType.Auto}):
        return inside
    # Pallas calls carry no varying-axes types, hence check_vma=False.
    return jax.shard_map(
        inside, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False
    )


def _axes_of(kind: AxisType, axes: tuple[str, ...]) -> dict[str, int]:
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return {a: mesh.shape[a] for a in axes if types.get(a) == kind and mesh.shape[a] > 1}


def dividing_axes(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The split axes if together they divide `size`, else none of them."""
    split = split_axes(axes)
    return tuple(split) if size % math.prod(split.values()) == 0 else ()

"""Parameters that are still in a file, and the ways to bring them into memory or onto a mesh.

A tensor of the file is the unit: an array that stacks the tensors of many layers is made on the
devices first and filled in place, one tensor after the other, each device with its own part. The
host holds one tensor at a time (of a mixture of experts that is split over experts, one for each
part of that split), never a stack.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Put = Callable[[tuple[str, ...], "Leaf"], Any]
"""`(path, leaf) -> array`: what becomes of a parameter that is still in the file."""


class Leaf:
    """A parameter that is still in the file.

    Attributes:
      shape, dtype: of the whole parameter, in our layout.
      lead: over how many of the first axes the file has one tensor an entry: 0 (one tensor is the
        parameter), 1 (one a layer) or 2 (one a layer and expert).
      read: index over those axes -> that tensor, in our layout, of any type; a view of the mapped
        file where the stored form allows it, so that indexing it reads only what is asked for.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype, lead: int, read: Callable[..., np.ndarray]
    ):
        self.shape, self.dtype, self.lead, self.read = shape, dtype, lead, read

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for index in np.ndindex(self.shape[: self.lead]):
            whole[index] = self.read(*index)
        return whole


def put_numpy(path: tuple[str, ...], leaf: Leaf) -> np.ndarray:
    """A `put` that reads the whole parameter into host memory."""
    return np.asarray(leaf)


def put_lazy(path: tuple[str, ...], leaf: Leaf) -> Leaf:
    """A `put` that leaves the parameter in the file, for what reads it tensor by tensor."""
    return leaf


def put_sharded(shardings: Any) -> Put:
    """A `put` that makes each parameter under its sharding; devices read only their part.

    Args:
      shardings: the tree of shardings, as `mesh.shardings(mesh, model.axes())` gives it.
    """

    def put(path: tuple[str, ...], leaf: Leaf) -> jax.Array:
        return _make(leaf, functools.reduce(operator.getitem, path, shardings))

    return put


def _make(leaf: Leaf, sharding: NamedSharding) -> jax.Array:
    here = sharding.shard_shape(leaf.shape)
    steps = here[: leaf.lead]
    ways = tuple(whole // part for whole, part in zip(leaf.shape, steps, strict=False))
    if not leaf.lead:
        return _piece(leaf, sharding, (), (), ())
    array = _zeros(leaf.shape, leaf.dtype, sharding)
    fill = _fill(sharding)
    for index in np.ndindex(steps):
        piece = _piece(leaf, sharding, ways, steps, index)
        place = np.array([*index, *[0] * (len(leaf.shape) - leaf.lead)], np.int32)
        # Waiting keeps the host from reading ahead of the devices.
        array = jax.block_until_ready(fill(array, piece, place))
    return array


def _piece(leaf: Leaf, sharding: NamedSharding, ways, steps, index) -> jax.Array:
    """What stands at `index` of every device's part: an array with `ways` in place of the lead."""
    tensors: dict[tuple[int, ...], np.ndarray] = {}
    parts: dict[str, np.ndarray] = {}

    def part(where: tuple[slice, ...] | None) -> np.ndarray:
        assert where is not None
        lead, rest = where[: leaf.lead], where[leaf.lead :]
        starts = [s.indices(n)[0] for s, n in zip(lead, ways, strict=True)]
        at = tuple(a * n + i for a, n, i in zip(starts, steps, index, strict=True))
        key = f"{at} {rest}"
        if key not in parts:  # devices that hold the same part share it
            if at not in tensors:
                tensors[at] = leaf.read(*at)
            cut = tensors[at][rest].astype(leaf.dtype, order="C")
            parts[key] = cut.reshape((1,) * leaf.lead + cut.shape)
        return parts[key]

    return jax.make_array_from_callback((*ways, *leaf.shape[leaf.lead :]), sharding, part)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), sharding)


@functools.lru_cache(maxsize=256)
def _fill(sharding: NamedSharding) -> Callable:
    """`(array, piece, place) -> array`, in place: every device updates its own part."""
    update = jax.shard_map(
        lambda array, piece, place: jax.lax.dynamic_update_slice(array, piece, tuple(place)),
        mesh=sharding.mesh,
        in_specs=(sharding.spec, sharding.spec, PartitionSpec()),
        out_specs=sharding.spec,
        check_vma=False,
    )
    return jax.jit(update, donate_argnums=0, out_shardings=sharding)

"""One mesh, one vocabulary of logical axes, one table between them.

Models name the logical axes of their parameters and activations; `RULES` maps each name to the
mesh axes it is split over. Mesh axes of size 1 cost nothing, so every run has all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "expert", "context")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "vocab": "tensor",
    "experts": "expert",
    "latent": "fsdp",
    "rank": None,
    "layers": None,
    "head_dim": None,
    "norm": None,
}


def make_mesh(sizes: Mapping[str, int] | None = None, devices=None) -> Mesh:
    """Build the mesh from axis sizes; one of them may be -1 and takes what is left.

    Raises:
      ValueError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": 1, "fsdp": -1, **(sizes or {})}
    if unknown := set(sizes) - set(AXES):
        raise ValueError(f"unknown mesh axes {sorted(unknown)}; there are {AXES} (config.mesh)")
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    ways = len(devices) // fixed if fixed > 0 and shape.count(-1) == 1 else 1
    if min(shape) < -1 or fixed * ways != len(devices) or shape.count(-1) > 1:
        raise ValueError(
            f"config.mesh {dict(zip(AXES, shape, strict=True))} does not fit {len(devices)} "
            "devices: the sizes must multiply to that number, with at most one -1"
        )
    shape = [ways if size == -1 else size for size in shape]
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(*logical: str | None) -> PartitionSpec:
    """The mesh axes of an array whose dimensions bear these logical names."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in logical))


def is_axes(node: Any) -> bool:
    """True for a leaf of a tree of logical axes: a tuple of names and Nones."""
    return isinstance(node, tuple) and all(n is None or isinstance(n, str) for n in node)


def shardings(mesh: Mesh, axes: Any) -> Any:
    """The tree of NamedShardings for a tree of logical axis tuples."""
    return jax.tree.map(lambda a: NamedSharding(mesh, spec(*a)), axes, is_leaf=is_axes)


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pin the sharding of an activation; does nothing where no mesh is set.

    Axes that an outer `shard_map` has mapped are left out: `x` is split over them already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    each = [(part,) if isinstance(part, str) else part or () for part in spec(*logical)]
    left = (tuple(axis for axis in axes if axis not in mesh.manual_axes) for axes in each)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*left))


def batch_shards(mesh: Mesh) -> int:
    """How many ways the batch dimension is split."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"] or ())


def check_divides(mesh: Mesh, axes: Any, shapes: Any) -> None:
    """Raise ValueError for the first parameter dimension that its mesh axes don't divide."""
    leaves = jax.tree.leaves_with_path(axes, is_leaf=is_axes)
    for (path, names), shaped in zip(leaves, jax.tree.leaves(shapes), strict=True):
        for name, size in zip(names, shaped.shape, strict=True):
            axis = RULES[name] if name else None
            for part in (axis,) if isinstance(axis, str) else (axis or ()):
                ways = mesh.shape[part]
                if size % ways:
                    fits = [n for n in range(1, ways + 1) if size % n == 0]
                    raise ValueError(
                        f"{jax.tree_util.keystr(path)}: {name} is {size}, which mesh axis {part!r} "
                        f"of size {ways} does not divide; sizes that do: {fits} "
                        f"(config.mesh.{part})"
                    )


def check_batch(mesh: Mesh, name: str, size: int) -> None:
    """Raise ValueError where a batch of `size` rows can't be split over the batch's axes."""
    ways = batch_shards(mesh)
    if size % ways:
        down, up = size // ways * ways, -(-size // ways) * ways
        nearest = f"{down} or {up}" if down else f"{up}"
        raise ValueError(
            f"{name}={size} does not divide over data x fsdp x expert = {ways} of config.mesh; "
            f"the nearest that do: {nearest}"
        )


def host_batch(
    mesh: Mesh, shape: tuple[int, ...], rows: Callable[[slice], np.ndarray]
) -> jax.Array:
    """A global array split by rows, as a batch is; each host makes only the rows it holds.

    Args:
      shape: the global shape, rows first.
      rows: makes the given slice of rows.
    """
    sharding = NamedSharding(mesh, PartitionSpec(RULES["batch"]))

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return rows(index[0])[:, *index[1:]]

    return jax.make_array_from_callback(shape, sharding, part)


def shard_rows(mesh: Mesh, tree: Any) -> Any:
    """Put host arrays on the mesh, split by rows; every host passes the same global arrays."""
    return jax.tree.map(lambda x: host_batch(mesh, x.shape, lambda index: x[index]), tree)


def local_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array split by rows, in order, without asking any other host."""
    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def local_slice(array: jax.Array) -> slice:
    """Which rows of the global array `local_rows` returns (they are contiguous)."""
    starts = [s.index[0].indices(array.shape[0]) for s in array.addressable_shards]
    return slice(min(s[0] for s in starts), max(s[1] for s in starts))


def from_local_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """The global array, split by rows, of which each host holds its `local_rows`."""
    sharding = NamedSharding(mesh, PartitionSpec(RULES["batch"]))
    return jax.make_array_from_process_local_data(sharding, rows)


def all_rows(mesh: Mesh, rows: np.ndarray) -> np.ndarray:
    """Every host's rows on every host; for small host-side results such as scores."""
    if jax.process_count() == 1:
        return rows
    return multihost_utils.process_allgather(from_local_rows(mesh, rows), tiled=True)


def from_first(value: int) -> int:
    """Process 0's number, on every process; the others wait for it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def total(values: np.ndarray) -> np.ndarray:
    """The sum over all processes of what each of them counted."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.process_allgather(values).sum(axis=0)


def barrier(name: str) -> None:
    """Wait until every process of the run is here: a reader of a file that another one writes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)

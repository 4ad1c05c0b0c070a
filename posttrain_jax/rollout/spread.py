"""A queue on a mesh: each shard of the batch has slots, pages and a queue of its own prompts.

`over_shards` maps a rollout over the axes that split the batch; what is mapped knows nothing of
other shards, so that no page, prompt or token leaves its devices. The other axes are left to the
partitioner, as everywhere, and experts gather tokens over theirs (models/moe.py). Those collectives
stand in the bodies of loops, which all that take part must go round equally often: `anywhere` makes
a loop's condition that of all shards. On a mesh of data and fsdp alone there are none, and each
shard goes at its own pace.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from posttrain_jax.api import Array, Model, Params
from posttrain_jax.kernels.axes import BATCH_AXES, mapped_axes, split_axes
from posttrain_jax.mesh import AXES, is_axes
from posttrain_jax.rollout.request import Asked


def over_shards(inside: Callable, model: Model, params: Params, asked: Asked):
    """What `inside(params, asked)` returns, computed by each shard of the batch from its rows.

    Args:
      inside: returns arrays split by rows, and such that are the same on all shards (see `total`).
      params: whole on every shard, but for experts, which stay on the devices of their axis.
    """
    shards = tuple(split_axes(BATCH_AXES))
    if not shards:
        return inside(params, asked)
    rows, whole = PartitionSpec(shards), PartitionSpec()
    given = jax.tree.map(lambda _: rows, asked)
    given = given._replace(key=whole, tables=jax.tree.map(lambda _: whole, asked.tables))
    # Loops start from what is the same on all shards and make of it what is not.
    mapped = jax.shard_map(
        inside, in_specs=(_weights(model), given), out_specs=(rows, whole),
        axis_names=set(shards), check_vma=False,
    )  # fmt: skip
    return mapped(params, asked)


def _weights(model: Model):
    """How the weights are split over the axes of the batch."""
    if not split_axes(("expert",)):
        return PartitionSpec()
    own = lambda axes: PartitionSpec(*("expert" if n == "experts" else None for n in axes))  # noqa: E731
    return jax.tree.map(own, model.axes(), is_leaf=is_axes)


def anywhere(flag: Array) -> Array:
    """A condition that holds on all shards where it does on one, if they must keep in step."""
    shards = mapped_axes(BATCH_AXES)
    together = shards and ("expert" in shards or split_axes(AXES))
    return jax.lax.pmax(flag, tuple(shards)) if together else flag


def total(count: Array) -> Array:
    """The sum over all shards, on each."""
    shards = mapped_axes(BATCH_AXES)
    return jax.lax.psum(count, tuple(shards)) if shards else count


def largest(count: Array) -> Array:
    """The largest of all shards, on each."""
    shards = mapped_axes(BATCH_AXES)
    return jax.lax.pmax(count, tuple(shards)) if shards else count

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
from typing import Any

import jax
from jax.sharding import PartitionSpec

from posttrain_jax.api import Array, Model, Params
from posttrain_jax.kernels.axes import BATCH_AXES, mapped_axes, split_axes
from posttrain_jax.mesh import AXES, is_axes
from posttrain_jax.rollout.request import Asked


def over_shards(inside: Callable, in_specs: Any, out_specs: Any, *given: Any) -> Any:
    """What `inside(*given)` returns, computed by each shard of the batch from its part.

    Args:
      in_specs, out_specs: of `rows`, `whole`, `of_asked`, `of_weights`, as in `jax.shard_map`.
    """
    shards = tuple(split_axes(BATCH_AXES))
    if not shards:
        return inside(*given)
    # Loops start from what is the same on all shards and make of it what is not.
    mapped = jax.shard_map(
        inside, in_specs=in_specs, out_specs=out_specs, axis_names=set(shards), check_vma=False
    )
    return mapped(*given)


def rows() -> Any:
    """Of arrays whose first axis is split over the shards."""
    return PartitionSpec(tuple(split_axes(BATCH_AXES)))


def whole() -> Any:
    """Of arrays that are the same on all shards."""
    return PartitionSpec()


def of_asked(asked: Asked) -> Asked:
    """Everything by rows, but for the key and the tables."""
    split: Any = jax.tree.map(lambda _: rows(), asked)
    return split._replace(key=whole(), tables=jax.tree.map(lambda _: whole(), asked.tables))


def of_weights(model: Model, params: Params) -> Any:
    """Whole on every shard, but for experts, which stay on the devices of their axis.

    Args:
      params: stacked, or with layers apart (`transformer.unstack`).
    """
    if not split_axes(("expert",)):
        return whole()
    own = lambda axes: PartitionSpec(*("expert" if n == "experts" else None for n in axes))  # noqa: E731
    split = jax.tree.map(own, model.axes(), is_leaf=is_axes)
    apart = {name: layers for name, layers in params.items() if isinstance(layers, tuple)}
    for name, layers in apart.items():
        layer = jax.tree.map(lambda spec: PartitionSpec(*spec[1:]), split[name])
        split[name] = (layer,) * len(layers)
    return split


def before(count: int) -> Array | int:
    """How many there are on the shards before this one, if each has `count`."""
    shards = mapped_axes(BATCH_AXES)
    return jax.lax.axis_index(tuple(shards)) * count if shards else 0


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

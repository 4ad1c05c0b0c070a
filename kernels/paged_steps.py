"""Which blocks of keys the steps of a kernel's grid take: those that queries see, and no other.

Axes: C groups of queries, X the queries of one, Z blocks of keys, O places of a block, S steps, J
blocks of a step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

FAR = 2**30
"""A place beyond all others."""


class Steps(NamedTuple):
    """The blocks in the order of their groups, so many a step; what `steps_of` makes.

    A step belongs to one group, and a group has one step at least. Where a step lacks blocks, it
    has those of a step before, which are not read again, with a start beyond all places.

    Attributes:
      number: how many steps there are; what stands past them is of no meaning.
      group_S: each step's group.
      block_SJ, start_SJ: its blocks, and the place of each one's first key.
    """

    number: jax.Array
    group_S: jax.Array
    block_SJ: jax.Array
    start_SJ: jax.Array


def steps_of(
    owner_Z: jax.Array, start_Z: jax.Array, size: int, seen_CX2: jax.Array, many: int
) -> Steps:
    """What the grid does: every block that some query of its group sees, and no other.

    Args:
      owner_Z: a block's group; C or more is nobody.
      start_Z: the place of its first key, of `size`.
      seen_CX2: the first and the last place that a query sees.
      many: blocks a step.
    """
    groups, blocks = len(seen_CX2), len(owner_Z)
    mine_Z = jnp.minimum(owner_Z, groups - 1)
    first_Z = jnp.min(seen_CX2[..., 0], axis=1)[mine_Z]
    last_Z = jnp.max(seen_CX2[..., 1], axis=1)[mine_Z]
    wanted_Z = (owner_Z < groups) & (start_Z <= last_Z) & (start_Z + size > first_Z)
    group_Z = jnp.where(wanted_Z, owner_Z, groups)
    order_Z = jnp.argsort(group_Z)
    count_C = jnp.sum(group_Z == jnp.arange(groups)[:, None], axis=1)
    steps_C = jnp.maximum(1, -(-count_C // many))
    block_stop_C, stop_C = jnp.cumsum(count_C), jnp.cumsum(steps_C)
    step_S = jnp.arange(blocks // many + groups)
    group_S = jnp.minimum(jnp.sum(step_S[:, None] >= stop_C, axis=1), groups - 1)
    turn_S = step_S - (stop_C - steps_C)[group_S]
    at_SJ = ((block_stop_C - count_C)[group_S] + turn_S * many)[:, None] + jnp.arange(many)
    real_SJ = at_SJ < block_stop_C[group_S][:, None]
    block_SJ = order_Z[jnp.minimum(at_SJ, blocks - 1)]
    start_SJ = jnp.where(real_SJ, start_Z[block_SJ], FAR)
    latest_SJ = jax.lax.cummax(jnp.where(real_SJ, step_S[:, None], 0))
    block_SJ = jnp.take_along_axis(block_SJ, latest_SJ, axis=0)
    tables = (group_S, block_SJ, start_SJ)
    return Steps(stop_C[-1], *(x.astype(jnp.int32) for x in tables))

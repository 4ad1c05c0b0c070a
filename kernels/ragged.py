"""Products of rows, sorted by group, each with its own group's matrix (mixtures of experts).

`jax.lax.ragged_dot` costs what the rows cost only where XLA has a kernel for it, which is on TPU.
On other backends JAX lowers it to one product for every group over all rows, masked: with E groups
E times the work and E copies of the rows. There the rows are padded to whole blocks of one group
each, and a batched product takes one matrix a block: about twice the work at most and two copies of
the matrices, where a group has 8 rows or more on average. No row is dropped in either.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MIN_BLOCK = 8
"""Rows of a block at least, in the blocked form."""


def ragged_matmul(
    x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, impl: str = "auto"
) -> jax.Array:
    """The first sizes_E[0] rows times w_EDF[0], the next sizes_E[1] times w_EDF[1] ... -> [M, F].

    What stands in rows past the sum of the sizes is of no meaning, and so is their gradient.

    Args:
      x_MD: rows, sorted by group.
      w_EDF: one matrix a group.
      sizes_E: int32, rows of each group; their sum is at most M.
      impl: `ragged` (lax.ragged_dot), `blocked`, `reference`, or `auto` by backend.

    Raises:
      ValueError: an unknown impl.
    """
    if impl == "auto":
        impl = "ragged" if jax.default_backend() == "tpu" else "blocked"
    if impl == "ragged":
        return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E)
    if impl == "blocked":
        return ragged_blocked(x_MD, w_EDF, sizes_E)
    if impl == "reference":
        return ragged_ref(x_MD, w_EDF, sizes_E)
    raise ValueError(f"ragged_matmul impl {impl!r}: expected auto, ragged, blocked or reference")


def ragged_ref(x_MD, w_EDF, sizes_E) -> jax.Array:
    """The plain reference: every row with every matrix, then each row's own is picked."""
    group_M = _group_of_rows(jnp.cumsum(sizes_E), len(x_MD))
    every_MEF = jnp.einsum("MD,EDF->MEF", x_MD, w_EDF)
    return jnp.einsum("MEF,ME->MF", every_MEF, jax.nn.one_hot(group_M, len(w_EDF)))


def ragged_blocked(x_MD, w_EDF, sizes_E) -> jax.Array:
    """Rows padded to whole blocks of one group each, and one matrix a block."""
    (rows, width), groups = x_MD.shape, len(w_EDF)
    size = max(MIN_BLOCK, rows // groups)
    blocks = rows // size + min(groups, rows)  # sum over groups of ceil(rows / size), at most
    ends_E = jnp.cumsum(sizes_E)
    group_M = _group_of_rows(ends_E, rows)
    last_block_E = jnp.cumsum(-(-sizes_E // size))
    pads_E = last_block_E * size - ends_E  # places left empty up to the end of a group's blocks
    before_M = jnp.where(group_M > 0, pads_E[group_M - 1], 0)
    place_M = jnp.where(jnp.arange(rows) < ends_E[-1], jnp.arange(rows) + before_M, blocks * size)
    padded = jnp.zeros((blocks * size, width), x_MD.dtype).at[place_M].set(x_MD, mode="drop")
    group_J = jnp.minimum(
        jnp.searchsorted(last_block_E, jnp.arange(blocks), side="right"), groups - 1
    )
    out = jnp.einsum("JMD,JDF->JMF", padded.reshape(blocks, size, width), w_EDF[group_J])
    return out.reshape(blocks * size, -1).at[place_M].get(mode="fill", fill_value=0)


def _group_of_rows(ends_E, rows: int) -> jax.Array:
    """Each row's group; the number of groups for rows past all of them -> clipped to the last."""
    group_M = jnp.searchsorted(ends_E, jnp.arange(rows), side="right")
    return jnp.minimum(group_M, len(ends_E) - 1)

"""New tokens into a pool's pages on TPU (Pallas), in place.

XLA's scatter there wants the axis of heads last, and copies the whole pool from the kernel's layout
and back, every step and layer. Here the pages, or the pieces of pages, that get a token are read,
changed and written, and no others.

Axes: E pieces that are changed, the others as in paged.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from posttrain_jax.kernels.axes import HEAD_AXES, dividing_axes, over_automatic
from posttrain_jax.kernels.paged import Where

PIECE = 32
"""Places of a piece of a page of values; a piece of one of keys is the page."""


def write_pages(
    pages: jax.Array, new_BTKH: jax.Array, where: Where, *, keys: bool, interpret: bool = False
) -> jax.Array:
    """The pool with each row's new keys ([Z, K, H, O]) or values ([Z, K, O, H]).

    A row's tokens that are written come first and one behind the other.

    Args:
      interpret: as of `paged_tpu.parts`.
    """
    inside = functools.partial(_inside, keys=keys, interpret=interpret)
    heads = PartitionSpec(None, dividing_axes(HEAD_AXES, new_BTKH.shape[2]))
    mapped = over_automatic(inside, (heads, heads, PartitionSpec(), PartitionSpec()), heads)
    return mapped(pages, new_BTKH.swapaxes(1, 2), where.page_BT, where.offset_BT)


def _inside(pages, new_BKTH, page_BT, offset_BT, *, keys: bool, interpret: bool) -> jax.Array:
    """`write_pages` of one device's heads."""
    count, size = page_BT.shape[1], pages.shape[3 if keys else 2]
    held = size if keys or size % PIECE else PIECE
    pieces = size // held
    piece_BT = jnp.where(page_BT < len(pages), page_BT * pieces + offset_BT // held, -1)
    former_BT = jnp.pad(piece_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    new_E = ((piece_BT >= 0) & (piece_BT != former_BT)).reshape(-1)
    order_E = jnp.argsort(~new_E)  # stable: in the order of rows
    piece_E = jnp.maximum(piece_BT.reshape(-1)[order_E], 0)
    row_E = order_E // count
    # As columns for keys, whose places are lanes, and as rows for values.
    at = jnp.stack([piece_BT, offset_BT % held], axis=2 if keys else 1)

    def of_row(*shape: int):
        return pl.BlockSpec((1, *shape), lambda e, _, row_E: (row_E[e], *(0 for _ in shape)))

    def index(e, piece_E, _):
        page, piece = (f(piece_E[e], jnp.int32(pieces)) for f in (jax.lax.div, jax.lax.rem))
        return (page, 0, 0, piece) if keys else (page, 0, piece, 0)

    last = (pages.shape[2], held) if keys else (held, pages.shape[3])
    block = pl.BlockSpec((1, pages.shape[1], *last), index)
    call = pl.pallas_call(
        functools.partial(_kernel, keys),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(jnp.maximum(1, jnp.sum(new_E)),),  # if there is none, one is written as it is
            in_specs=[of_row(*new_BKTH.shape[1:]), of_row(*at.shape[1:]), block],
            out_specs=block,
        ),
        out_shape=jax.ShapeDtypeStruct(pages.shape, pages.dtype),
        input_output_aliases={4: 0},
        cost_estimate=pl.CostEstimate(
            flops=0,
            transcendentals=0,
            bytes_accessed=2 * len(new_E) * new_BKTH[0, :, 0].size * held * pages.dtype.itemsize,
        ),
        interpret=interpret,
        name="paged_write",
    )
    numbers = (piece_E.astype(jnp.int32), row_E.astype(jnp.int32))
    return call(*numbers, new_BKTH.astype(pages.dtype), at.astype(jnp.int32), pages)


def _kernel(keys: bool, piece_E, _, new_ref, at_ref, old_ref, pages_ref):
    """A row's tokens that go to one piece: a product with ones and zeros puts each at its place."""
    new_KTH, at, old = new_ref[0], at_ref[0], old_ref[0]
    piece, offset = (at[:, :1], at[:, 1:]) if keys else (at[:1], at[1:])
    count, held = new_KTH.shape[1], old.shape[2 if keys else 1]
    ahead = jax.lax.broadcasted_iota(jnp.int32, (count, held) if keys else (held, count), int(keys))
    mine = ((piece == piece_E[pl.program_id(0)]) & (offset == ahead)).astype(jnp.float32)
    taken = jnp.max(mine, axis=0 if keys else 1, keepdims=True) > 0
    one_pass = new_KTH.dtype == jnp.bfloat16
    exact = jnp.bfloat16 if one_pass else jnp.float32
    new = jnp.einsum(
        "KTH,TO->KHO" if keys else "KTH,OT->KOH", new_KTH.astype(exact), mine.astype(exact),
        precision=None if one_pass else jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    pages_ref[0] = jnp.where(taken[None], new.astype(old.dtype), old)

"""How the kernels of the LM head cut positions into chunks, so that [B, T, V] is never held.

A chunk is the same columns of every row, so that rows stay where the mesh has them. Where only some
positions are asked for, each row's come first, and chunks behind the last of them cost nothing.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.kernels.axes import BATCH_AXES, split_axes

CHUNKS = {"cpu": (1 << 19, 256)}
OTHER_CHUNKS = (1 << 23, 1024)
"""Backend -> logits held at once on one device, but no fewer than so many positions.

On CPU the logits (2 MB in float32) then stay in the cache: with a vocabulary of 512 forward and
backward took 0.6 times as long as with 32 MB. The least number of positions pays for reading the
head and its gradient once a chunk; 1024 keep a TPU's matrix unit, not its memory, the bound.
"""
NEVER = -1e30
"""The logit of a token that can't occur."""


class Layout(NamedTuple):
    """Where each position goes.

    Attributes:
      order_BT: each row's needed positions first; None: all as they are.
      needed_BT: which are needed; None: all.
      live: how many chunks, the first ones, hold a needed position.
      chunks: how many there are.
    """

    order_BT: jax.Array | None
    needed_BT: jax.Array | None
    live: jax.Array
    chunks: int

    def put(self, x_BT: jax.Array) -> jax.Array:
        """[B, T, ...] in this order, padded to whole chunks."""
        if self.order_BT is not None:
            x_BT = jnp.take_along_axis(x_BT, _beside(self.order_BT, x_BT), axis=1)
        pad = -x_BT.shape[1] % self.chunks
        return jnp.pad(x_BT, ((0, 0), (0, pad), *((0, 0),) * (x_BT.ndim - 2)))

    def back(self, x_BT: jax.Array, length: int) -> jax.Array:
        """What `put` undid; 0 at positions that nobody needs."""
        x_BT = x_BT[:, :length]
        if self.order_BT is None or self.needed_BT is None:
            return x_BT
        back_BT = jnp.argsort(self.order_BT, axis=1)
        found = jnp.take_along_axis(x_BT, _beside(back_BT, x_BT), axis=1)
        return jnp.where(_beside(self.needed_BT, found), found, 0)


def _beside(x_BT: jax.Array, other: jax.Array) -> jax.Array:
    """With as many axes as the other."""
    return x_BT.reshape(*x_BT.shape, *(1,) * (other.ndim - 2))


def lay_out(shape: tuple[int, ...], vocab: int, needed_BT: jax.Array | None) -> Layout:
    """The layout of positions, [B, T, ...], over a vocabulary of this size."""
    batch, length = shape[:2]
    count = count_chunks(batch, length, vocab)
    columns = -(-length // count)
    if needed_BT is None:
        return Layout(None, None, jnp.int32(count), count)
    order_BT = jnp.argsort(~needed_BT, axis=1, stable=True)
    most = jnp.max(jnp.sum(needed_BT, axis=1, dtype=jnp.int32))
    return Layout(order_BT, needed_BT, (most + columns - 1) // columns, count)


def count_chunks(batch: int, length: int, vocab: int) -> int:
    """How many chunks of whole columns [B, C] of positions."""
    held, least = CHUNKS.get(jax.default_backend(), OTHER_CHUNKS)
    devices = math.prod(split_axes(BATCH_AXES).values())
    columns = max(held // vocab, least) * devices // batch
    return -(-length // max(1, min(length, columns)))


def tempered_logits(hidden_RD, head_VD, inverse_temperature, never):
    """Tempered logits [..., V] in float32."""
    logits = jnp.einsum("...D,VD->...V", hidden_RD, head_VD, preferred_element_type=jnp.float32)
    logits = logits * inverse_temperature
    return logits if never is None else logits.at[..., never].set(NEVER)


def split(x, chunks: int):
    """[B, chunks * C, ...] -> [chunks, B * C, ...]."""
    batch, length = x.shape[:2]
    x = jnp.moveaxis(x.reshape(batch, chunks, length // chunks, *x.shape[2:]), 1, 0)
    return x.reshape(chunks, -1, *x.shape[3:])


def join(x, batch: int):
    """[chunks, B * C, ...] -> [B, chunks * C, ...]."""
    x = jnp.moveaxis(x.reshape(x.shape[0], batch, -1, *x.shape[2:]), 0, 1)
    return x.reshape(batch, -1, *x.shape[3:])


def add_products(grads, chunk, dz, hidden_RD, head_VD):
    """The gradients (of the head, of all chunks' hidden states) with those of a chunk."""
    grad_head_DV, grad_hidden = grads
    dz = dz.astype(hidden_RD.dtype)
    # [D, V] and not [V, D]: the larger operand is then read as it lies in memory.
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    grad_head_DV += product("RD,RV->DV", hidden_RD, dz)
    grad_hidden_RD = product("RV,VD->RD", dz, head_VD).astype(hidden_RD.dtype)
    return grad_head_DV, grad_hidden.at[chunk].set(grad_hidden_RD)

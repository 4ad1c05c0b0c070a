"""Attention of a few new tokens a row over pages of a common pool, and over prompts rows share.

A row's own keys and values lie in pages anywhere in the pool, each with an owner and the place of
its first token; no row's cache is ever put together. Each page is multiplied with its owner's query
where it lies, so that work and memory follow the pool, and the pages of a row are merged by their
log-sum-exp (flash decoding). What rows of a group share, their prompt, is read once a group.

Keys and values may be kept in 8 bits, with a scale for each token and kv head. A scale is one
number for a whole vector, so it goes to the scores, or to the weights, and what is multiplied are
the 8-bit numbers.

Axes: Z pages, O places of a page, U prompts of the pool, M members of a group, W prompt places.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.kernels.attention import MASKED


class Where(NamedTuple):
    """Which places of pool and prompts belong to which row; B is the number of rows.

    Attributes:
      place_B: how many of its own tokens a row has before the new ones.
      page_BT, offset_BT: where these go; page Z for what is not written.
      owner_Z: a page's row, or B.
      start_Z: the row's place of a page's first token.
      entry_B, rank_B: the row's prompt in the pool, and which member of its group it is.
      member_UM: the inverse: the row of each member, or B.
      valid_UW: a prompt's places that hold tokens; left-padded.
    """

    place_B: jax.Array
    page_BT: jax.Array
    offset_BT: jax.Array
    owner_Z: jax.Array
    start_Z: jax.Array
    entry_B: jax.Array
    rank_B: jax.Array
    member_UM: jax.Array
    valid_UW: jax.Array


class Part(NamedTuple):
    """What a part of the keys makes of a query: its largest score, the sum of the exponentials
    below it, and the values under their weights, not divided."""

    top: jax.Array
    total: jax.Array
    out: jax.Array


class Scaled(NamedTuple):
    """Keys or values in 8 bits: `numbers * scale`.

    Attributes:
      numbers: int8, [Z, K, H, O] or [Z, K, O, H].
      scale: float32, of each token and head, [Z, K, O].
    """

    numbers: jax.Array
    scale: jax.Array


Kept = jax.Array | Scaled
"""Keys or values as a pool has them."""


def kept(x: jax.Array, dtype: str, *, keys: bool) -> Kept:
    """Keys [Z, K, H, O] or values [Z, K, O, H] as a pool of this type has them.

    Args:
      dtype: `int8` for scaled numbers; the empty string changes nothing.
    """
    if dtype == "int8" and x.size:  # latent attention has values of no width
        return _scaled(x, axis=-2 if keys else -1)
    return x.astype(dtype) if dtype and dtype != "int8" else x


def numbers_of(x: Kept) -> jax.Array:
    """The array without its scales."""
    return x.numbers if isinstance(x, Scaled) else x


def _on_tpu(impl: str) -> bool:
    if impl not in ("auto", "splash", "xla", "reference"):
        raise ValueError(f"paged_attention impl {impl!r}: expected auto, splash, xla or reference")
    return impl == "splash" or (impl == "auto" and jax.default_backend() == "tpu")


def _scaled(x: jax.Array, axis: int) -> Scaled:
    """The nearest multiples of the largest number of each vector / 127."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127
    numbers = jnp.round(x / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
    return Scaled(numbers, jnp.squeeze(scale, axis))


def write(
    pages: Kept, new_BTKH: jax.Array, where: Where, *, keys: bool, impl: str = "auto"
) -> Kept:
    """The pool with each row's new keys ([Z, K, H, O]) or values ([Z, K, O, H]).

    Args:
      impl: as of `paged_attention` (paged_write.py).
    """
    put = functools.partial(write, where=where, impl=impl)
    if isinstance(pages, Scaled):
        new = _scaled(new_BTKH, axis=-1)
        numbers = put(pages.numbers, new.numbers, keys=keys)
        scale = put(pages.scale[:, :, None], new.scale[..., None], keys=True)
        return Scaled(numbers_of(numbers), numbers_of(scale)[:, :, 0])
    new_BTKH = new_BTKH.astype(pages.dtype)
    if _on_tpu(impl) and new_BTKH.size:
        from posttrain_jax.kernels.paged_write import write_pages

        return write_pages(pages, new_BTKH, where, keys=keys)
    if keys:
        return pages.at[where.page_BT, :, :, where.offset_BT].set(new_BTKH, mode="drop")
    return pages.at[where.page_BT, :, where.offset_BT].set(new_BTKH, mode="drop")


def paged_attention(
    q_BTNH: jax.Array,
    k_ZKHO: Kept,
    v_ZKOH: Kept,
    k_UKHW: Kept,
    v_UKWH: Kept,
    where: Where,
    *,
    scale: float | None = None,
    window: int | jax.Array = 0,
    impl: str = "auto",
) -> jax.Array:
    """New tokens, already written, over their row's prompt and tokens up to each -> [B, T, N, H].

    Args:
      scale: of the scores; default 1 / sqrt(H) of the keys.
      window: places that a query sees, its own included; 0 is no bound.
      impl: `splash` (TPU, paged_tpu.py), `xla` or `reference` (here), or `auto` by backend; the
        words of `attention`.

    Raises:
      ValueError: an unknown impl.
    """
    batch, count, heads, width = q_BTNH.shape
    kv_heads = numbers_of(k_ZKHO).shape[1]
    q = q_BTNH * (width**-0.5 if scale is None else scale)
    q_BKTGH = q.reshape(batch, count, kv_heads, heads // kv_heads, width).swapaxes(1, 2)
    if _on_tpu(impl):
        from posttrain_jax.kernels.paged_tpu import parts

        own, prompt = parts(q_BKTGH, k_ZKHO, v_ZKOH, k_UKHW, v_UKWH, where, window)
    else:
        own = _of_pages(q_BKTGH, k_ZKHO, v_ZKOH, where, window)
        prompt = _of_prompts(q_BKTGH, k_UKHW, v_UKWH, where, window)
    top = jnp.maximum(own.top, prompt.top)
    ours, theirs = jnp.exp(own.top - top), jnp.exp(prompt.top - top)
    total = own.total * ours + prompt.total * theirs
    out = own.out * ours[..., None] + prompt.out * theirs[..., None]
    out = (out / total[..., None]).astype(q_BTNH.dtype)
    return out.swapaxes(1, 2).reshape(batch, count, heads, -1)


def _part(q, k, v, visible) -> Part:
    """Of queries [..., T, G, H], keys [..., H, S] and values [..., S, H]; visible [..., T, 1, S].

    Result: [..., T, G] and [..., T, G, H]. Numbers are multiplied in the queries' type, which holds
    all of int8.
    """
    *_, count, group, width = q.shape
    flat = q.reshape(*q.shape[:-3], count * group, width)
    multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = multiply("...RH,...HS->...RS", flat, numbers_of(k).astype(q.dtype))
    scores = scores * k.scale[..., None, :] if isinstance(k, Scaled) else scores
    scores = scores.reshape(*q.shape[:-1], -1)
    scores = jnp.where(visible, scores, MASKED)
    top = jnp.max(scores, axis=-1)
    exp = jnp.exp(scores - top[..., None])
    weights = exp.reshape(*flat.shape[:-1], -1)
    weights = weights * v.scale[..., None, :] if isinstance(v, Scaled) else weights
    out = multiply("...RS,...SH->...RH", weights.astype(q.dtype), numbers_of(v).astype(q.dtype))
    return Part(top, jnp.sum(exp, axis=-1), out.reshape(*q.shape[:-1], -1))


def _of_pages(q_BKTGH, k_ZKHO, v_ZKOH, where: Where, window) -> Part:
    batch, owner_Z = q_BKTGH.shape[0], where.owner_Z
    row_Z = jnp.minimum(owner_Z, batch - 1)
    last_ZT1 = (where.place_B[row_Z][:, None] + jnp.arange(q_BKTGH.shape[2]))[..., None]
    ahead_O = jnp.arange(numbers_of(k_ZKHO).shape[3])
    place_Z1O = (where.start_Z[:, None] + ahead_O)[:, None]
    visible_ZTO = (owner_Z < batch)[:, None, None] & (place_Z1O <= last_ZT1)
    visible_ZTO &= _near(last_ZT1 - place_Z1O, window)
    page = _part(q_BKTGH[row_Z], k_ZKHO, v_ZKOH, visible_ZTO[:, None, :, None])
    top = jnp.full((batch, *page.top.shape[1:]), MASKED).at[owner_Z].max(page.top, mode="drop")
    weight = jnp.exp(page.top - top[row_Z])
    add = lambda x: jnp.zeros((batch, *x.shape[1:])).at[owner_Z].add(x, mode="drop")  # noqa: E731
    return Part(top, add(page.total * weight), add(page.out * weight[..., None]))


def _of_prompts(q_BKTGH, k_UKHW, v_UKWH, where: Where, window) -> Part:
    visible_UXW = where.valid_UW[:, None]
    if not (isinstance(window, int) and window == 0):
        # Left-padded: the place right behind the prompt is the row's own first.
        ahead_W = where.valid_UW.shape[1] - jnp.arange(where.valid_UW.shape[1])
        place_BT = where.place_B[:, None] + jnp.arange(q_BKTGH.shape[2])
        row_UM = jnp.minimum(where.member_UM, len(q_BKTGH) - 1)
        place_UX = place_BT[row_UM].reshape(len(row_UM), -1)
        visible_UXW = visible_UXW & _near(place_UX[..., None] + ahead_W, window)
    q_UKXGH = members(q_BKTGH, where)
    found = _part(q_UKXGH, k_UKHW, v_UKWH, visible_UXW[:, None, :, None])
    return to_rows(found, where, q_BKTGH.shape[2])


def members(q_BKTGH: jax.Array, where: Where) -> jax.Array:
    """The queries of all rows that share a prompt, [U, K, M * T, G, H]."""
    q_UMKTGH = q_BKTGH[jnp.minimum(where.member_UM, len(q_BKTGH) - 1)]
    q_UKMTGH = q_UMKTGH.swapaxes(1, 2)
    return q_UKMTGH.reshape(*q_UKMTGH.shape[:2], -1, *q_UKMTGH.shape[4:])


def to_rows(found: Part, where: Where, count: int) -> Part:
    """What is of `members`, of `count` new tokens each, back at its row."""

    def of_rows(x):
        x = x.reshape(*x.shape[:2], -1, count, *x.shape[3:])
        return x[where.entry_B, :, where.rank_B]

    return Part(*map(of_rows, found))


def _near(distance, window):
    return (distance < window) | (jnp.asarray(window) == 0)

"""Attention of one new token a row over pages of a common pool, and over prompts that rows share.

A row's own keys and values lie in pages anywhere in the pool, each with an owner and the place of
its first token; no row's cache is ever put together. Each page is multiplied with its owner's query
where it lies, so that work and memory follow the pool, and the pages of a row are merged by their
log-sum-exp (flash decoding). What rows of a group share, their prompt, is read once a group.

Axes: Z pages, O places of a page, U prompts of the pool, M members of a group, W prompt places.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.kernels.attention import MASKED


class Where(NamedTuple):
    """Which places of pool and prompts belong to which row; B is the number of rows.

    Attributes:
      place_B: how many of its own tokens a row has before the new one.
      page_B, offset_B: where the new one goes; page Z for rows that write nothing.
      owner_Z: a page's row, or B.
      start_Z: the row's place of a page's first token.
      entry_B, rank_B: the row's prompt in the pool, and which member of its group it is.
      member_UM: the inverse: the row of each member, or B.
      valid_UW: a prompt's places that hold tokens; left-padded.
    """

    place_B: jax.Array
    page_B: jax.Array
    offset_B: jax.Array
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


def write(pages: jax.Array, new_BKH: jax.Array, where: Where, *, keys: bool) -> jax.Array:
    """The pool with each row's new key ([Z, K, H, O]) or value ([Z, K, O, H])."""
    new_BKH = new_BKH.astype(pages.dtype)
    if keys:
        return pages.at[where.page_B, :, :, where.offset_B].set(new_BKH, mode="drop")
    return pages.at[where.page_B, :, where.offset_B].set(new_BKH, mode="drop")


def paged_attention(
    q_BNH: jax.Array,
    k_ZKHO: jax.Array,
    v_ZKOH: jax.Array,
    k_UKHW: jax.Array,
    v_UKWH: jax.Array,
    where: Where,
    *,
    scale: float | None = None,
    window: int | jax.Array = 0,
) -> jax.Array:
    """One new token a row, already written, over its prompt and its own tokens -> [B, N, H].

    Args:
      scale: of the scores; default 1 / sqrt(H) of the keys.
      window: places that a query sees, its own included; 0 is no bound.
    """
    batch, heads, width = q_BNH.shape
    kv_heads = k_ZKHO.shape[1]
    q = q_BNH * (width**-0.5 if scale is None else scale)
    q_BKGH = q.reshape(batch, kv_heads, heads // kv_heads, width)
    own = _of_pages(q_BKGH, k_ZKHO, v_ZKOH, where, window)
    prompt = _of_prompts(q_BKGH, k_UKHW, v_UKWH, where, window)
    top = jnp.maximum(own.top, prompt.top)
    ours, theirs = jnp.exp(own.top - top), jnp.exp(prompt.top - top)
    total = own.total * ours + prompt.total * theirs
    out = own.out * ours[..., None] + prompt.out * theirs[..., None]
    return (out / total[..., None]).astype(q_BNH.dtype).reshape(batch, heads, -1)


def _part(q, k, v, visible) -> Part:
    """Of queries [..., R, H], keys [..., H, S] and values [..., S, H]."""
    scores = jnp.einsum("...RH,...HS->...RS", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible, scores, MASKED)
    top = jnp.max(scores, axis=-1)
    exp = jnp.exp(scores - top[..., None])
    out = jnp.einsum(
        "...RS,...SH->...RH", exp.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return Part(top, jnp.sum(exp, axis=-1), out)


def _of_pages(q_BKGH, k_ZKHO, v_ZKOH, where: Where, window) -> Part:
    batch, owner_Z = q_BKGH.shape[0], where.owner_Z
    row_Z = jnp.minimum(owner_Z, batch - 1)
    last_Z1 = where.place_B[row_Z][:, None]
    place_ZO = where.start_Z[:, None] + jnp.arange(k_ZKHO.shape[3])
    visible_ZO = (owner_Z < batch)[:, None] & (place_ZO <= last_Z1)
    visible_ZO &= _near(last_Z1 - place_ZO, window)
    page = _part(q_BKGH[row_Z], k_ZKHO, v_ZKOH, visible_ZO[:, None, None])
    top = jnp.full((batch, *page.top.shape[1:]), MASKED).at[owner_Z].max(page.top, mode="drop")
    weight = jnp.exp(page.top - top[row_Z])
    add = lambda x: jnp.zeros((batch, *x.shape[1:])).at[owner_Z].add(x, mode="drop")  # noqa: E731
    return Part(top, add(page.total * weight), add(page.out * weight[..., None]))


def _of_prompts(q_BKGH, k_UKHW, v_UKWH, where: Where, window) -> Part:
    batch, kv_heads, group, width = q_BKGH.shape
    prompts, members = where.member_UM.shape
    row_UM = jnp.minimum(where.member_UM, batch - 1)
    q_UKRH = q_BKGH[row_UM].transpose(0, 2, 1, 3, 4).reshape(prompts, kv_heads, -1, width)
    visible_UMW = jnp.broadcast_to(
        where.valid_UW[:, None], (prompts, members, where.valid_UW.shape[1])
    )
    if not (isinstance(window, int) and window == 0):
        # Left-padded: the place right behind the prompt is the row's own first.
        ahead_W = where.valid_UW.shape[1] - jnp.arange(where.valid_UW.shape[1])
        visible_UMW &= _near(where.place_B[row_UM][..., None] + ahead_W, window)
    visible = jnp.repeat(visible_UMW, group, axis=1)[:, None]
    found = _part(q_UKRH, k_UKHW, v_UKWH, visible)

    def to_rows(x):
        x = x.reshape(prompts, kv_heads, members, group, *x.shape[3:])
        return x[where.entry_B, :, where.rank_B]

    return Part(*(to_rows(x) for x in found))


def _near(distance, window):
    return (distance < window) | (jnp.asarray(window) == 0)

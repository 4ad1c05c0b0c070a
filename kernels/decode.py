"""Attention of one new token a row over its cache, whose first part rows of a group may share.

What rows share, their prompt, is read once a group: their queries are one matrix against it. Both
parts are under one softmax.

Axes: P prompts, W prompt places, M the queries of a group that meet one kv head.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.kernels.attention import MASKED


class Prompts(NamedTuple):
    """Keys and values of prompts; each is that of B / P rows one after the other.

    Attributes:
      valid_PW: the places that their rows see.
    """

    k_PKHW: jax.Array
    v_PKWH: jax.Array
    valid_PW: jax.Array


def decode_attention(
    q_BNH: jax.Array,
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    valid_BS: jax.Array,
    prompts: Prompts | None = None,
    *,
    scale: float | None = None,
) -> jax.Array:
    """One new token a row over its prompt, if any, and its cache -> [B, N, H], H of the values.

    Keys lie transposed ([H, S]): the product with a single query then runs along memory.

    Args:
      valid_BS: the places it sees.
      scale: of the scores; default 1 / sqrt(H) of the keys.
    """
    batch, heads, width = q_BNH.shape
    q_BKGH = q_BNH.reshape(batch, k_BKHS.shape[1], -1, width)
    q_BKGH = q_BKGH * (width**-0.5 if scale is None else scale)
    scores = _scores(q_BKGH, k_BKHS, valid_BS)
    if prompts is None:
        out = _mixed(jax.nn.softmax(scores, axis=-1), v_BKSH)
        return out.astype(q_BNH.dtype).reshape(batch, heads, -1)
    shape = (len(prompts.valid_PW), -1, *q_BKGH.shape[1:3])
    theirs = _scores(_by_prompt(q_BKGH, shape), prompts.k_PKHW, prompts.valid_PW)
    tops = (jnp.max(scores, axis=-1), _by_row(jnp.max(theirs, axis=-1), shape))
    top_BKG = jnp.maximum(*tops)
    ours = jnp.exp(scores - top_BKG[..., None])
    theirs = jnp.exp(theirs - _by_prompt(top_BKG, shape)[..., None])
    total_BKG = jnp.sum(ours, axis=-1) + _by_row(jnp.sum(theirs, axis=-1), shape)
    out = _mixed(ours, v_BKSH) + _by_row(_mixed(theirs, prompts.v_PKWH), shape)
    return (out / total_BKG[..., None]).astype(q_BNH.dtype).reshape(batch, heads, -1)


def _scores(q_BKMH, k_BKHS, valid_BS):
    scores = jnp.einsum("BKMH,BKHS->BKMS", q_BKMH, k_BKHS, preferred_element_type=jnp.float32)
    return jnp.where(valid_BS[:, None, None], scores, MASKED)


def _mixed(weights_BKMS, v_BKSH):
    weights = weights_BKMS.astype(v_BKSH.dtype)
    return jnp.einsum("BKMS,BKSH->BKMH", weights, v_BKSH, preferred_element_type=jnp.float32)


def _by_prompt(x_BKG, shape: tuple[int, ...]):
    """[P * R, K, G, ...] -> [P, K, R * G, ...], with `shape` [P, R, K, G]."""
    apart = x_BKG.reshape(*shape, *x_BKG.shape[3:]).swapaxes(1, 2)
    return apart.reshape(*apart.shape[:2], -1, *x_BKG.shape[3:])


def _by_row(x_PKM, shape: tuple[int, ...]):
    """The inverse of `_by_prompt`."""
    prompts, rows, kv_heads, group = shape
    apart = x_PKM.reshape(prompts, kv_heads, rows, group, *x_PKM.shape[3:]).swapaxes(1, 2)
    return apart.reshape(-1, kv_heads, group, *x_PKM.shape[3:])

"""Causal grouped-query attention within segments, and attention of one new token over a cache.

Key `s` is visible to query `t` iff `s <= t` (by place in the row) and both lie in the same
non-zero segment. Softmax runs in float32. Rows of padding return finite garbage.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

MASKED = -1e30
QUERY_BLOCK = 128
MAX_BLOCKS = 16


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    impl: str = "auto",
) -> jax.Array:
    """Causal self-attention -> [B, T, N, H]; scale 1/sqrt(H); N a multiple of K.

    Args:
      impl: `splash` (TPU), `xla` (query blocks), `reference`, or `auto` by backend.

    Raises:
      ValueError: an unknown impl.
    """
    if impl == "auto":
        impl = "splash" if jax.default_backend() == "tpu" else "xla"
    if impl == "splash":
        from posttrain_jax.kernels.splash import attention_splash

        return attention_splash(q_BTNH, k_BTKH, v_BTKH, segments_BT)
    if impl == "xla":
        return attention_xla(q_BTNH, k_BTKH, v_BTKH, segments_BT)
    if impl == "reference":
        return attention_ref(q_BTNH, k_BTKH, v_BTKH, segments_BT)
    raise ValueError(f"attention impl {impl!r}: expected auto, splash, xla or reference")


def attention_ref(q_BTNH, k_BTKH, v_BTKH, segments_BT) -> jax.Array:
    """The plain reference: the whole [T, T] score matrix at once."""
    length = q_BTNH.shape[1]
    return _block(q_BTNH, k_BTKH, v_BTKH, segments_BT, segments_BT, 0, length)


def attention_xla(q_BTNH, k_BTKH, v_BTKH, segments_BT) -> jax.Array:
    """Query blocks of static size; block i reads only the keys that causality lets it see.

    Each block is rematerialised in the backward pass, so no [T, T] array is kept.
    """
    length = q_BTNH.shape[1]
    size = max(QUERY_BLOCK, -(-length // MAX_BLOCKS))
    if length <= size:
        return attention_ref(q_BTNH, k_BTKH, v_BTKH, segments_BT)
    out = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        block = jax.checkpoint(functools.partial(_block, start=start, stop=stop))
        out.append(
            block(
                q_BTNH[:, start:stop],
                k_BTKH[:, :stop],
                v_BTKH[:, :stop],
                segments_BT[:, start:stop],
                segments_BT[:, :stop],
            )
        )
    return jnp.concatenate(out, axis=1)


def _block(q_BTNH, k_BSKH, v_BSKH, q_segments_BT, k_segments_BS, start: int, stop: int):
    """Queries at places start..stop of the row against keys at places 0..S."""
    batch, length, heads, width = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, width) * width**-0.5
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k_BSKH, preferred_element_type=jnp.float32)
    causal_TS = jnp.arange(start, stop)[:, None] >= jnp.arange(k_BSKH.shape[1])[None, :]
    same_BTS = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
    visible = causal_TS & same_BTS & (k_segments_BS[:, None, :] != 0)
    scores = jnp.where(visible[:, None, None], scores, MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", probs, v_BSKH)
    return out.reshape(batch, length, heads, width)


def decode_attention(
    q_BNH: jax.Array, k_BKHS: jax.Array, v_BKSH: jax.Array, valid_BS: jax.Array
) -> jax.Array:
    """One new token a row over its cache -> [B, N, H].

    Keys lie transposed ([H, S]): the product with a single query then runs along memory.
    """
    batch, heads, width = q_BNH.shape
    kv_heads = k_BKHS.shape[1]
    q = q_BNH.reshape(batch, kv_heads, heads // kv_heads, width) * width**-0.5
    scores = jnp.einsum("BKGH,BKHS->BKGS", q, k_BKHS, preferred_element_type=jnp.float32)
    scores = jnp.where(valid_BS[:, None, None], scores, MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_BKSH.dtype)
    return jnp.einsum("BKGS,BKSH->BKGH", probs, v_BKSH).reshape(batch, heads, width)

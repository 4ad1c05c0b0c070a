"""Causal grouped-query attention within segments.

Key `s` is visible to query `t` iff `s <= t` (by place in the row), `t - s < window` where there is
a window, and both lie in the same segment. Values may be of another width than keys. Segment 0 is
padding: it sees only padding, itself included, so its output is finite, of no meaning, and carries
no gradient into real tokens. Softmax runs in float32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

SAVED = "attention"
"""The name, for rematerialisation policies, of what the backward pass needs of the forward."""
MASKED = -1e30
QUERY_BLOCK = 64
MAX_BLOCKS = 16
"""Query blocks are unrolled: at most so many, of at least QUERY_BLOCK places."""


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    scale: float | None = None,
    window: int = 0,
    impl: str = "auto",
) -> jax.Array:
    """Causal self-attention -> [B, T, N, H]; N a multiple of K.

    Args:
      scale: of the scores; default 1 / sqrt(H).
      window: places that a query sees, its own included; 0 is no bound.
      impl: `splash` (TPU), `xla` (query blocks), `reference`, or `auto` by backend.

    Raises:
      ValueError: an unknown impl.
    """
    if impl == "auto":
        impl = "splash" if jax.default_backend() == "tpu" else "xla"
    inputs = (q_BTNH, k_BTKH, v_BTKH, segments_BT)
    if impl == "splash":
        from posttrain_jax.kernels.splash import attention_splash

        return attention_splash(*inputs, scale=scale, window=window)
    if impl == "xla":
        return attention_xla(*inputs, scale=scale, window=window)
    if impl == "reference":
        return attention_ref(*inputs, scale=scale, window=window)
    raise ValueError(f"attention impl {impl!r}: expected auto, splash, xla or reference")


def attention_ref(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, *, scale: float | None = None, window: int = 0
) -> jax.Array:
    """The plain reference: the whole [T, T] score matrix at once, differentiated by JAX."""
    batch, length, heads, width = q_BTNH.shape
    kv_heads = k_BTKH.shape[2]
    q = q_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, width)
    q = q * (width**-0.5 if scale is None else scale)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k_BTKH, preferred_element_type=jnp.float32)
    visible = jnp.tril(segments_BT[:, :, None] == segments_BT[:, None, :])
    if window:
        visible = jnp.triu(visible, 1 - window)
    scores = jnp.where(visible[:, None, None], scores, MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_BTKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probs, v_BTKH).reshape(batch, length, heads, -1)


def attention_xla(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, *, scale: float | None = None, window: int = 0
) -> jax.Array:
    """Query blocks of static size; block i reads only the keys that some of its queries may see.

    Softmax is normalised after the product with the values, and the backward pass makes each
    block's probabilities again from its log-sum-exp (Dao 2023, arXiv 2307.08691, algorithms 1
    and 2, with all keys of a block at once), so no [T, T] array is kept.
    """
    length, width = q_BTNH.shape[1], q_BTNH.shape[3]
    size = max(QUERY_BLOCK, -(-length // MAX_BLOCKS))
    form = _Form(min(size, length), width**-0.5 if scale is None else scale, window)
    return _blocked(q_BTNH, k_BTKH, v_BTKH, segments_BT, form)


class _Form(NamedTuple):
    """What is static of a call of `_blocked`: queries a block, scale and window."""

    size: int
    scale: float
    window: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(q_BTNH, k_BTKH, v_BTKH, segments_BT, form: _Form):
    return _blocked_forward(q_BTNH, k_BTKH, v_BTKH, segments_BT, form)[0]


def _blocked_forward(q_BTNH, k_BTKH, v_BTKH, segments_BT, form: _Form):
    kv_heads = k_BTKH.shape[2]
    k_BKSH, v_BKSH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    outs, lses = [], []
    for first, start, stop in _spans(q_BTNH.shape[1], form):
        q = _rows(q_BTNH[:, start:stop], kv_heads) * form.scale
        k, v = k_BKSH[:, :, first:stop], v_BKSH[:, :, first:stop]
        scores = _scores(q, k, segments_BT, (first, start, stop), form.window)
        top = jnp.max(scores, axis=-1, keepdims=True)
        exp = jnp.exp(scores - top)
        total = jnp.sum(exp, axis=-1, keepdims=True)
        out = _einsum("BKRS,BKSH->BKRH", exp.astype(v_BKSH.dtype), v) / total
        outs.append(_unrows(out, stop - start).astype(q_BTNH.dtype))
        lses.append(top + jnp.log(total))
    out_BTNH = checkpoint_name(jnp.concatenate(outs, axis=1), SAVED)
    lses = [checkpoint_name(lse, SAVED) for lse in lses]
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, segments_BT, out_BTNH, lses)


def _blocked_backward(form: _Form, saved, grad_out_BTNH):
    q_BTNH, k_BTKH, v_BTKH, segments_BT, out_BTNH, lses = saved
    length, kv_heads = q_BTNH.shape[1], k_BTKH.shape[2]
    k_BKSH, v_BKSH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    grads_q, grad_k, grad_v = [], 0.0, 0.0
    for (first, start, stop), lse in zip(_spans(length, form), lses, strict=True):
        q, out, grad = (
            _rows(x[:, start:stop], kv_heads) for x in (q_BTNH, out_BTNH, grad_out_BTNH)
        )
        q = q * form.scale
        k, v = k_BKSH[:, :, first:stop], v_BKSH[:, :, first:stop]
        probs = jnp.exp(_scores(q, k, segments_BT, (first, start, stop), form.window) - lse)
        along = jnp.sum(grad.astype(jnp.float32) * out, axis=-1, keepdims=True)
        grad_scores = probs * (_einsum("BKRH,BKSH->BKRS", grad, v) - along)
        grad_scores = grad_scores.astype(q.dtype)
        grad_q = _einsum("BKRS,BKSH->BKRH", grad_scores, k) * form.scale
        grads_q.append(_unrows(grad_q, stop - start).astype(q.dtype))
        around = ((0, 0), (0, 0), (first, length - stop), (0, 0))
        grad_k += jnp.pad(_einsum("BKRS,BKRH->BKSH", grad_scores, q), around)
        grad_v += jnp.pad(_einsum("BKRS,BKRH->BKSH", probs.astype(grad.dtype), grad), around)
    grad_q = jnp.concatenate(grads_q, axis=1)
    grad_k, grad_v = (jnp.swapaxes(x, 1, 2).astype(k_BTKH.dtype) for x in (grad_k, grad_v))
    return grad_q, grad_k, grad_v, np.zeros(segments_BT.shape, jax.dtypes.float0)


_blocked.defvjp(_blocked_forward, _blocked_backward)

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _spans(length: int, form: _Form) -> list[tuple[int, int, int]]:
    """(first key, first query, end of both) of every block."""
    spans = []
    for start in range(0, length, form.size):
        first = max(0, start - form.window + 1) if form.window else 0
        spans.append((first, start, min(start + form.size, length)))
    return spans


def _rows(x_BTNH, kv_heads: int):
    """[B, T, K * G, H] -> [B, K, G * T, H]: what shares a kv head becomes one matrix."""
    batch, length, heads, width = x_BTNH.shape
    x = x_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, width)
    return x.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, width)


def _unrows(x_BKRH, length: int):
    """The inverse of `_rows`."""
    batch, kv_heads, _, width = x_BKRH.shape
    x = x_BKRH.reshape(batch, kv_heads, -1, length, width)
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, width)


def _scores(q_BKRH, k_BKSH, segments_BT, span: tuple[int, int, int], window: int):
    """Masked scores of the scaled queries of a block against its keys."""
    first, start, stop = span
    group = q_BKRH.shape[2] // (stop - start)
    scores = _einsum("BKRH,BKSH->BKRS", q_BKRH, k_BKSH)
    places_R1, places_S = jnp.tile(jnp.arange(start, stop), group)[:, None], jnp.arange(first, stop)
    visible_RS = places_R1 >= places_S
    if window:
        visible_RS &= places_R1 - places_S < window
    segments_BR = jnp.tile(segments_BT[:, start:stop], (1, group))
    same_BRS = segments_BR[:, :, None] == segments_BT[:, None, first:stop]
    return jnp.where((visible_RS & same_BRS)[:, None], scores, MASKED)

"""Log-probs of several candidate tokens at each place, and the likeliest tokens of each place.

  logp_tj = z_t[token_tj] - logsumexp(z_t)          z = hidden @ head / temperature

Chunked as `logprob.py` is: neither direction holds [B, T, V]. With g the cotangent of logp:
  dL/dz_v = sum_j g_j 1[v = token_j] - p_v sum_j g_j
The J cotangents of a place are added into its row of dz, one scatter a chunk. The likeliest tokens
have no gradient. Where the mesh splits the vocabulary each part finds its own candidates first, so
that only those travel.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.kernels.axes import BATCH_AXES, VOCAB_AXES, dividing_axes
from posttrain_jax.kernels.chunks import add_products, join, lay_out, split, tempered_logits

IMPLS = ("auto", "xla", "reference")


def logprobs_at(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    tokens_BTJ: jax.Array,
    temperature: float = 1.0,
    *,
    never: int | None = None,
    needed_BT: jax.Array | None = None,
    impl: str = "auto",
) -> jax.Array:
    """Log-prob of each candidate -> [B, T, J] in float32; differentiable in hidden and head.

    Args:
      tokens_BTJ: a token that stands there twice gets its log-prob, and its gradient, twice.
      temperature, never, needed_BT, impl: as in `token_logprobs`.

    Raises:
      ValueError: an unknown impl.
    """
    _check(impl, "logprobs_at")
    if impl == "reference":
        return logprobs_at_ref(
            hidden_BTD, head_VD, tokens_BTJ, temperature, never=never, needed_BT=needed_BT
        )
    layout = lay_out(tokens_BTJ.shape, head_VD.shape[0], needed_BT)
    out: Any = _chunked(
        layout.put(hidden_BTD), head_VD, layout.put(tokens_BTJ), jnp.float32(1.0 / temperature),
        layout.live, never, layout.chunks,
    )  # fmt: skip
    return layout.back(out, tokens_BTJ.shape[1])


def logprobs_at_ref(
    hidden_BTD, head_VD, tokens_BTJ, temperature=1.0, *, never=None, needed_BT=None
):
    """The plain reference: all logits at once, differentiated by JAX."""
    logits = tempered_logits(hidden_BTD, head_VD, 1.0 / temperature, never)
    logp_BTJ = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens_BTJ, axis=-1)
    return logp_BTJ if needed_BT is None else jnp.where(needed_BT[..., None], logp_BTJ, 0.0)


def top_logprobs(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    k: int,
    temperature: float = 1.0,
    *,
    never: int | None = None,
    needed_BT: jax.Array | None = None,
    impl: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """The k likeliest tokens of each place, the likeliest first, with their log-probs.

    Args:
      k: equals are taken in the order of their ids.
      temperature, never, needed_BT, impl: as in `token_logprobs`.

    Returns:
      int32 and float32 [B, T, k]; no gradient flows through them.

    Raises:
      ValueError: k is not in 1 ... V, or an unknown impl.
    """
    _check(impl, "top_logprobs")
    if not 1 <= k <= head_VD.shape[0]:
        raise ValueError(f"k={k}: expected 1 to {head_VD.shape[0]}, the vocabulary's size")
    hidden_BTD, head_VD = jax.lax.stop_gradient((hidden_BTD, head_VD))
    if impl == "reference":
        return top_logprobs_ref(
            hidden_BTD, head_VD, k, temperature, never=never, needed_BT=needed_BT
        )
    batch, length = hidden_BTD.shape[:2]
    layout = lay_out(hidden_BTD.shape, head_VD.shape[0], needed_BT)
    hidden = split(layout.put(hidden_BTD), layout.chunks)

    def one(chunk, results):
        logits = tempered_logits(hidden[chunk], head_VD, 1.0 / temperature, never)
        top, tokens = _largest(logits, k)
        found = tokens, top - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return tuple(r.at[chunk].set(f) for r, f in zip(results, found, strict=True))

    empty = tuple(jnp.zeros((*hidden.shape[:2], k), t) for t in (jnp.int32, jnp.float32))
    tokens, logp = jax.lax.fori_loop(0, layout.live, one, empty)
    return layout.back(join(tokens, batch), length), layout.back(join(logp, batch), length)


def top_logprobs_ref(hidden_BTD, head_VD, k, temperature=1.0, *, never=None, needed_BT=None):
    """The plain reference: all logits at once."""
    logits = tempered_logits(hidden_BTD, head_VD, 1.0 / temperature, never)
    logp_BTJ, tokens_BTJ = jax.lax.top_k(jax.nn.log_softmax(logits), k)
    if needed_BT is None:
        return tokens_BTJ, logp_BTJ
    asked = needed_BT[..., None]
    return jnp.where(asked, tokens_BTJ, 0), jnp.where(asked, logp_BTJ, 0.0)


def _check(impl: str, name: str) -> None:
    if impl not in IMPLS:
        raise ValueError(f"{name} impl {impl!r}: expected {', '.join(IMPLS[:2])} or {IMPLS[2]}")


def _largest(logits_RV, k: int):
    """The k largest logits of each row and their tokens; first within each part of the mesh."""
    rows, vocab = logits_RV.shape
    by_row, by_token = dividing_axes(BATCH_AXES, rows), dividing_axes(VOCAB_AXES, vocab)
    if not by_row and not by_token:
        return jax.lax.top_k(logits_RV, k)

    def local(logits):  # the partitioner would gather all logits for a `top_k`
        top, tokens = jax.lax.top_k(logits, min(k, logits.shape[1]))
        if not by_token:
            return top, tokens
        first = jax.lax.axis_index(by_token) * logits.shape[1]
        gather = functools.partial(jax.lax.all_gather, axis_name=by_token, axis=1, tiled=True)
        top, tokens = gather(top), gather(tokens + first)
        top, place = jax.lax.top_k(top, k)
        return top, jnp.take_along_axis(tokens, place, axis=1)

    # What was gathered is the same on all parts of the vocabulary, hence check_vma=False.
    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(
        local, in_specs=spec(by_row, by_token), out_specs=spec(by_row), check_vma=False
    )
    return mapped(logits_RV)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _chunked(hidden, head_VD, tokens, inverse_temperature, live, never, chunks):
    """Of the chunks of positions, the first `live`."""
    return _chunked_forward(hidden, head_VD, tokens, inverse_temperature, live, never, chunks)[0]


def _chunked_forward(hidden, head_VD, tokens, inverse_temperature, live, never, chunks):
    inputs = split(hidden, chunks), split(tokens, chunks)

    def one(chunk, results):
        hidden_RD, tokens_RJ = (x[chunk] for x in inputs)
        logits = tempered_logits(hidden_RD, head_VD, inverse_temperature, never)
        lse = jax.nn.logsumexp(logits, axis=-1)
        logp = jnp.take_along_axis(logits, tokens_RJ, axis=-1) - lse[:, None]
        return results[0].at[chunk].set(logp), results[1].at[chunk].set(lse)

    shape = inputs[1].shape
    zeros = jnp.zeros(shape, jnp.float32), jnp.zeros(shape[:2], jnp.float32)
    logp, lse = jax.lax.fori_loop(0, live, one, zeros)
    saved = (hidden, head_VD, tokens, inverse_temperature, live, lse)
    return join(logp, hidden.shape[0]), saved


def _chunked_backward(never, chunks, saved, cotangent):
    hidden, head_VD, tokens, inverse_temperature, live, lse = saved
    inputs = (split(hidden, chunks), split(tokens, chunks), lse, split(cotangent, chunks))

    def one(chunk, grads):
        hidden_RD, tokens_RJ, lse_R, g_RJ = (x[chunk] for x in inputs)
        logits = tempered_logits(hidden_RD, head_VD, inverse_temperature, never)
        dz = -jnp.exp(logits - lse_R[:, None]) * jnp.sum(g_RJ, axis=-1, keepdims=True)
        dz = dz.at[jnp.arange(dz.shape[0])[:, None], tokens_RJ].add(g_RJ)
        if never is not None:  # its logit is a constant
            dz = jnp.where(jnp.arange(head_VD.shape[0]) == never, 0.0, dz)
        return add_products(grads, chunk, dz * inverse_temperature, hidden_RD, head_VD)

    zeros = jnp.zeros(head_VD.shape[::-1], jnp.float32), jnp.zeros_like(inputs[0])
    grad_head_DV, grad_hidden = jax.lax.fori_loop(0, live, one, zeros)
    return (
        join(grad_hidden, hidden.shape[0]),
        grad_head_DV.T.astype(head_VD.dtype),
        np.zeros(tokens.shape, jax.dtypes.float0),
        jnp.zeros_like(inverse_temperature),
        np.zeros((), jax.dtypes.float0),
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)

"""Log-prob and entropy of given tokens from hidden states, without ever holding [B, T, V].

  logp_t    = z_t[target] - logsumexp(z_t)          z = hidden @ head / temperature
  entropy_t = logsumexp(z_t) - sum_v p_tv z_tv

Both directions run over chunks of positions; the backward pass makes each chunk's logits again.
With g, e the cotangents of logp and entropy:
  dL/dz_v = g (1[v = target] - p_v) - e p_v (log p_v + entropy)
The comparison with the target fuses into that expression: no one-hot, no scatter. Where the loss
is known to be a weighted sum of the log-probs, g is known beforehand: then the forward pass makes
the gradients too, and no logits are made again.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.kernels.chunks import add_products, join, lay_out, split, tempered_logits


def token_logprobs(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    temperature: float = 1.0,
    *,
    never: int | None = None,
    needed_BT: jax.Array | None = None,
    slope_BT: jax.Array | None = None,
    impl: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target and entropy of its distribution -> ([B, T], [B, T]) in float32.

    Args:
      temperature: divides the logits.
      never: a token id (the padding) that has probability 0.
      needed_BT: the positions that are asked for; the others' results are 0, and chunks of them
        cost nothing.
      slope_BT: the caller's promise that the loss's derivative by the log-probs is this, times one
        number, and that by the entropies 0. A broken promise gives NaN gradients.
      impl: `xla` (chunked), `reference`, or `auto`.

    Raises:
      ValueError: an unknown impl.
    """
    if impl not in ("auto", "xla", "reference"):
        raise ValueError(f"token_logprobs impl {impl!r}: expected auto, xla or reference")
    if impl == "reference":
        return token_logprobs_ref(
            hidden_BTD, head_VD, targets_BT, temperature, never=never, needed_BT=needed_BT
        )
    length = hidden_BTD.shape[1]
    layout = lay_out(targets_BT.shape, head_VD.shape[0], needed_BT)
    inverse = jnp.float32(1.0 / temperature)
    inputs = layout.put(hidden_BTD), head_VD, layout.put(targets_BT), inverse, layout.live
    if slope_BT is None:
        out: Any = _chunked(*inputs, never, layout.chunks)
    else:
        slope_BT = slope_BT if needed_BT is None else jnp.where(needed_BT, slope_BT, 0.0)
        out = _sloped(*inputs, layout.put(slope_BT), never, layout.chunks)
    return layout.back(out[0], length), layout.back(out[1], length)


def token_logprobs_ref(
    hidden_BTD, head_VD, targets_BT, temperature=1.0, *, never=None, needed_BT=None
):
    """The plain reference: all logits at once, differentiated by JAX."""
    logits = tempered_logits(hidden_BTD, head_VD, 1.0 / temperature, never)
    logp_BTV = jax.nn.log_softmax(logits)
    logp = jnp.take_along_axis(logp_BTV, targets_BT[..., None], axis=-1)[..., 0]
    probs = jnp.exp(logp_BTV)
    entropy = -jnp.sum(jnp.where(probs > 0, probs * logp_BTV, 0.0), axis=-1)
    if needed_BT is None:
        return logp, entropy
    return jnp.where(needed_BT, logp, 0.0), jnp.where(needed_BT, entropy, 0.0)


def _read(logits, targets_R):
    """Log-prob of the targets, entropy and logsumexp of rows of logits."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    exp = jnp.exp(logits - top)
    total = jnp.sum(exp, axis=-1)
    lse = jnp.log(total) + top[:, 0]
    mean_logit = jnp.sum(exp * logits, axis=-1) / total
    target = jnp.take_along_axis(logits, targets_R[:, None], axis=-1)[:, 0]
    return target - lse, lse - mean_logit, lse


def _slopes(logits, targets_R, lse_R, entropy_R, g_R, e_R):
    """The derivative by the logits, from those by log-prob and entropy."""
    logp = logits - lse_R[:, None]
    is_target = jnp.arange(logits.shape[-1]) == targets_R[:, None]
    slope = (g_R + e_R * entropy_R)[:, None] + e_R[:, None] * logp
    return jnp.where(is_target, g_R[:, None], 0.0) - jnp.exp(logp) * slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _chunked(hidden, head_VD, targets, inverse_temperature, live, never, chunks):
    """Of the chunks of positions, the first `live`."""
    return _chunked_forward(hidden, head_VD, targets, inverse_temperature, live, never, chunks)[0]


def _chunked_forward(hidden, head_VD, targets, inverse_temperature, live, never, chunks):
    inputs = split(hidden, chunks), split(targets, chunks)

    def one(chunk, results):
        hidden_RD, targets_R = (x[chunk] for x in inputs)
        found = _read(tempered_logits(hidden_RD, head_VD, inverse_temperature, never), targets_R)
        return tuple(r.at[chunk].set(f) for r, f in zip(results, found, strict=True))

    zeros = jnp.zeros(inputs[1].shape, jnp.float32)
    logp, entropy, lse = jax.lax.fori_loop(0, live, one, (zeros,) * 3)
    batch = hidden.shape[0]
    saved = (hidden, head_VD, targets, inverse_temperature, live, lse, entropy)
    return (join(logp, batch), join(entropy, batch)), saved


def _chunked_backward(never, chunks, saved, cotangents):
    hidden, head_VD, targets, inverse_temperature, live, lse, entropy = saved
    g, e = (split(c, chunks) for c in cotangents)
    inputs = (split(hidden, chunks), split(targets, chunks), lse, entropy, g, e)

    def one(chunk, grads):
        hidden_RD, targets_R, lse_R, entropy_R, g_R, e_R = (x[chunk] for x in inputs)
        logits = tempered_logits(hidden_RD, head_VD, inverse_temperature, never)
        dz = _slopes(logits, targets_R, lse_R, entropy_R, g_R, e_R) * inverse_temperature
        return add_products(grads, chunk, dz, hidden_RD, head_VD)

    zeros = jnp.zeros(head_VD.shape[::-1], jnp.float32), jnp.zeros_like(inputs[0])
    grad_head_DV, grad_hidden = jax.lax.fori_loop(0, live, one, zeros)
    return (
        join(grad_hidden, hidden.shape[0]),
        grad_head_DV.T.astype(head_VD.dtype),
        np.zeros(targets.shape, jax.dtypes.float0),
        jnp.zeros_like(inverse_temperature),
        np.zeros((), jax.dtypes.float0),
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _sloped(hidden, head_VD, targets, inverse_temperature, live, slope, never, chunks):
    """As `_chunked`, of which the loss's derivative is known up to a factor."""
    del slope
    return _chunked(hidden, head_VD, targets, inverse_temperature, live, never, chunks)


def _sloped_forward(hidden, head_VD, targets, inverse_temperature, live, slope, never, chunks):
    inputs = tuple(split(x, chunks) for x in (hidden, targets, slope))

    def one(chunk, carry):
        results, grads = carry
        hidden_RD, targets_R, g_R = (x[chunk] for x in inputs)
        logits = tempered_logits(hidden_RD, head_VD, inverse_temperature, never)
        logp, entropy, lse = _read(logits, targets_R)
        dz = _slopes(logits, targets_R, lse, entropy, g_R, jnp.zeros_like(g_R))
        results = tuple(r.at[chunk].set(f) for r, f in zip(results, (logp, entropy), strict=True))
        return results, add_products(grads, chunk, dz * inverse_temperature, hidden_RD, head_VD)

    zeros = jnp.zeros(inputs[1].shape, jnp.float32)
    grads = jnp.zeros(head_VD.shape[::-1], jnp.float32), jnp.zeros_like(inputs[0])
    found, (grad_head_DV, grad_hidden) = jax.lax.fori_loop(0, live, one, ((zeros, zeros), grads))
    batch = hidden.shape[0]
    grads = join(grad_hidden, batch), grad_head_DV.T.astype(head_VD.dtype)
    return tuple(join(x, batch) for x in found), (*grads, targets, inverse_temperature, slope)


def _sloped_backward(never, chunks, saved, cotangents):
    del never, chunks
    grad_hidden, grad_head_VD, targets, inverse_temperature, slope = saved
    g, e = cotangents
    factor = jnp.sum(g * slope) / jnp.maximum(jnp.sum(slope * slope), jnp.finfo(jnp.float32).tiny)
    near = jnp.abs(g - factor * slope) <= 1e-4 * jnp.max(jnp.abs(g))
    factor = jnp.where(jnp.all(near) & jnp.all(e == 0), factor, jnp.nan)
    return (
        (factor * grad_hidden).astype(grad_hidden.dtype),
        (factor * grad_head_VD).astype(grad_head_VD.dtype),
        np.zeros(targets.shape, jax.dtypes.float0),
        jnp.zeros_like(inverse_temperature),
        np.zeros((), jax.dtypes.float0),
        jnp.zeros_like(slope),
    )


_sloped.defvjp(_sloped_forward, _sloped_backward)

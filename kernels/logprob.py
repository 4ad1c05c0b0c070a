"""Log-prob and entropy of given tokens from hidden states, without ever holding [B, T, V].

  logp_t    = z_t[target] - logsumexp(z_t)          z = hidden @ head / temperature
  entropy_t = logsumexp(z_t) - sum_v p_tv z_tv

Both directions run over chunks of positions; the backward pass makes each chunk's logits again.
With g, e the cotangents of logp and entropy:
  dL/dz_v = g (1[v = target] - p_v) - e p_v (log p_v + entropy)
The comparison with the target fuses into that expression: no one-hot, no scatter.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

CHUNK_LOGITS = 1 << 23
"""Logits held at once, in elements (32 MB in float32)."""
NEVER = -1e30


def token_logprobs(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    temperature: float = 1.0,
    *,
    never: int | None = None,
    impl: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target and entropy of its distribution -> ([B, T], [B, T]) in float32.

    Args:
      temperature: divides the logits.
      never: a token id (the padding) that has probability 0.
      impl: `xla` (chunked), `reference`, or `auto`.

    Raises:
      ValueError: an unknown impl.
    """
    if impl not in ("auto", "xla", "reference"):
        raise ValueError(f"token_logprobs impl {impl!r}: expected auto, xla or reference")
    if impl == "reference":
        return token_logprobs_ref(hidden_BTD, head_VD, targets_BT, temperature, never=never)
    batch, length, _ = hidden_BTD.shape
    chunk = max(1, min(length, CHUNK_LOGITS // max(1, batch * head_VD.shape[0])))
    chunks = -(-length // chunk)
    chunk = -(-length // chunks)
    pad = chunks * chunk - length
    hidden = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets_BT, ((0, 0), (0, pad)))
    logp, entropy = _chunked(
        hidden, head_VD, targets, jnp.float32(1.0 / temperature), never, chunks
    )
    return logp[:, :length], entropy[:, :length]


def token_logprobs_ref(hidden_BTD, head_VD, targets_BT, temperature=1.0, *, never=None):
    """The plain reference: all logits at once, differentiated by JAX."""
    logits = _logits(hidden_BTD, head_VD, 1.0 / temperature, never)
    logp_BTV = jax.nn.log_softmax(logits)
    logp = jnp.take_along_axis(logp_BTV, targets_BT[..., None], axis=-1)[..., 0]
    probs = jnp.exp(logp_BTV)
    return logp, -jnp.sum(jnp.where(probs > 0, probs * logp_BTV, 0.0), axis=-1)


def _logits(hidden, head_VD, inverse_temperature, never):
    logits = jnp.einsum("BTD,VD->BTV", hidden, head_VD, preferred_element_type=jnp.float32)
    logits = logits * inverse_temperature
    if never is not None:
        logits = jnp.where(jnp.arange(head_VD.shape[0]) == never, NEVER, logits)
    return logits


def _split(x, chunks: int):
    """[B, chunks * C, ...] -> [chunks, B, C, ...]."""
    batch, length = x.shape[:2]
    return jnp.moveaxis(x.reshape(batch, chunks, length // chunks, *x.shape[2:]), 1, 0)


def _join(x):
    """[chunks, B, C, ...] -> [B, chunks * C, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(hidden, head_VD, targets, inverse_temperature, never, chunks):
    return _chunked_forward(hidden, head_VD, targets, inverse_temperature, never, chunks)[0]


def _chunked_forward(hidden, head_VD, targets, inverse_temperature, never, chunks):
    def one(_, inputs):
        hidden_c, targets_c = inputs
        logits = _logits(hidden_c, head_VD, inverse_temperature, never)
        top = jnp.max(logits, axis=-1, keepdims=True)
        exp = jnp.exp(logits - top)
        total = jnp.sum(exp, axis=-1)
        lse = jnp.log(total) + top[..., 0]
        mean_logit = jnp.sum(exp * logits, axis=-1) / total
        target = jnp.take_along_axis(logits, targets_c[..., None], axis=-1)[..., 0]
        return None, (target - lse, lse - mean_logit, lse)

    _, (logp, entropy, lse) = jax.lax.scan(one, None, (_split(hidden, chunks), _split(targets, chunks)))
    saved = (hidden, head_VD, targets, inverse_temperature, lse, entropy)
    return (_join(logp), _join(entropy)), saved


def _chunked_backward(never, chunks, saved, cotangents):
    hidden, head_VD, targets, inverse_temperature, lse, entropy = saved
    g, e = (_split(c, chunks) for c in cotangents)

    def one(grad_head, inputs):
        hidden_c, targets_c, lse_c, entropy_c, g_c, e_c = inputs
        logits = _logits(hidden_c, head_VD, inverse_temperature, never)
        logp = logits - lse_c[..., None]
        probs = jnp.exp(logp)
        is_target = jnp.arange(head_VD.shape[0]) == targets_c[..., None]
        spread = jnp.where(probs > 0, probs * (logp + entropy_c[..., None]), 0.0)
        dz = g_c[..., None] * (is_target - probs) - e_c[..., None] * spread
        dz = (dz * inverse_temperature).astype(hidden.dtype)
        grad_hidden = jnp.einsum("BTV,VD->BTD", dz, head_VD)
        return grad_head + jnp.einsum("BTV,BTD->VD", dz, hidden_c), grad_hidden

    inputs = (_split(hidden, chunks), _split(targets, chunks), lse, entropy, g, e)
    grad_head, grad_hidden = jax.lax.scan(one, jnp.zeros_like(head_VD), inputs)
    no_grad = np.zeros(targets.shape, jax.dtypes.float0)
    return _join(grad_hidden), grad_head, no_grad, jnp.zeros_like(inverse_temperature)


_chunked.defvjp(_chunked_forward, _chunked_backward)

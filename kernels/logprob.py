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
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.kernels.axes import BATCH_AXES, split_axes

CHUNKS = {"cpu": (1 << 19, 256)}
OTHER_CHUNKS = (1 << 23, 1024)
"""Backend -> logits held at once on one device, but no fewer than so many positions.

On CPU the logits (2 MB in float32) then stay in the cache: with a vocabulary of 512 forward and
backward took 0.6 times as long as with 32 MB. The least number of positions pays for reading the
head and its gradient once a chunk; 1024 keep a TPU's matrix unit, not its memory, the bound.
"""
NEVER = -1e30


def token_logprobs(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    temperature: float = 1.0,
    *,
    never: int | None = None,
    needed_BT: jax.Array | None = None,
    impl: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target and entropy of its distribution -> ([B, T], [B, T]) in float32.

    Args:
      temperature: divides the logits.
      never: a token id (the padding) that has probability 0.
      needed_BT: the positions that are asked for; the others' results are 0, and chunks of them
        cost nothing.
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
    chunks = _count_chunks(*targets_BT.shape, head_VD.shape[0])
    if needed_BT is None:
        order_BT, most = None, jnp.int32(length)
    else:  # each row's needed positions first
        order_BT = jnp.argsort(~needed_BT, axis=1, stable=True)
        most = jnp.max(jnp.sum(needed_BT, axis=1, dtype=jnp.int32))
        hidden_BTD = jnp.take_along_axis(hidden_BTD, order_BT[..., None], axis=1)
        targets_BT = jnp.take_along_axis(targets_BT, order_BT, axis=1)
    pad = -length % chunks
    hidden = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets_BT, ((0, 0), (0, pad)))
    columns = (length + pad) // chunks
    live = (most + columns - 1) // columns
    inverse = jnp.float32(1.0 / temperature)
    out: Any = _chunked(hidden, head_VD, targets, inverse, live, never, chunks)
    found = out[0][:, :length], out[1][:, :length]
    if needed_BT is None:
        return found
    back = jnp.argsort(order_BT, axis=1)
    each = (jnp.take_along_axis(x, back, axis=1) for x in found)
    logp, entropy = (jnp.where(needed_BT, x, 0.0) for x in each)
    return logp, entropy


def token_logprobs_ref(
    hidden_BTD, head_VD, targets_BT, temperature=1.0, *, never=None, needed_BT=None
):
    """The plain reference: all logits at once, differentiated by JAX."""
    logits = _logits(hidden_BTD, head_VD, 1.0 / temperature, never)
    logp_BTV = jax.nn.log_softmax(logits)
    logp = jnp.take_along_axis(logp_BTV, targets_BT[..., None], axis=-1)[..., 0]
    probs = jnp.exp(logp_BTV)
    entropy = -jnp.sum(jnp.where(probs > 0, probs * logp_BTV, 0.0), axis=-1)
    if needed_BT is None:
        return logp, entropy
    return jnp.where(needed_BT, logp, 0.0), jnp.where(needed_BT, entropy, 0.0)


def _count_chunks(batch: int, length: int, vocab: int) -> int:
    """How many chunks of whole columns [B, C] of positions."""
    held, least = CHUNKS.get(jax.default_backend(), OTHER_CHUNKS)
    devices = math.prod(split_axes(BATCH_AXES).values())
    columns = max(held // vocab, least) * devices // batch
    return -(-length // max(1, min(length, columns)))


def _logits(hidden_RD, head_VD, inverse_temperature, never):
    """Tempered logits [..., V] in float32."""
    logits = jnp.einsum("...D,VD->...V", hidden_RD, head_VD, preferred_element_type=jnp.float32)
    logits = logits * inverse_temperature
    if never is not None:
        logits = jnp.where(jnp.arange(head_VD.shape[0]) == never, NEVER, logits)
    return logits


def _split(x, chunks: int):
    """[B, chunks * C, ...] -> [chunks, B * C, ...]."""
    batch, length = x.shape[:2]
    x = jnp.moveaxis(x.reshape(batch, chunks, length // chunks, *x.shape[2:]), 1, 0)
    return x.reshape(chunks, -1, *x.shape[3:])


def _join(x, batch: int):
    """[chunks, B * C, ...] -> [B, chunks * C, ...]."""
    x = jnp.moveaxis(x.reshape(x.shape[0], batch, -1, *x.shape[2:]), 0, 1)
    return x.reshape(batch, -1, *x.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _chunked(hidden, head_VD, targets, inverse_temperature, live, never, chunks):
    """Of the chunks of positions, the first `live`."""
    return _chunked_forward(hidden, head_VD, targets, inverse_temperature, live, never, chunks)[0]


def _chunked_forward(hidden, head_VD, targets, inverse_temperature, live, never, chunks):
    inputs = _split(hidden, chunks), _split(targets, chunks)

    def one(chunk, results):
        hidden_RD, targets_R = (x[chunk] for x in inputs)
        logits = _logits(hidden_RD, head_VD, inverse_temperature, never)
        top = jnp.max(logits, axis=-1, keepdims=True)
        exp = jnp.exp(logits - top)
        total = jnp.sum(exp, axis=-1)
        lse = jnp.log(total) + top[:, 0]
        mean_logit = jnp.sum(exp * logits, axis=-1) / total
        target = jnp.take_along_axis(logits, targets_R[:, None], axis=-1)[:, 0]
        found = (target - lse, lse - mean_logit, lse)
        return tuple(r.at[chunk].set(f) for r, f in zip(results, found, strict=True))

    zeros = jnp.zeros(inputs[1].shape, jnp.float32)
    logp, entropy, lse = jax.lax.fori_loop(0, live, one, (zeros,) * 3)
    batch = hidden.shape[0]
    saved = (hidden, head_VD, targets, inverse_temperature, live, lse, entropy)
    return (_join(logp, batch), _join(entropy, batch)), saved


def _chunked_backward(never, chunks, saved, cotangents):
    hidden, head_VD, targets, inverse_temperature, live, lse, entropy = saved
    g, e = (_split(c, chunks) for c in cotangents)
    inputs = (_split(hidden, chunks), _split(targets, chunks), lse, entropy, g, e)

    def one(chunk, grads):
        grad_head_DV, grad_hidden = grads
        hidden_RD, targets_R, lse_R, entropy_R, g_R, e_R = (x[chunk] for x in inputs)
        logits = _logits(hidden_RD, head_VD, inverse_temperature, never)
        logp = logits - lse_R[:, None]
        is_target = jnp.arange(head_VD.shape[0]) == targets_R[:, None]
        slope = (g_R + e_R * entropy_R)[:, None] + e_R[:, None] * logp
        dz = jnp.where(is_target, g_R[:, None], 0.0) - jnp.exp(logp) * slope
        dz = (dz * inverse_temperature).astype(hidden.dtype)
        # [D, V] and not [V, D]: the larger operand is then read as it lies in memory.
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        grad_head_DV += product("RD,RV->DV", hidden_RD, dz)
        grad_hidden_RD = product("RV,VD->RD", dz, head_VD).astype(hidden.dtype)
        return grad_head_DV, grad_hidden.at[chunk].set(grad_hidden_RD)

    zeros = jnp.zeros(head_VD.shape[::-1], jnp.float32), jnp.zeros_like(inputs[0])
    grad_head_DV, grad_hidden = jax.lax.fori_loop(0, live, one, zeros)
    return (
        _join(grad_hidden, hidden.shape[0]),
        grad_head_DV.T.astype(head_VD.dtype),
        np.zeros(targets.shape, jax.dtypes.float0),
        jnp.zeros_like(inverse_temperature),
        np.zeros((), jax.dtypes.float0),
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)

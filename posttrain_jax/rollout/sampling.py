"""The rules that turn logits into a token: temperature, top-k, top-p, min-p, a race of tokens."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30


class Sampling(NamedTuple):
    """How to sample; hashable, so a static argument of `jit`.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the fewest most likely tokens whose probability reaches p (Holtzman et al. 2019,
        arXiv 1904.09751).
      min_p: keep tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024,
        arXiv 2407.01082).
      stop: token ids that end a sequence.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[int, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether some tokens can't be sampled, so that log-probs differ from the model's."""
        return bool(self.top_k) or self.top_p < 1.0 or self.min_p > 0.0


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits of the sampling distribution: tempered, excluded tokens at -1e30.

    The filters apply in the order top-k, top-p, min-p, each to what the one before left.
    """
    logits = logits_BV / (sampling.temperature or 1.0)
    if sampling.top_k:
        smallest = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < smallest, NEVER, logits)
    if sampling.top_p < 1.0:
        falling = -jnp.sort(-logits, axis=-1)
        probs = jax.nn.softmax(falling, axis=-1)
        kept = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p
        smallest = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, NEVER, logits)
    if sampling.min_p > 0.0:
        floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits < floor, NEVER, logits)
    return logits


def row_keys(key: jax.Array, uids_B: jax.Array, positions_B: jax.Array) -> jax.Array:
    """One key a row from (seed, sequence uid, position): never from the slot or the batch."""
    return jax.vmap(lambda u, p: jax.random.fold_in(jax.random.fold_in(key, u), p))(
        uids_B, positions_B
    )


def first_largest(x_BV: jax.Array) -> jax.Array:
    """`argmax` of each row: the place of its largest value, the first of equals -> int32 [B].

    In two reductions of single numbers: XLA on CPU reduces argmax's pairs one at a time, eight
    times slower.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, x_BV.shape, 1)
    largest = jnp.max(x_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(x_BV == largest, places, x_BV.shape[1] - 1), axis=-1)


def _mixed(x: jax.Array) -> jax.Array:
    """uint32 -> uint32, one to one; each bit of `x` turns half of the others.

    The constants are lowbias32's (Wellons 2018, nullprogram.com/blog/2018/07/31).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def waits(keys_B: jax.Array, size: int) -> jax.Array:
    """Exponential waiting times of rate 1 [B, size], from a row's key and the place alone.

    A hash of (key, place) in place of `jax.random`: a third of its time on CPU, where noise over a
    vocabulary costs as much as a layer. 32 bits, so that a wait may be as short as 1e-10.
    """
    words = jax.random.key_data(keys_B)[:, :2]
    places = jax.lax.broadcasted_iota(jnp.uint32, (words.shape[0], size), 1)
    apart = places * jnp.uint32(0x9E3779B9)  # neighbours far from each other: 2^32 / golden ratio
    bits = _mixed(_mixed(apart + words[:, :1]) ^ words[:, 1:])
    return -jnp.log1p(-(bits.astype(jnp.float32) + 0.5) * 2.0**-32)


def sample_token(
    logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sample one token a row.

    Tokens race: the shortest of `waits / probability` is theirs with just that probability. It is
    Gumbel argmax (Maddison et al. 2014, arXiv 1411.0030) with one logarithm less. No sum over the
    vocabulary decides, so that another order of summation gives the same token.

    Returns:
      token [B], its log-prob under the sampling distribution, and under the untempered model.
      Greedy tokens have sampling log-prob 0.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if sampling.temperature == 0:
        token_B = first_largest(logits_BV)
        return token_B, jnp.zeros(token_B.shape, jnp.float32), _logp(logits_BV, token_B)
    allowed_BV = filter_logits(logits_BV, sampling)
    weights_BV = jnp.exp(allowed_BV - jnp.max(allowed_BV, axis=-1, keepdims=True))
    token_B = first_largest(weights_BV / waits(keys_B, allowed_BV.shape[1]))
    return token_B, _logp(allowed_BV, token_B), _logp(logits_BV, token_B)


def _logp(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    picked_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return picked_B - jax.nn.logsumexp(logits_BV, axis=-1)

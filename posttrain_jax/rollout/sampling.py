"""The rules that turn logits into a token: temperature, top-k, top-p, min-p, Gumbel argmax."""

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


def sample_token(
    logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sample one token a row by Gumbel argmax.

    Returns:
      token [B], its log-prob under the sampling distribution, and under the untempered model.
      Greedy tokens have sampling log-prob 0.
    """
    model_logp = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
    if sampling.temperature == 0:
        token = first_largest(logits_BV)
        behaviour = jnp.zeros(token.shape, jnp.float32)
    else:
        logits = filter_logits(logits_BV.astype(jnp.float32), sampling)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys_B)
        token = first_largest(logits + noise)
        logp = jax.nn.log_softmax(logits)
        behaviour = jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
    return token, behaviour, jnp.take_along_axis(model_logp, token[:, None], axis=-1)[:, 0]

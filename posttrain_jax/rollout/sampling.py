"""The rules that turn logits into a token: temperature, top-k, top-p, min-p, a race of tokens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.rollout.forcing import Thinking, check_thinking

NEVER = -1e30


class Sampling(NamedTuple):
    """How to sample; hashable, so a static argument of `jit`. Beyond the first four see `draw.py`.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the fewest most likely tokens whose probability reaches p (Holtzman et al. 2019,
        arXiv 1904.09751).
      min_p: keep tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024,
        arXiv 2407.01082).
      stop: token ids that end a sequence.
      repetition_penalty, presence_penalty, frequency_penalty: see `penalties.py`; 1, 0 and 0 are
        none.
      logit_bias: pairs (token id, what is added to its logit).
      min_new: tokens of a response before which nothing that ends it can be sampled.
      stop_strings: texts that end a sequence, wherever they come to stand in it.
      call_strings: texts after which the host is asked what comes next, in the queue.
      top_logprobs: how many of the model's likeliest tokens are told at every place.
      thinking: what is forced while the model thinks; see `forcing.py`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new: int = 0
    stop_strings: tuple[str, ...] = ()
    call_strings: tuple[str, ...] = ()
    top_logprobs: int = 0
    thinking: Thinking | None = None

    @property
    def truncated(self) -> bool:
        """Whether log-probs under the sampling distribution are not the tempered model's.

        Some tokens can't be sampled, or are more or less likely than the model has them.
        """
        penalised = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return (
            self.temperature == 0 or bool(self.top_k) or self.top_p < 1.0 or self.min_p > 0.0
            or penalised != (1.0, 0.0, 0.0) or bool(self.logit_bias) or self.min_new > 0
            or self.thinking is not None
        )  # fmt: skip


RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, math.inf, "a number from 0 (greedy) on"),
    "top_k": (0, math.inf, "a whole number from 0 (all tokens) on"),
    "top_p": (1e-9, 1.0, "a number above 0, at most 1 (all tokens)"),
    "min_p": (0.0, 1.0, "a number from 0 (all tokens) to 1"),
    "repetition_penalty": (1e-9, math.inf, "a number above 0 (1 is none)"),
    "presence_penalty": (-math.inf, math.inf, "a finite number (0 is none)"),
    "frequency_penalty": (-math.inf, math.inf, "a finite number (0 is none)"),
    "min_new": (0, math.inf, "a whole number from 0 on"),
}
"""Least and greatest value of each setting, and both in words; of whole numbers where the least is
written as one."""


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """Refuse settings that mean nothing.

    Raises:
      ValueError: a number out of range, a token id that the model has not, strings that are none;
        the setting, what it may be and what it is.
    """
    for name, (least, greatest, meaning) in RANGES.items():
        value = getattr(sampling, name)
        whole = not isinstance(least, int) or value == math.floor(value)
        if not (math.isfinite(value) and least <= value <= greatest and whole):
            raise ValueError(f"{name}={value}: expected {meaning}")
    if not 0 <= sampling.top_logprobs <= vocab_size:
        raise ValueError(f"top_logprobs={sampling.top_logprobs}: expected 0 to {vocab_size} tokens")
    if isinstance(sampling.stop_strings, str):
        raise ValueError(f"stop_strings={sampling.stop_strings!r}: expected a tuple of texts")
    biased = [i for i, _ in sampling.logit_bias]
    for name, ids in (("stop", sampling.stop), ("logit_bias", biased)):
        outside = [i for i in ids if not 0 <= i < vocab_size]
        if outside:
            raise ValueError(
                f"{name}: expected token ids from 0 to {vocab_size - 1}, got {outside}"
            )
    if len(set(biased)) < len(biased):
        raise ValueError(f"logit_bias: expected each token once, got {sampling.logit_bias}")
    if not all(bias < math.inf for _, bias in sampling.logit_bias):  # nan is not, either
        raise ValueError(f"logit_bias: expected numbers or -inf, got {sampling.logit_bias}")
    if sampling.thinking is not None:
        check_thinking(sampling.thinking, vocab_size)


def used(value: Any, neutral: float) -> bool:
    """Whether a setting does anything: it is given row by row, or is not the neutral number."""
    return not isinstance(value, (int, float)) or value != neutral


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits of the sampling distribution: tempered, excluded tokens at -1e30.

    The filters apply in the order top-k, top-p, min-p, each to what the one before left.

    Args:
      sampling: its numbers may be arrays [B, 1], for rows of their own (`row_settings.py`).
    """
    temperature, falling = sampling.temperature, None
    if isinstance(temperature, jax.Array):
        temperature = jnp.where(temperature == 0, 1.0, temperature)
    logits = logits_BV / (temperature if used(temperature, 0.0) else 1.0)
    if isinstance(sampling.top_k, jax.Array):
        falling = -jnp.sort(-logits, axis=-1)
        last_B1 = jnp.clip(sampling.top_k, 1, logits.shape[-1]) - 1
        smallest = jnp.take_along_axis(falling, last_B1, axis=-1)
        smallest = jnp.where(sampling.top_k > 0, smallest, -jnp.inf)
        logits, falling = (jnp.where(x < smallest, NEVER, x) for x in (logits, falling))
    elif sampling.top_k:
        smallest = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < smallest, NEVER, logits)
    if used(sampling.top_p, 1.0):
        falling = -jnp.sort(-logits, axis=-1) if falling is None else falling
        probs = jax.nn.softmax(falling, axis=-1)
        kept = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p
        if isinstance(sampling.top_p, jax.Array):
            kept |= sampling.top_p >= 1.0  # the sum may round to 1 before the last token
        smallest = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, NEVER, logits)
    if used(sampling.min_p, 0.0):
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


def pick(
    logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """A token a row and its log-prob under the sampling distribution, of float32 logits.

    Tokens race: the shortest of `waits / probability` is theirs with just that probability. It is
    Gumbel argmax (Maddison et al. 2014, arXiv 1411.0030) with one logarithm less. No sum over the
    vocabulary decides, so that another order of summation gives the same token.

    Args:
      sampling: its numbers may be arrays [B, 1]; rows of temperature 0 are greedy.
    """
    temperature: Any = sampling.temperature
    by_row = isinstance(temperature, jax.Array)
    if not by_row and temperature == 0:
        token_B = first_largest(logits_BV)
        return token_B, jnp.zeros(token_B.shape, jnp.float32)
    allowed_BV = filter_logits(logits_BV, sampling)
    weights_BV = jnp.exp(allowed_BV - jnp.max(allowed_BV, axis=-1, keepdims=True))
    token_B = first_largest(weights_BV / waits(keys_B, allowed_BV.shape[1]))
    if by_row:
        greedy_B = temperature[:, 0] == 0
        token_B = jnp.where(greedy_B, first_largest(logits_BV), token_B)
        return token_B, jnp.where(greedy_B, 0.0, token_logp(allowed_BV, token_B))
    return token_B, token_logp(allowed_BV, token_B)


def token_logp(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """The log-prob of one token a row under the softmax of the logits -> float32 [B]."""
    picked_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return picked_B - jax.nn.logsumexp(logits_BV, axis=-1)

"""Penalties on tokens that a sequence has already, and what has to be counted for them.

Repetition (Keskar et al. 2019, arXiv 1909.05858, section 4.1, as transformers'
RepetitionPenaltyLogitsProcessor): the logit of a token that stands in prompt or response is divided
by the penalty where it is positive and multiplied by it where not. Presence and frequency (OpenAI's
API reference, "Advanced usage"; vLLM's too): of tokens of the response alone, c times there, the
logit is lowered by `presence * (c > 0) + frequency * c`. In this order, before the temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array
from posttrain_jax.rollout.sampling import Sampling, used


class Counts(NamedTuple):
    """What the sampler carries; None where no penalty needs it.

    Attributes:
      seen_BV: whether a token stands in the prompt or the response.
      count_BV: int32, how often it stands in the response.
    """

    seen_BV: Array | None = None
    count_BV: Array | None = None


def start_counts(
    settings: Sampling, batch: int, vocab_size: int, prompt_BT: Array | None, mask_BT: Array | None
) -> Counts:
    """The counts before the first token; `mask_BT` is False on padding.

    Raises:
      ValueError: the repetition penalty is used, and there is no prompt.
    """
    counts = Counts()
    if used(settings.presence_penalty, 0.0) or used(settings.frequency_penalty, 0.0):
        counts = counts._replace(count_BV=jnp.zeros((batch, vocab_size), jnp.int32))
    if used(settings.repetition_penalty, 1.0):
        if prompt_BT is None or mask_BT is None:
            raise ValueError(
                "repetition_penalty: expected the prompts, whose tokens count, and their mask, got "
                "none: start(..., prompt_BT=, mask_BT=)"
            )
        none_BV = jnp.zeros((batch, vocab_size), bool)
        enter = jax.vmap(lambda seen_V, prompt_T, mask_T: seen_V.at[prompt_T].max(mask_T))
        counts = counts._replace(seen_BV=enter(none_BV, prompt_BT, mask_BT.astype(bool)))
    return counts


def count(counts: Counts, token_B: Array) -> Counts:
    """The counts with one more token a row; by `vmap`, so that rows may live on several devices."""
    seen_BV, count_BV = counts
    if seen_BV is not None:
        seen_BV = jax.vmap(lambda seen_V, token: seen_V.at[token].set(True))(seen_BV, token_B)
    if count_BV is not None:
        count_BV = jax.vmap(lambda count_V, token: count_V.at[token].add(1))(count_BV, token_B)
    return Counts(seen_BV, count_BV)


def penalise(logits_BV: Array, counts: Counts, settings: Sampling) -> Array:
    """The logits after the penalties; numbers of `settings` may be arrays [B, 1]."""
    seen_BV, count_BV = counts
    if seen_BV is not None:
        factor = settings.repetition_penalty
        lowered = jnp.where(logits_BV < 0, logits_BV * factor, logits_BV / factor)
        logits_BV = jnp.where(seen_BV, lowered, logits_BV)
    if count_BV is not None:
        logits_BV = logits_BV - settings.frequency_penalty * count_BV
        logits_BV = logits_BV - settings.presence_penalty * (count_BV > 0)
    return logits_BV

"""A stage's settings of sampling, and what becomes of them."""

from __future__ import annotations

from typing import Any

from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.rollout.forcing import QWEN3_END, Thinking, make_thinking
from posttrain_jax.rollout.sampling import Sampling, check_sampling


def open_sampling(config: Any, tokenizer: Tokenizer) -> Sampling:
    """The `Sampling` of a stage with the settings of stages/_sampling.py.

    Raises:
      ValueError: a setting that means nothing, or that the tokenizer can't follow.
    """
    more = config.sampling
    sampling = Sampling(
        config.temperature, config.top_k, config.top_p, config.min_p,
        repetition_penalty=more.repetition_penalty, presence_penalty=more.presence_penalty,
        frequency_penalty=more.frequency_penalty,
        logit_bias=tuple((int(token), float(bias)) for token, bias in more.logit_bias),
        min_new=more.min_new, stop_strings=tuple(more.stop_strings),
        thinking=_thinking(more.thinking, tokenizer),
    )  # fmt: skip
    check_sampling(sampling, tokenizer.vocab_size)
    return sampling


def _thinking(config: Any, tokenizer: Tokenizer) -> Thinking | None:
    if config.budget < 0 and not config.waits and not config.min_tokens:
        return None
    budget = None if config.budget < 0 else config.budget
    given = {**config.to_dict(), "budget": budget, "end": config.end or QWEN3_END}
    return make_thinking(tokenizer, **given)

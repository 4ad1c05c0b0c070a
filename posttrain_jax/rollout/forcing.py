"""Tokens that are put in place of sampled ones: prefixes, and how long a model thinks.

Budget forcing (Muennighoff et al. 2025, arXiv 2501.19393, section 3.1): an end of thinking that
comes too early is replaced by "Wait"; one that doesn't come is appended. The thinking budget of
Qwen3 (arXiv 2505.09388, section 4.3) appends a sentence with it.

A row is thinking from its first token until the text that closes it stands in its response. Tokens
that were not sampled from the policy say nothing about it: their behaviour log-prob is 0 (they had
probability one), and they must not enter a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from posttrain_jax.api import Array
from posttrain_jax.data.inserted import encode_inner
from posttrain_jax.data.token_automaton import FOUND, START, TokenAutomaton
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.rollout.stop_strings import advance, completing

QWEN3_END = (
    "Considering the limited time by the user, I have to give the solution based on the thinking "
    "directly now.\n</think>\n\n"
)
"""What Qwen3 is stopped with (arXiv 2505.09388, section 4.3; the report prints a full stop after
the tag)."""


class Thinking(NamedTuple):
    """What is forced while a row thinks; hashable, static. `make_thinking` writes the tokens.

    Attributes:
      close: the text that ends thinking.
      budget: tokens of thinking after which `end` is forced; None: only rows with one of their own
        (`RowSettings.thinking_budget`) have a budget. A forced prefix doesn't count.
      end: token ids; the text should contain `close`. The row is not thinking from then on.
      waits: how often the end of thinking, or of the sequence, is replaced by `wait`.
      wait: token ids.
      min_tokens: tokens of thinking before which it doesn't end: the end is replaced by `wait`, as
        often as it comes; where `wait` is empty, it can't be sampled.
    """

    close: str = "</think>"
    budget: int | None = None
    end: tuple[int, ...] = ()
    waits: int = 0
    wait: tuple[int, ...] = ()
    min_tokens: int = 0


class Thought(NamedTuple):
    """How far each row has thought.

    Attributes:
      open_B: whether it is thinking.
      tokens_B: int32, how many tokens it has thought.
      waited_B: int32, how often its end was put off.
      close_B: int32, state of the automaton that finds `close`.
    """

    open_B: Array
    tokens_B: Array
    waited_B: Array
    close_B: Array


class Forced(NamedTuple):
    """What the sampler carries.

    Attributes:
      queue_BQ: int32, the tokens that come next, -1 after them.
      thought: None without `Thinking`.
    """

    queue_BQ: Array
    thought: Thought | None = None


def make_thinking(
    tokenizer: Tokenizer,
    *,
    close: str = "</think>",
    budget: int | None = None,
    end: str = QWEN3_END,
    waits: int = 0,
    wait: str = "Wait",
    min_tokens: int = 0,
) -> Thinking:
    """`Thinking` from texts.

    Raises:
      ValueError: the end of thinking is to be replaced or barred, but is no token by itself: it is
        known for one only at its last token.
    """
    if (waits or min_tokens) and len(encode_inner(tokenizer, close)) != 1:
        raise ValueError(
            f"waits={waits}, min_tokens={min_tokens}: expected close={close!r} to be one token, so "
            f"that something can take its place, got {len(encode_inner(tokenizer, close))} tokens"
        )
    inner = lambda text: tuple(encode_inner(tokenizer, text))  # noqa: E731
    return Thinking(close, budget, inner(end), waits, inner(wait), min_tokens)


def check_thinking(thinking: Thinking, vocab_size: int) -> None:
    """Refuse settings that mean nothing.

    Raises:
      ValueError: the setting, what it may be and what it is.
    """
    budget, least = thinking.budget, thinking.min_tokens
    if budget is not None and budget < 0:
        raise ValueError(f"thinking.budget={budget}: expected 0 or more tokens, or None")
    if thinking.waits < 0 or least < 0:
        raise ValueError(
            f"thinking.waits={thinking.waits}, thinking.min_tokens={least}: expected 0 or more"
        )
    if budget is not None and least > budget:
        raise ValueError(f"thinking.min_tokens={least}: expected at most thinking.budget={budget}")
    if budget is not None and not thinking.end:
        raise ValueError(f"thinking.budget={budget}: expected the tokens of thinking.end, got none")
    if thinking.waits and not thinking.wait:
        raise ValueError(
            f"thinking.waits={thinking.waits}: expected the tokens of thinking.wait, got none"
        )
    outside = [i for i in (*thinking.end, *thinking.wait) if not 0 <= i < vocab_size]
    if outside:
        raise ValueError(
            f"thinking.end, thinking.wait: expected token ids from 0 to {vocab_size - 1}, got "
            f"{outside}"
        )


def start_forced(
    thinking: Thinking | None, batch: int, prefix_BQ: Array | None, thinking_B: Array | None
) -> Forced:
    """The state before the first token.

    Args:
      prefix_BQ: tokens that each row begins with, -1 behind them.
      thinking_B: rows that think; None: all.
    """
    lengths = [len(thinking.end), len(thinking.wait)] if thinking else []
    prefix_BQ = jnp.full((batch, 1), -1, jnp.int32) if prefix_BQ is None else prefix_BQ
    room = max([*lengths, prefix_BQ.shape[1]]) - prefix_BQ.shape[1]
    queue_BQ = jnp.pad(prefix_BQ.astype(jnp.int32), ((0, 0), (0, room)), constant_values=-1)
    if thinking is None:
        return Forced(queue_BQ)
    thought = Thought(
        jnp.ones(batch, bool) if thinking_B is None else jnp.asarray(thinking_B),
        -jnp.sum(queue_BQ >= 0, axis=1, dtype=jnp.int32),  # so that a prefix doesn't count
        jnp.zeros(batch, jnp.int32),
        jnp.full(batch, START, jnp.int32),
    )
    return Forced(queue_BQ, thought)


def barred(
    thinking: Thinking, close: TokenAutomaton, thought: Thought, stop_V: np.ndarray
) -> Array:
    """The tokens that can't be sampled because they would end thinking too early, bool [B, V]."""
    early_B = thought.open_B & (thought.tokens_B < thinking.min_tokens)
    return early_B[:, None] & (stop_V | completing(close, thought.close_B))


def settle(
    forced: Forced,
    sampled_B: Array,
    stops_B: Array,
    thinking: Thinking | None = None,
    close: TokenAutomaton | None = None,
    budget_B: Array | int | None = None,
) -> tuple[Array, Array, Forced]:
    """What comes to stand at this place.

    Args:
      sampled_B: what was sampled here, whether it is wanted or not.
      stops_B: whether that would end the sequence.
      budget_B: of each row, -1 for none; None where no row has one.

    Returns:
      token [B]; True [B] where it is the sampled one; the next state.
    """
    queue_BQ, thought = forced
    if thinking is not None and close is not None and thought is not None:
        if budget_B is not None:
            queue_BQ, thought = _stop_thinking(thinking, budget_B, queue_BQ, thought)
        if thinking.wait and (thinking.waits or thinking.min_tokens):
            ends_B = stops_B | (advance(close, thought.close_B, sampled_B) == FOUND)
            queue_BQ, thought = _think_on(thinking, ends_B, queue_BQ, thought)
    free_B = queue_BQ[:, 0] < 0
    token_B = jnp.where(free_B, sampled_B, queue_BQ[:, 0])
    queue_BQ = jnp.pad(queue_BQ[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    if close is not None and thought is not None:
        close_B = advance(close, thought.close_B, token_B)
        thought = thought._replace(
            open_B=thought.open_B & (close_B != FOUND),
            tokens_B=thought.tokens_B + 1,
            close_B=close_B,
        )
    return token_B, free_B, Forced(queue_BQ, thought)


def _stop_thinking(
    thinking: Thinking, budget_B: Array | int, queue_BQ: Array, thought: Thought
) -> tuple[Array, Thought]:
    """Begin the end where the budget is spent."""
    spent_B = (budget_B >= 0) & (thought.tokens_B >= budget_B)
    over_B = thought.open_B & (queue_BQ[:, 0] < 0) & spent_B
    queue_BQ = jnp.where(over_B[:, None], _script(thinking.end, queue_BQ), queue_BQ)
    return queue_BQ, thought._replace(open_B=thought.open_B & ~over_B)


def _think_on(
    thinking: Thinking, ends_B: Array, queue_BQ: Array, thought: Thought
) -> tuple[Array, Thought]:
    """Wait where thinking would end too early."""
    early_B = (thought.waited_B < thinking.waits) | (thought.tokens_B < thinking.min_tokens)
    waits_B = thought.open_B & (queue_BQ[:, 0] < 0) & ends_B & early_B
    queue_BQ = jnp.where(waits_B[:, None], _script(thinking.wait, queue_BQ), queue_BQ)
    return queue_BQ, thought._replace(waited_B=thought.waited_B + waits_B)


def _script(ids: Sequence[int], queue_BQ: Array) -> np.ndarray:
    """Tokens as wide as a queue [Q]."""
    return np.array([*ids, *[-1] * (queue_BQ.shape[1] - len(ids))], np.int32)

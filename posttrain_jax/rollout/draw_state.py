"""What sampling with options carries: tables that rows share, and a state for each row."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array
from posttrain_jax.data.token_automaton import START, TokenAutomaton, token_automaton
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.rollout.forcing import Forced, start_forced
from posttrain_jax.rollout.penalties import Counts, start_counts
from posttrain_jax.rollout.row_settings import RowSettings, over
from posttrain_jax.rollout.sampling import Sampling, check_sampling


class Tables(NamedTuple):
    """Constant arrays that all rows share; None where nothing needs them.

    Attributes:
      stop: finds the stop strings.
      call: finds the call strings.
      close: finds the end of thinking.
    """

    stop: TokenAutomaton | None = None
    call: TokenAutomaton | None = None
    close: TokenAutomaton | None = None


class State(NamedTuple):
    """What goes with each row from token to token: every array begins with the axis B.

    A sampler that moves rows moves all of it alike, and `put`s that of a new sequence into a slot.

    Attributes:
      rows: the rows' own settings.
      counts: what the penalties need.
      stop_B, call_B: states of the automata that find the stop and the call strings; None
        without any.
      forced: None where nothing is forced.
    """

    rows: RowSettings = RowSettings()
    counts: Counts = Counts()
    stop_B: Array | None = None
    call_B: Array | None = None
    forced: Forced | None = None


NO_TABLES, NO_STATE = Tables(), State()
"""What there is where no option is used."""


_automaton = functools.lru_cache(maxsize=16)(token_automaton)


def make_tables(tokenizer: Tokenizer, sampling: Sampling, vocab_size: int) -> Tables:
    """The tables of a sampler's settings, on the host; seconds for long strings.

    Raises:
      ValueError: a stop string that is empty or that no tokens spell; see `token_automaton`.
    """
    check_sampling(sampling, vocab_size)
    stop = call = close = None
    if sampling.stop_strings:
        stop = _automaton(tokenizer, sampling.stop_strings, vocab_size)
    if sampling.call_strings:
        call = _automaton(tokenizer, sampling.call_strings, vocab_size, "call_strings")
    if sampling.thinking:
        texts = (sampling.thinking.close,)
        close = _automaton(tokenizer, texts, vocab_size, "thinking.close")
    return Tables(stop, call, close)


def start(
    batch: int,
    vocab_size: int,
    sampling: Sampling,
    *,
    rows: RowSettings | None = None,
    prompt_BT: Array | None = None,
    mask_BT: Array | None = None,
    prefix_BQ: Array | None = None,
    thinking_B: Array | None = None,
) -> State:
    """The state of `batch` rows before their first token.

    Args:
      rows: their own settings.
      prompt_BT, mask_BT: their prompts and where they are not padding; needed by the repetition
        penalty alone.
      prefix_BQ: tokens that each response begins with, -1 behind them; None: none. States of
        slots that change hands need one width.
      thinking_B: rows that think; None: all. Others have no budget, and end when they like.

    Raises:
      ValueError: bad settings, a budget without `sampling.thinking`, no prompts for the penalty.
    """
    check_sampling(sampling, vocab_size)
    own: RowSettings = jax.tree.map(jnp.asarray, rows or RowSettings())
    if own.thinking_budget is not None and not (sampling.thinking and sampling.thinking.end):
        raise ValueError(
            "thinking_budget: expected sampling.thinking to say what is forced at its end "
            f"(make_thinking), got {sampling.thinking}"
        )
    counts = start_counts(over(sampling, own), batch, vocab_size, prompt_BT, mask_BT)
    forced = None
    if sampling.thinking or prefix_BQ is not None:
        forced = start_forced(sampling.thinking, batch, prefix_BQ, thinking_B)
    read = lambda strings: jnp.full(batch, START, jnp.int32) if strings else None  # noqa: E731
    stop_B, call_B = read(sampling.stop_strings), read(sampling.call_strings)
    return State(own, counts, stop_B, call_B, forced)


def put(state: State, slots_B: Array, fresh: State) -> State:
    """The state with the rows of another one in the given slots; numbers beyond the slots do
    nothing, so that a fixed number of rows may bring fewer."""
    return jax.tree.map(lambda old, new: old.at[slots_B].set(new, mode="drop"), state, fresh)

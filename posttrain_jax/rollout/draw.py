"""One step of sampling with every option: logits to tokens, and what they change in each row.

    tables = make_tables(tokenizer, sampling, vocab_size)            # once, on the host
    state = start(batch, vocab_size, sampling, rows=make_rows(batch, top_k=[20, 0], ...))
    drawn = draw(logits_BV, keys_B, place_B, sampling, tables, state)  # for every token

An option that isn't used isn't in the program: with none it is `pick`, the model's log-prob and the
comparison with the stop tokens. The order is that of vLLM and transformers: bias, penalties, tokens
that can't be sampled yet, temperature, top-k, top-p, min-p. A forced token takes the place of the
sampled one afterwards.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.api import Array
from posttrain_jax.data.token_automaton import FOUND, START
from posttrain_jax.rollout.draw_state import NO_STATE, NO_TABLES, State, Tables
from posttrain_jax.rollout.forcing import barred, settle
from posttrain_jax.rollout.penalties import count, penalise
from posttrain_jax.rollout.row_settings import RowSettings, over
from posttrain_jax.rollout.sampling import (
    NEVER,
    Sampling,
    check_sampling,
    pick,
    token_logp,
    used,
)
from posttrain_jax.rollout.stop_strings import advance, completing


class Drawn(NamedTuple):
    """The token of each row; J counts the likeliest tokens.

    Attributes:
      behaviour_logp_B: under the sampling distribution; 0 of forced tokens.
      model_logp_B: under the model as it is: no temperature, bias, penalty or filter.
      stop_B: True where the sequence ends with this token: a stop token, or a stop string is there.
      call_B: True where a call string is there; None without any.
      free_B: True where the token was sampled; others must not enter a loss. None: all were.
      full_B: True where the row has its `RowSettings.max_new` tokens; None: no row has its own.
      top_tokens_BJ, top_logp_BJ: the model's likeliest tokens here and their log-probs, the
        likeliest first; None if not asked for.
    """

    token_B: Array
    behaviour_logp_B: Array
    model_logp_B: Array
    stop_B: Array
    state: State
    free_B: Array | None = None
    full_B: Array | None = None
    call_B: Array | None = None
    top_tokens_BJ: Array | None = None
    top_logp_BJ: Array | None = None


def draw(
    logits_BV: Array,
    keys_B: Array,
    place_B: Array,
    sampling: Sampling,
    tables: Tables = NO_TABLES,
    state: State = NO_STATE,
) -> Drawn:
    """The next token of every row.

    Args:
      logits_BV: the model's.
      keys_B: one a row; see `row_keys`.
      place_B: how many tokens the row's response has.
      sampling: static.
      tables, state: of the same settings.

    Raises:
      ValueError: bad settings; tables or a state of others.
    """
    check_sampling(sampling, logits_BV.shape[1])
    _check_same(sampling, tables, state)
    settings, logits_BV = over(sampling, state.rows), logits_BV.astype(jnp.float32)
    shaped_BV = _shaped(logits_BV, place_B, settings, tables, state)
    token_B, behaviour_B = pick(shaped_BV, keys_B, settings)
    free_B, forced = None, state.forced
    if forced is not None:
        token_B, free_B, forced = settle(
            forced, token_B, _stops(token_B, sampling), sampling.thinking, tables.close,
            _budget(sampling, state.rows),
        )  # fmt: skip
        behaviour_B = jnp.where(free_B, behaviour_B, 0.0)
    model_B = token_logp(logits_BV, token_B)
    stop_B, found_B = _stops(token_B, sampling), state.stop_B
    if tables.stop is not None and found_B is not None:
        found_B = advance(tables.stop, found_B, token_B)
        stop_B = stop_B | (found_B == FOUND)
    call_B, called_B = state.call_B, None
    if tables.call is not None and call_B is not None:
        call_B = advance(tables.call, call_B, token_B)
        called_B = call_B == FOUND
        call_B = jnp.where(called_B, START, call_B)
    full_B = None if state.rows.max_new is None else place_B + 1 >= state.rows.max_new
    top = (None, None)
    if sampling.top_logprobs:
        values_BJ, ids_BJ = jax.lax.top_k(logits_BV, sampling.top_logprobs)
        top = ids_BJ, values_BJ - jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    state = State(state.rows, count(state.counts, token_B), found_B, call_B, forced)
    return Drawn(token_B, behaviour_B, model_B, stop_B, state, free_B, full_B, called_B, *top)


def _check_same(sampling: Sampling, tables: Tables, state: State) -> None:
    """Refuse tables or a state that were made without what the settings need."""
    settings, counts = over(sampling, state.rows), state.counts
    presence = used(settings.presence_penalty, 0.0) or used(settings.frequency_penalty, 0.0)
    thought = state.forced.thought if state.forced else None
    needed = {
        "stop_strings": (bool(sampling.stop_strings), tables.stop, state.stop_B),
        "call_strings": (bool(sampling.call_strings), tables.call, state.call_B),
        "thinking": (sampling.thinking is not None, tables.close, thought),
        "repetition_penalty": (used(settings.repetition_penalty, 1.0), counts.seen_BV),
        "presence_penalty, frequency_penalty": (presence, counts.count_BV),
    }
    for name, (wanted, *made) in needed.items():
        if any((array is not None) != wanted for array in made):
            raise ValueError(
                f"{name}: expected tables and a state of the same settings (make_tables, start), "
                f"got some made {'without' if wanted else 'with'} it"
            )


def _shaped(
    logits_BV: Array, place_B: Array, settings: Sampling, tables: Tables, state: State
) -> Array:
    """The logits after bias and penalties, with -1e30 where a token can't be sampled yet."""
    if settings.logit_bias:
        ids, biases = zip(*settings.logit_bias, strict=True)
        biases = np.maximum(np.array(biases, np.float32), NEVER)
        logits_BV = logits_BV + jnp.zeros(logits_BV.shape[1]).at[np.array(ids)].set(biases)
    logits_BV = penalise(logits_BV, state.counts, settings)
    stop_V = np.isin(np.arange(logits_BV.shape[1]), settings.stop)
    if used(settings.min_new, 0):
        ends_BV = stop_V[None]
        if tables.stop is not None and state.stop_B is not None:
            ends_BV = ends_BV | completing(tables.stop, state.stop_B)
        early_B1 = place_B[:, None] < settings.min_new
        logits_BV = jnp.where(early_B1 & ends_BV, NEVER, logits_BV)
    thinking, thought = settings.thinking, state.forced and state.forced.thought
    if thinking and thought and tables.close and thinking.min_tokens and not thinking.wait:
        early_BV = barred(thinking, tables.close, thought, stop_V)
        logits_BV = jnp.where(early_BV, NEVER, logits_BV)
    return logits_BV


def _stops(token_B: Array, sampling: Sampling) -> Array:
    """Whether each token is one that ends a sequence."""
    compared = (token_B == stop for stop in sampling.stop)
    return functools.reduce(jnp.logical_or, compared, jnp.zeros(token_B.shape, bool))


def _budget(sampling: Sampling, rows: RowSettings) -> Array | int | None:
    if rows.thinking_budget is not None or sampling.thinking is None:
        return rows.thinking_budget
    return sampling.thinking.budget

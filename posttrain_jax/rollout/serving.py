"""The queue in stretches, for a host that looks at what has ended and answers calls.

    state = begin(...)                           everybody is queued
    state, seen = advance(...)                   so many steps; what the host may look at
    state = answer(state, rules, answers)        what comes behind calls, while others go on

A slot whose sequence asks for the host is parked: it keeps its pages and is not decoded. What the
host answers is written behind what the sequence has said; the slot reads it in one pass of several
tokens, and goes on. It came from the host, so it is not the policy's: `Written.free_NC` is False. A
sequence that loses its slot later reads it again where it stands.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Model, Params, Rollout
from posttrain_jax.rollout import carry, continuous, pools, slots, spread
from posttrain_jax.rollout.carry import Said
from posttrain_jax.rollout.continuous import Sizes, State
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.written import as_rollout, note_experts

READERS = 4
"""Slots that read answers at once: ours."""


class Served(NamedTuple):
    """What the host may look at; of all shards of the batch.

    Attributes:
      busy: False where nothing goes on without the host, or all have ended.
      queued, live: sequences that have no slot yet, and the most of a shard that have one.
      left: sequences that have not ended; none where enough have (`Sizes.spare`).
      ended_N, finished_N, tokens_NC, mask_NC: of all sequences.
      parked_B, sequence_B, place_B: slots that wait, whose they are, how much these have said.
    """

    busy: Array
    queued: Array
    live: Array
    left: Array
    ended_N: Array
    finished_N: Array
    tokens_NC: Array
    mask_NC: Array
    parked_B: Array
    sequence_B: Array
    place_B: Array


class Answers(NamedTuple):
    """What the host says to some sequences, those of a shard together; W: places of an answer.

    Attributes:
      sequence_A: which they are; one past the last for nobody.
      tokens_AW: what comes next in them.
      length_A: how much of it; -1: they end here.
    """

    sequence_A: Array
    tokens_AW: Array
    length_A: Array


def _held(state: State) -> State:
    """A shard's state as its row of that of all shards."""
    return jax.tree.map(lambda x: x[None], state)


def _own(state: State) -> State:
    """The inverse."""
    return jax.tree.map(lambda x: x[0], state)


@functools.partial(jax.jit, static_argnames=("model", "rules", "sizes"))
def begin(
    model: Model, asked: Asked, rules: Rules, sizes: Sizes, said: Said | None = None
) -> State:
    """The state with everybody in the queue; each of its arrays has a row a shard of the batch.

    Args:
      said: by the first sequences of each shard, before.
    """

    def inside(asked: Asked, said: Said | None) -> State:
        state = continuous.empty(model, asked, rules, sizes)
        return _held(state if said is None else carry.resumed(model, asked, rules, state, said))

    given = (spread.of_asked(asked), spread.rows())
    return spread.over_shards(inside, given, spread.rows(), asked, said)


@functools.partial(jax.jit, static_argnames=("count", "rules"))
def fewer(state: State, count: int, rules: Rules) -> State:
    """The state of fewer slots on each shard; there must be no more live ones."""
    inside = lambda state: _held(continuous.fewer(_own(state), count, rules))  # noqa: E731
    return spread.over_shards(inside, (spread.rows(),), spread.rows(), state)


@functools.partial(jax.jit, static_argnames=("model", "rules", "sizes"), donate_argnames=("state",))
def advance(
    model: Model, params: Params, asked: Asked, rules: Rules, sizes: Sizes, state: State,
    stretch: Array,
) -> tuple[State, Served]:  # fmt: skip
    """Read what was answered, then up to `stretch` more steps; `state` is used up.

    Args:
      params: `sampler.layers_apart`.
    """

    def inside(params, asked, state, stretch):
        state, read = _own(state), functools.partial(_read, model, params, asked, rules)
        if rules.inserts:
            state = read(state)
        limit = state.slots.steps + stretch
        state = continuous.serve(
            model, params, asked, rules, sizes, state, until=0, limit=limit, read=read
        )  # fmt: skip
        shown = _shown(state, rules, sizes)
        return _held(state), jax.tree.map(jnp.copy, shown)  # state is donated

    given = (
        spread.of_weights(model, params), spread.of_asked(asked), spread.rows(), spread.whole(),
    )  # fmt: skip
    shown = Served(*[spread.whole()] * 4, *[spread.rows()] * 7)
    return spread.over_shards(inside, given, (spread.rows(), shown), params, asked, state, stretch)


def _shown(state: State, rules: Rules, sizes: Sizes) -> Served:
    s, written, left = state.slots, state.written, jnp.sum(~state.ended_N)
    if sizes.spare:
        left = jnp.where(continuous.satisfied(state, rules, sizes), 0, left)
    busy = jnp.any(slots.going(s)) | ((slots.queued(s) > 0) & ~jnp.all(s.live_B))
    return Served(
        spread.largest(busy.astype(jnp.int32)) > 0, spread.total(slots.queued(s)),
        spread.largest(jnp.sum(s.live_B)), spread.total(left), state.ended_N,
        written.finished_N, written.tokens_NC, written.mask_NC, s.parked_B,
        s.sequence_B + spread.before(len(state.ended_N)), s.place_B,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("rules",), donate_argnames=("state",))
def answer(state: State, rules: Rules, answers: Answers) -> State:
    """The state with these answers; those who asked go on, or end."""

    def inside(state: State, answers: Answers) -> State:
        state = _own(state)
        first, rows = spread.before(len(state.ended_N)), len(state.ended_N)
        own_A = answers.sequence_A - first
        own_A = jnp.where((own_A >= 0) & (own_A < rows), own_A, rows)
        return _held(_answer(state, answers._replace(sequence_A=own_A)))

    split = (spread.rows(), spread.rows())
    return spread.over_shards(inside, split, spread.rows(), state, answers)


def _answer(state: State, answers: Answers) -> State:
    s, written = state.slots, state.written
    rows, places = written.mask_NC.shape
    sequence_A, length_A = answers.sequence_A, answers.length_A
    asked_AB = sequence_A[:, None] == jnp.where(s.live_B & s.parked_B, s.sequence_B, -1)
    place_A = jnp.sum(jnp.where(asked_AB, s.place_B, 0), axis=1)
    ahead_W = jnp.arange(answers.tokens_AW.shape[1])
    at_AW = jnp.where(ahead_W < length_A[:, None], place_A[:, None] + ahead_W, places)
    at = (jnp.broadcast_to(sequence_A[:, None], at_AW.shape), at_AW)
    assert written.free_NC is not None
    ends_B = jnp.any(asked_AB & (length_A < 0)[:, None], axis=0)
    ending_N = jnp.where(length_A < 0, sequence_A, rows)
    written = written._replace(
        tokens_NC=written.tokens_NC.at[at].set(answers.tokens_AW, mode="drop"),
        mask_NC=written.mask_NC.at[at].set(True, mode="drop"),
        free_NC=written.free_NC.at[at].set(False, mode="drop"),
        finished_N=written.finished_N.at[ending_N].set(True, mode="drop"),
    )
    s = s._replace(parked_B=s.parked_B & ~jnp.any(asked_AB, axis=0))
    answered_N = state.answered_N.at[sequence_A].set(place_A, mode="drop")
    state = state._replace(slots=s, written=written, answered_N=answered_N)
    return continuous.end(state, ends_B)


def _read(model: Model, params: Params, asked: Asked, rules: Rules, state: State) -> State:
    """Answers into the slots of those who asked, a page of tokens at a time."""

    def reads(state: State) -> Array:
        s = state.slots
        row_B = jnp.minimum(s.sequence_B, len(state.ended_N) - 1)
        return slots.going(s) & continuous.given(rules, state, row_B, s.place_B)

    def read(state: State) -> State:
        (chosen_F,) = jnp.nonzero(reads(state), size=READERS, fill_value=len(state.slots.live_B))
        return _pass(model, params, asked, rules, state, chosen_F)

    some = lambda state: spread.anywhere(jnp.any(reads(state)))  # noqa: E731
    return jax.lax.while_loop(some, read, state)


def _pass(
    model: Model, params: Params, asked: Asked, rules: Rules, state: State, chosen_F: Array
) -> State:
    """Up to a page of tokens that are known into these slots."""
    s, count, rows = state.slots, len(state.slots.live_B), len(state.ended_N)
    some_F = jnp.minimum(chosen_F, count - 1)
    row_F, place_F = jnp.minimum(s.sequence_B[some_F], rows - 1), s.place_B[some_F]
    ahead_T = jnp.arange(continuous.page_size())
    known = lambda t: continuous.given(rules, state, row_F, place_F + t)  # noqa: E731
    here_FT = jax.vmap(known, out_axes=1)(ahead_T)
    count_F = jnp.sum(jnp.cumprod(here_FT, axis=1), axis=1)
    count_B = jnp.zeros(count, jnp.int32).at[chosen_F].set(count_F, mode="drop")
    s = slots.turn_pages(s, continuous.page_size(), count_B)
    count_B = jnp.where(slots.going(s), count_B, 0)  # a slot may have been lost for want of pages
    at_FT = jnp.maximum(place_F[:, None] - 1 + ahead_T, 0)
    said_FT = state.written.tokens_NC[row_F[:, None], at_FT].at[:, 0].set(s.token_B[some_F])
    length_F = jnp.sum(asked.segments_PT, axis=1)[row_F // rules.group_size]
    at = pools.at(state.pool, s, continuous.page_size(), count_B, continuous.page_size())
    at = pools.of_some(at, chosen_F)
    _, pool, routing = pools.read(model, params, said_FT, length_F - 1 + place_F, at, state.pool)
    taken_F = jnp.where(chosen_F < count, count_B[some_F], 0)
    written = note_experts(
        state.written, routing, row_F[:, None], asked.prompts_PT.shape[1] - 1 + place_F,
        ahead_T < taken_F[:, None],
    )  # fmt: skip
    row_B, place_B = jnp.minimum(s.sequence_B, rows - 1), s.place_B + count_B
    last_B = state.written.tokens_NC[row_B, jnp.maximum(place_B - 1, 0)]
    s = s._replace(token_B=jnp.where(count_B > 0, last_B, s.token_B), place_B=place_B)
    state = state._replace(slots=s, pool=pool, written=written)
    most_B = rules.max_new if state.draw.rows.max_new is None else state.draw.rows.max_new
    return continuous.end(state, (count_B > 0) & (place_B >= jnp.minimum(most_B, rules.max_new)))


@functools.partial(jax.jit, static_argnames=("rules",))
def finish(state: State, asked: Asked, rules: Rules) -> Rollout:
    """The rollout, when all have ended."""
    inside = lambda state, asked: as_rollout(_own(state).written, asked, rules)  # noqa: E731
    split = (spread.rows(), spread.of_asked(asked))
    return spread.over_shards(inside, split, spread.rows(), state, asked)

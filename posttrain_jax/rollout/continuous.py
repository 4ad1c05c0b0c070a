"""Continuous batching inside one jitted program: a finished slot takes the next sequence by itself.

  while somebody is queued:                    outer: prefill prompts into the pool, fill free slots
      while nobody can be let in:              inner: decode one token of every slot, and no more
  for half, a quarter, an eighth of the slots: the queue is empty: fewer slots, used ones in front

A prompt is prefilled without its last token, which is the first that its group's slots decode: so
there is no special first token, and no LM head in the prefill. The host has no part in it. What a
sequence samples depends on (seed, uid, position) alone, so slots, pages and pools change nothing
but time and memory. Each shard of the batch has a queue of its own (spread.py). In stretches, for a
host that looks or answers calls: serving.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Model, Params, Rollout
from posttrain_jax.models.transformer import Pool, unstack
from posttrain_jax.rollout import drafts, draw_state, pools, slots, spread
from posttrain_jax.rollout.draw import Drawn, draw
from posttrain_jax.rollout.prefill import NARROWEST, prefill
from posttrain_jax.rollout.request import Asked, Rules, begin
from posttrain_jax.rollout.sampling import row_keys
from posttrain_jax.rollout.slots import Slots
from posttrain_jax.rollout.written import (
    Written,
    as_rollout,
    blank,
    enter,
    no_experts,
    note_experts,
)

PAGE = 16
"""Places of a page: ours, of 8, 16 and 32 the fastest on CPU."""
TPU_PAGE = 128
"""The same on TPU, which holds any less in as many places."""
FEWEST = 4
"""Slots below which there is no further halving."""


def page_size() -> int:
    """Places of a page on this backend."""
    return TPU_PAGE if jax.default_backend() == "tpu" else PAGE


class Sizes(NamedTuple):
    """What holds the sequences of a shard of the batch; static.

    Attributes:
      slots: sequences that are decoded at once.
      pages: of the pool, `page_size()` places each.
      entries: prompts in the prompt pool.
      prefill: prompts that are prefilled at once; 0: none are left.
      threshold: free slots that are worth leaving the inner loop for.
      drafts: tokens that a step guesses of each sequence, fewer than a page holds; see drafts.py.
      spare: groups that need not be whole at the end; see carry.py.
      narrowest: places of the narrowest prefill, or more; see prefill.py.
    """

    slots: int
    pages: int
    entries: int
    prefill: int
    threshold: int
    drafts: int = 0
    spare: int = 0
    narrowest: int = NARROWEST


def plan_sizes(
    slots: int, prompts: int, rules: Rules, share: float = 0.35, drafts: int = 0
) -> Sizes:
    """Sizes for a queue of so many prompts, all of a shard's.

    Args:
      slots: how many sequences to decode at once.
      share: of the places that all slots would fill with sequences of full length.
      drafts: as of `Sizes`.

    Raises:
      ValueError: no slots, or drafts that a page doesn't hold.
    """
    if slots < 1:
        raise ValueError(f"slots={slots}: expected at least 1")
    if not 0 <= drafts < page_size():
        raise ValueError(f"drafts={drafts}: expected 0 (none) to {page_size() - 1} tokens")
    longest = -(-rules.max_new // page_size())
    slots = min(slots, prompts * rules.group_size)
    whole = slots * longest
    pages = max(longest, min(whole, max(2 * slots, round(share * whole))))
    entries = min(prompts, max(2, -(-11 * slots // (2 * rules.group_size))), slots + 1)
    return Sizes(slots, pages, entries, min(2, prompts), max(1, slots // 16), drafts)


class Known(NamedTuple):
    """What was said of the sequences before this rollout, and is not sampled again.

    Attributes:
      place_N: how many tokens, which stand in `State.written`.
      draw: what sampling carries of each sequence behind them.
    """

    place_N: Array
    draw: draw_state.State


class State(NamedTuple):
    """What the loops carry.

    Attributes:
      ended_N: sequences that don't go on.
      answered_N: places of each sequence's latest call that the host has answered.
      tally: of drafts; None without.
      known: None where all begin in this rollout.
    """

    slots: Slots
    pool: Pool
    written: Written
    draw: draw_state.State
    ended_N: Array
    answered_N: Array
    tally: drafts.Tally | None = None
    known: Known | None = None


class Work(NamedTuple):
    """What a rollout took, all shards together; of steps those of the shard with the most.

    Attributes:
      steps: decode steps.
      busy: live slots, summed over steps.
      most_pages: pages in use at most.
      full_steps, full_busy: of the steps before the queue was empty.
      prefilled: places of prompts that went through the model, padding too.
      proposed, accepted: draft tokens, and those that were right.
      wide_steps: the steps that read any.
    """

    steps: Array
    busy: Array
    most_pages: Array
    full_steps: Array
    full_busy: Array
    prefilled: Array
    proposed: Array
    accepted: Array
    wide_steps: Array


@functools.partial(jax.jit, static_argnames=("model", "rules", "sizes"))
def sample_queue(
    model: Model, params: Params, asked: Asked, rules: Rules, sizes: Sizes
) -> tuple[Rollout, Work]:
    """As `sampler.sample`, with no more than `sizes.slots` sequences at a time on each shard."""
    inside = lambda params, asked: _sample(model, unstack(params), asked, rules, sizes)  # noqa: E731
    given = (spread.of_weights(model, params), spread.of_asked(asked))
    return spread.over_shards(inside, given, (spread.rows(), spread.whole()), params, asked)


def _sample(
    model: Model, params: Params, asked: Asked, rules: Rules, sizes: Sizes
) -> tuple[Rollout, Work]:
    """The rollout of one shard's prompts, and the work of all shards."""
    state = empty(model, asked, rules, sizes)
    count = len(state.slots.live_B)
    state = serve(model, params, asked, rules, sizes, state, until=half(count))
    full = state.slots
    sizes = sizes._replace(prefill=0)  # all have been: there is nothing of it to compile
    while count := half(count):
        state = fewer(state, count, rules)
        state = serve(model, params, asked, rules, sizes, state, until=half(count))
    s, tally = state.slots, state.tally or drafts.no_tally()
    work = Work(
        spread.largest(s.steps), spread.total(s.busy), spread.total(s.most_pages),
        spread.largest(full.steps), spread.total(full.busy), spread.total(s.prefilled),
        spread.total(tally.proposed), spread.total(tally.accepted),
        spread.largest(tally.wide_steps),
    )  # fmt: skip
    return as_rollout(state.written, asked, rules), work


def half(count: int) -> int:
    """How many slots come after so many; 0 is the end."""
    return count // 2 if count // 2 >= FEWEST else 0


def empty(model: Model, asked: Asked, rules: Rules, sizes: Sizes) -> State:
    """All sequences in the queue."""
    prompts, width = asked.prompts_PT.shape
    s = slots.empty(sizes.slots, sizes.pages, sizes.entries, prompts, rules.group_size, width)
    pool = pools.empty(model, s, page_size(), rules.cache_dtype)
    nobody, rows = jnp.zeros(len(s.live_B), jnp.int32), len(asked.uids_B)
    written = blank(asked, rules)
    if rules.record_experts:
        written = no_experts(written, asked, model.config)
    return State(
        s, pool, written, begin(model, asked, rules, nobody),
        jnp.zeros(rows, bool), jnp.zeros(rows, jnp.int32),
        drafts.no_tally() if sizes.drafts else None,
    )  # fmt: skip


def serve(
    model: Model, params: Params, asked: Asked, rules: Rules, sizes: Sizes, state: State, *,
    until: int, limit: Array | None = None, read: Callable[[State], State] | None = None,
) -> State:  # fmt: skip
    """Let sequences in and decode, until nobody is queued and at most `until` slots are live.

    Args:
      limit: stop after so many steps in all, or where the host has to say how all slots go on.
      read: puts what is known of new sequences into their slots.
    """
    last_P = asked.prompts_PT[:, -1]

    def conditions(state: State) -> Array:
        """Whether to go on; whether any slot is decoded, and whether sequences could be let in."""
        s = state.slots
        more = (slots.queued(s) > 0) | (jnp.sum(s.live_B) > until)
        free = jnp.minimum(jnp.sum(~s.live_B), slots.free_pages(s))
        opening = (free >= sizes.threshold) & ((slots.waiting(s) > 0) | (slots.room(s) > 0))
        decoding = jnp.any(slots.going(s))
        if sizes.spare:
            more &= ~satisfied(state, rules, sizes)
        if limit is not None:
            more &= (s.steps < limit) & (decoding | opening)
        return spread.anywhere(jnp.stack([more, decoding, opening]))

    def decodes_on(state: State) -> Array:
        more, decoding, opening = conditions(state)
        return more & decoding & ~opening

    def lacking(state: State) -> Array:
        return spread.anywhere(slots.prompts_due(state.slots, sizes.prefill))

    def more_prompts(state: State) -> State:
        s, pool, written = prefill(
            model, params, asked, state.slots, state.pool, state.written,
            count=sizes.prefill, narrowest=sizes.narrowest,
        )  # fmt: skip
        return state._replace(slots=s, pool=pool, written=written)

    def let_in(state: State) -> State:
        if sizes.prefill:
            state = jax.lax.while_loop(lacking, more_prompts, state)
        before, after = state.slots, slots.admit(state.slots, last_P)
        slot = jnp.arange(len(before.live_B))
        row_B = jnp.minimum(after.sequence_B, len(asked.uids_B) - 1)
        new = jnp.where(after.live_B & ~before.live_B, slot, len(slot))
        state = state._replace(slots=after)
        if state.known is None:
            fresh = begin(model, asked, rules, row_B)
            return state._replace(draw=draw_state.put(state.draw, new, fresh))
        fresh = jax.tree.map(lambda x: x[row_B], state.known.draw)
        state = state._replace(draw=draw_state.put(state.draw, new, fresh))
        state = end(state, after.live_B & state.ended_N[row_B])
        return state if read is None else read(state)

    def turn(state: State) -> State:
        state = let_in(state)
        step = lambda state: _step(model, params, asked, rules, sizes, state)  # noqa: E731
        return jax.lax.while_loop(decodes_on, step, state)

    return jax.lax.while_loop(lambda state: conditions(state)[0], turn, state)


def _step(
    model: Model, params: Params, asked: Asked, rules: Rules, sizes: Sizes, state: State
) -> State:
    """One more token of every slot that goes on, and more of those whose drafts are right."""
    if not sizes.drafts:
        return _pass(model, params, asked, rules, state, state.slots.token_B[:, None], 1)
    tokens_BT, count_B = drafts.propose(asked, rules, state.written, state.slots, sizes.drafts)
    drafted = jnp.any(slots.going(state.slots) & (count_B > 1))
    read = functools.partial(_pass, model, params, asked, rules)
    return jax.lax.cond(
        spread.anywhere(drafted),
        lambda state: read(state, tokens_BT, count_B),
        lambda state: read(state, tokens_BT[:, :1], 1), state,
    )  # fmt: skip


def _pass(
    model: Model, params: Params, asked: Asked, rules: Rules, state: State, tokens_BT: Array,
    count_B: Array | int,
) -> State:  # fmt: skip
    """Read each slot's last token and drafts, `count_B` in all, and draw what follows."""
    s, read = slots.turn_pages(state.slots, page_size(), count_B), tokens_BT.shape[1]
    row_B = jnp.minimum(s.sequence_B, len(asked.uids_B) - 1)
    length_B = jnp.sum(asked.segments_PT, axis=1)[row_B // rules.group_size]
    at = pools.at(state.pool, s, page_size(), count_B, read)
    hidden_BTD, pool, routing = pools.read(
        model, params, tokens_BT, length_B - 1 + s.place_B, at, state.pool
    )
    busy = s.busy + jnp.sum(slots.going(s), dtype=jnp.int32)
    state = state._replace(slots=s._replace(steps=s.steps + 1, busy=busy), pool=pool)
    take = functools.partial(_take, asked, rules, row_B, length_B)
    if read == 1:
        state = take(state, model.logits(params, hidden_BTD[:, 0]), slots.going(s))
    else:
        logits_BTV = model.logits(params, hidden_BTD)
        state = drafts.verify(
            lambda state, t, on_B: take(state, logits_BTV[:, t], on_B), state, tokens_BT, count_B
        )
    first_B = asked.prompts_PT.shape[1] - 1 + s.place_B
    stays_BT = jnp.arange(read) < (state.slots.place_B - s.place_B)[:, None]
    row_BR = s.sequence_B[:, None]
    return state._replace(written=note_experts(state.written, routing, row_BR, first_B, stays_BT))


def _take(
    asked: Asked, rules: Rules, row_B: Array, length_B: Array, state: State, logits_BV: Array,
    on_B: Array,
) -> State:  # fmt: skip
    """The next token of these slots; without drafts they are all that go on.

    Args:
      row_B, length_B: each slot's sequence, or any, and the length of its prompt.
    """
    s, rows = state.slots, len(asked.uids_B)
    keys = row_keys(asked.key, asked.uids_B[row_B], length_B + s.place_B)
    drawn = draw(logits_BV, keys, s.place_B, rules.sampling, asked.tables, state.draw)
    token_B, sampled_B, parked_B, stop_B = drawn.token_B, on_B, s.parked_B, drawn.stop_B
    ended_B = s.place_B + 1 >= rules.max_new
    ended_B = ended_B if drawn.full_B is None else ended_B | drawn.full_B
    if rules.inserts or state.known is not None:
        sampled_B = on_B & ~given(rules, state, row_B, s.place_B)
        token_B = jnp.where(sampled_B, token_B, state.written.tokens_NC[row_B, s.place_B])
    if rules.inserts or state.tally is not None or state.known is not None:
        token_B, stop_B = jnp.where(on_B, token_B, s.token_B), stop_B & sampled_B
        kept = draw_state.put(state.draw, _places(sampled_B), drawn.state)
        drawn = drawn._replace(state=kept)
    if rules.inserts:
        new_B = s.place_B >= state.answered_N[row_B]  # else it was answered before a slot was lost
        stop_B = stop_B & new_B if rules.turns else stop_B
        asks_B = _asks(rules, drawn, stop_B) & new_B & sampled_B & ~ended_B
        parked_B, stop_B = parked_B | asks_B, stop_B & ~asks_B
    at = (jnp.where(sampled_B, s.sequence_B, rows), s.place_B)
    put = lambda buffer, column: buffer.at[at].set(column, mode="drop")  # noqa: E731
    finished_N = state.written.finished_N.at[at[0]].set(stop_B, mode="drop")
    s = s._replace(token_B=token_B, place_B=s.place_B + on_B, parked_B=parked_B)
    written = enter(state.written, drawn, finished_N, put)
    state = state._replace(slots=s, written=written, draw=drawn.state)
    return end(state, on_B & (ended_B | stop_B))


def _places(some_B: Array) -> Array:
    """The numbers of these slots; one past the last in place of others."""
    return jnp.where(some_B, jnp.arange(len(some_B)), len(some_B))


def _asks(rules: Rules, drawn: Drawn, stop_B: Array) -> Array:
    """Slots whose token is one after which the host is asked."""
    asks_B = jnp.zeros_like(stop_B) if drawn.call_B is None else drawn.call_B & ~stop_B
    return asks_B | stop_B if rules.turns else asks_B


def given(rules: Rules, state: State, row_B: Array, place_B: Array) -> Array:
    """Whether what stands at a sequence's place is from the host, or from an earlier rollout."""
    written, given_B = state.written, jnp.zeros(place_B.shape, bool)
    if rules.inserts:
        assert written.free_NC is not None
        at = (row_B, jnp.minimum(place_B, written.mask_NC.shape[1] - 1))
        inside_B = place_B < written.mask_NC.shape[1]
        given_B = inside_B & written.mask_NC[at] & ~written.free_NC[at]
    return given_B if state.known is None else given_B | (place_B < state.known.place_N[row_B])


def satisfied(state: State, rules: Rules, sizes: Sizes) -> Array:
    """Whether enough groups are whole, among them the first ones, which were spare before."""
    whole_P = jnp.all(state.ended_N.reshape(-1, rules.group_size), axis=1)
    first, others = whole_P[: sizes.spare], jnp.sum(whole_P)
    return jnp.all(first) & (others >= len(whole_P) - sizes.spare)


def end(state: State, ended_B: Array) -> State:
    """These slots' sequences are at their end."""
    rows = len(state.ended_N)
    row_B = jnp.where(ended_B, state.slots.sequence_B, rows)
    ended_N = state.ended_N.at[row_B].set(True, mode="drop")
    return state._replace(slots=slots.end(state.slots, ended_B), ended_N=ended_N)


def fewer(state: State, count: int, rules: Rules) -> State:
    """The state of fewer slots, with as many pages as they can fill."""
    longest = -(-rules.max_new // page_size())
    pages = min(len(state.slots.owner_Z), count * longest)
    s, chosen_B, kept_Z = slots.compacted(state.slots, count, pages)
    pool = pools.at(pools.fewer(state.pool, chosen_B, kept_Z), s, page_size())
    draws = jax.tree.map(lambda x: x[chosen_B], state.draw)
    return state._replace(slots=s, pool=pool, draw=draws)

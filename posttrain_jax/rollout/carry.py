"""Sequences that one rollout leaves unfinished and the next goes on with (partial rollouts).

    carry, job = begin(...), ...                 at first nobody has said anything
    asked, prompts = join(asked, carry, ...)     what was left, then new prompts
    rollout, carry, rows = part(state, ...)      what is learnt from, and what is left

Of P + E groups P are learnt from. A rollout ends when so many are whole, the E that the one before
left among them: nothing is older than one rollout (`max_off_policy_steps=1`), and nobody waits for
the slowest. What is left goes on with its tokens, their log-probs under the policy that sampled
them and that policy's version; its keys and values are computed again with the new weights, several
tokens a pass. Whole groups that were too many wait for the next rollout. A sequence without a slot
(evicted, or still queued) begins anew there. Each shard of the batch leaves E of its own.
(Kimi k1.5, arXiv 2501.12599, section 2.6.2, does this over several rollouts.)
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Model, Rollout
from posttrain_jax.rollout import draw_state, spread
from posttrain_jax.rollout.continuous import Known, Sizes, State
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.request import begin as begin_rows
from posttrain_jax.rollout.row_settings import RowSettings
from posttrain_jax.rollout.written import Written, as_rollout, blank


class Said(NamedTuple):
    """What sequences had said before a rollout, a row each.

    Attributes:
      place_N: how many tokens.
      ended_N: sequences that don't go on.
      draw: what sampling carries behind them.
      version_N: of the policy that sampled them.
    """

    written: Written
    place_N: Array
    ended_N: Array
    draw: draw_state.State
    version_N: Array


class Carry(NamedTuple):
    """Groups that go on, on the devices that they were on; part of a checkpoint.

    Attributes:
      prompts_PT, segments_PT, uids_N, rows: as of `Asked`.
      source_P: which prompts they are, for the host.
    """

    prompts_PT: Array
    segments_PT: Array
    uids_N: Array
    rows: RowSettings
    source_P: Array
    said: Said


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def begin(model: Model, asked: Asked, rules: Rules, source_P: Array) -> Carry:
    """Groups that have said nothing yet."""

    def inside(asked: Asked, source_P: Array) -> Carry:
        none = jnp.zeros(len(asked.uids_B), jnp.int32)
        said = Said(
            blank(asked, rules), none, none != 0, begin_rows(model, asked, rules), none
        )  # fmt: skip
        prompts = (asked.prompts_PT, asked.segments_PT)
        return Carry(*prompts, asked.uids_B, asked.rows, source_P, said)

    given = (spread.of_asked(asked), spread.rows())
    return spread.over_shards(inside, given, spread.rows(), asked, source_P)


@jax.jit
def join(asked: Asked, source_P: Array, carry: Carry) -> tuple[Asked, Array]:
    """What goes on and the new prompts behind it, on each shard; also which prompts they are."""

    ours = (asked.prompts_PT, asked.segments_PT, asked.uids_B, asked.rows, source_P)

    def before(ours: Any, carry: Carry) -> Any:
        behind = lambda new, left: jnp.concatenate([left, new])  # noqa: E731
        return jax.tree.map(behind, ours, tuple(carry[:-1]))

    joined = spread.over_shards(before, (spread.rows(),) * 2, spread.rows(), ours, carry)
    names = ("prompts_PT", "segments_PT", "uids_B", "rows")
    return asked._replace(**dict(zip(names, joined[:-1], strict=True))), joined[-1]


def resumed(model: Model, asked: Asked, rules: Rules, state: State, said: Said) -> State:
    """The state before a rollout, with what a shard's first sequences have said already."""
    first = lambda whole, part: whole.at[: len(part)].set(part)  # noqa: E731
    place_N = first(jnp.zeros(len(asked.uids_B), jnp.int32), said.place_N)
    draw = jax.tree.map(first, begin_rows(model, asked, rules), said.draw)
    return state._replace(
        written=jax.tree.map(first, state.written, said.written),
        ended_N=first(state.ended_N, said.ended_N), known=Known(place_N, draw),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("rules", "sizes"))
def part(
    state: State, asked: Asked, rules: Rules, sizes: Sizes, source_P: Array, said: Said,
    version: Array,
) -> tuple[Rollout, Carry, Array]:  # fmt: skip
    """The groups to learn from; those to go on with; which sequences of `asked` the former are.

    Args:
      state: of `serving`, after a rollout.
      source_P, said: what it began with.
      version: of the policy that sampled it.
    """

    def inside(state: State, asked: Asked, source_P: Array, said: Said, version: Array) -> Any:
        state = jax.tree.map(lambda x: x[0], state)
        chosen_P, left_P = _parted(state, rules, sizes)
        chosen_N, left_N = _members(chosen_P, rules), _members(left_P, rules)
        rollout = jax.tree.map(lambda x: x[chosen_N], as_rollout(state.written, asked, rules))
        versions_BT = _versions(state, asked, said, version)[chosen_N]
        rollout = rollout._replace(version_BT=versions_BT * rollout.response_mask_BT)
        prompts = (asked.prompts_PT[left_P], asked.segments_PT[left_P])
        uids_N, rows = jax.tree.map(lambda x: x[left_N], (asked.uids_B, asked.rows))
        carry = Carry(
            *prompts, uids_N, rows, source_P[left_P], _left(state, rules, left_N, version)
        )
        return rollout, carry, chosen_N + spread.before(len(state.ended_N))

    given = (
        spread.rows(), spread.of_asked(asked), spread.rows(), spread.rows(), spread.whole(),
    )  # fmt: skip
    return spread.over_shards(inside, given, spread.rows(), state, asked, source_P, said, version)


@jax.jit
def told(rollout: Rollout, left: Carry, version: Array) -> dict[str, Array]:
    """What is worth knowing: the share of tokens from an older policy, what waits unfinished."""
    assert rollout.version_BT is not None
    mask_BT = rollout.response_mask_BT
    older = jnp.sum(mask_BT & (rollout.version_BT < version)) / jnp.sum(mask_BT)
    unfinished = ~left.said.ended_N & (left.said.place_N > 0)
    return {"carried_tokens": older, "left_unfinished": jnp.sum(unfinished)}


def _parted(state: State, rules: Rules, sizes: Sizes) -> tuple[Array, Array]:
    """A shard's groups that are learnt from: those it began with, then whole ones; the others."""
    whole_P = jnp.all(state.ended_N.reshape(-1, rules.group_size), axis=1)
    rank_P = jnp.where(jnp.arange(len(whole_P)) < sizes.spare, 0, jnp.where(whole_P, 1, 2))
    order_P = jnp.argsort(rank_P, stable=True)
    return order_P[: len(order_P) - sizes.spare], order_P[len(order_P) - sizes.spare :]


def _members(group_G: Array, rules: Rules) -> Array:
    return (group_G[:, None] * rules.group_size + jnp.arange(rules.group_size)).reshape(-1)


def _versions(state: State, asked: Asked, said: Said, version: Array) -> Array:
    """Of the policy that sampled each place, [N, T]."""
    assert state.known is not None
    rows, count = len(state.ended_N), len(said.version_N)
    before_N = jnp.full(rows, version).at[:count].set(said.version_N)
    place_T = jnp.arange(asked.prompts_PT.shape[1] + state.written.mask_NC.shape[1])
    known_NT = place_T < (state.known.place_N + asked.prompts_PT.shape[1])[:, None]
    return jnp.where(known_NT, before_N[:, None], version)


def _left(state: State, rules: Rules, left_N: Array, version: Array) -> Said:
    """What these sequences have said; those without a slot that have not ended: nothing."""
    assert state.known is not None
    s, written = state.slots, state.written
    row_B = jnp.where(s.live_B, s.sequence_B, len(state.ended_N))
    place_N = jnp.where(state.ended_N, jnp.sum(written.mask_NC, axis=1), 0)
    place_N = place_N.at[row_B].set(s.place_B, mode="drop")[left_N]
    draw = draw_state.put(state.known.draw, row_B, state.draw)
    draw, written = jax.tree.map(lambda x: x[left_N], (draw, written))
    kept_NC = jnp.arange(written.mask_NC.shape[1]) < place_N[:, None]
    unsaid = lambda x: x if x.ndim == 1 else x * kept_NC.astype(x.dtype)  # noqa: E731
    tokens_NC = jnp.where(kept_NC, written.tokens_NC, rules.pad_id)
    written = jax.tree.map(unsaid, written)._replace(tokens_NC=tokens_NC)
    return Said(written, place_N, state.ended_N[left_N], draw, jnp.full(len(left_N), version))

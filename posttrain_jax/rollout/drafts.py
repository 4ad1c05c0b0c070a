"""Speculative decoding by prompt lookup: what comes next is guessed from what stands there already.

The guess, a draft, is what followed the latest place where the sequence's last tokens stood before
(Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; vLLM's "ngram"). One pass of the model
reads the last token and its draft. Then every place is drawn with its own key, as without drafts,
as long as the draft foresaw the token: the first one that it did not is kept, what is behind it is
not read again. So the tokens are the same, up to the rounding of a pass over more tokens; that a
draft of probability p is right with probability p is speculative sampling (Leviathan et al. 2023,
arXiv 2211.17192, section 2.3) with a draft model that is sure of itself.

What is known is a draft too: answers of the host, and what a sequence had said before it lost its
slot. A step in which no slot has a draft reads one token of each. Left out: a model that drafts,
trees of drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array
from posttrain_jax.rollout import slots, spread
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.slots import Slots
from posttrain_jax.rollout.written import Written

SHORTEST, LONGEST = 2, 3
"""Tokens that must have stood there before, and that are compared: ours."""


class Tally(NamedTuple):
    """How many draft tokens were read, how many of them were drawn, and in how many steps."""

    proposed: Array
    accepted: Array
    wide_steps: Array


def no_tally() -> Tally:
    """Nothing yet."""
    return Tally(jnp.int32(0), jnp.int32(0), jnp.int32(0))


def propose(
    asked: Asked, rules: Rules, written: Written, s: Slots, most: int
) -> tuple[Array, Array]:
    """Each slot's last token with up to `most` that may follow -> (tokens [B, 1 + most], how many).

    The last place of a sequence has no draft, as nothing is drawn behind it.
    """
    row_B = jnp.minimum(s.sequence_B, len(asked.uids_B) - 1)
    prompt_B, width = row_B // rules.group_size, asked.prompts_PT.shape[1]
    said_BC = written.tokens_NC[row_B]
    tokens_BS = jnp.concatenate([asked.prompts_PT[prompt_B], said_BC], axis=1)
    first_B = width - jnp.sum(asked.segments_PT, axis=1)[prompt_B]
    draft_BT, found_B = look_up(tokens_BS, first_B, width + s.place_B, most)
    at_BT = s.place_B[:, None] + jnp.arange(most)
    last = rules.max_new - 1
    known_BT = written.mask_NC[row_B[:, None], jnp.minimum(at_BT, last)]
    known_B = jnp.sum(jnp.cumprod(known_BT, axis=1), axis=1)
    said_BT = jnp.take_along_axis(said_BC, jnp.minimum(at_BT, last), axis=1)
    draft_BT = jnp.where(known_B[:, None] > 0, said_BT, draft_BT)
    count_B = jnp.where(known_B > 0, known_B, jnp.where(found_B, most, 0))
    count_B = jnp.clip(count_B, 0, jnp.maximum(last - s.place_B, 0))
    return jnp.concatenate([s.token_B[:, None], draft_BT], axis=1), 1 + count_B


def look_up(tokens_BS: Array, first_B: Array, end_B: Array, most: int) -> tuple[Array, Array]:
    """What followed the longest of the last n tokens, where it stood latest -> (draft, found).

    Args:
      tokens_BS: a sequence lies in the places from `first_B` to before `end_B`.

    Returns:
      tokens [B, most]; where the sequence ends before them it is taken to repeat itself. False [B]
      where fewer than `SHORTEST` tokens were found.
    """
    place_S = jnp.arange(tokens_BS.shape[1])
    same_BS = place_S < end_B[:, None] - 1
    run_BS = jnp.zeros(tokens_BS.shape, jnp.int32)
    for back in range(LONGEST):
        last_B1 = jnp.take_along_axis(tokens_BS, jnp.maximum(end_B - 1 - back, 0)[:, None], axis=1)
        same_BS &= jnp.roll(tokens_BS, back, axis=1) == last_B1
        same_BS &= place_S - back >= first_B[:, None]
        run_BS += same_BS
    length = len(place_S)
    rank_BS = jnp.where(run_BS >= SHORTEST, run_BS * length + place_S, -1)
    best_B = jnp.max(rank_BS, axis=1)
    found_B = best_B >= 0
    behind_B = jnp.where(found_B, best_B % length + 1, 0)
    period_B = jnp.maximum(end_B - behind_B, 1)
    at_BT = behind_B[:, None] + jnp.arange(most) % period_B[:, None]
    return jnp.take_along_axis(tokens_BS, jnp.minimum(at_BT, length - 1), axis=1), found_B


def verify(
    take: Callable[[Any, Array, Array], Any], state: Any, tokens_BT: Array, count_B: Array | int
) -> Any:
    """Draw tokens for all slots that go on, each as long as its draft foresees them.

    Args:
      take: (state, t, which slots [B]) -> the state with the token that place t of the pass says,
        in these slots.
      state: a `continuous.State`, counted in `tally`.
      tokens_BT, count_B: what was read, of `propose`.
    """
    ahead = tokens_BT.shape[1]

    def more(carry) -> Array:
        return spread.anywhere(jnp.any(carry[1]))

    def draw(carry):
        t, on_B, state = carry
        state = take(state, t, on_B)
        s, next_B = state.slots, tokens_BT[:, jnp.minimum(t + 1, ahead - 1)]
        on_B &= slots.going(s) & (t + 1 < count_B) & (s.token_B == next_B)
        accepted = state.tally.accepted + jnp.sum(on_B, dtype=jnp.int32)
        return t + 1, on_B, state._replace(tally=state.tally._replace(accepted=accepted))

    going_B = slots.going(state.slots)
    read = jnp.sum(jnp.where(going_B, count_B - 1, 0), dtype=jnp.int32)
    tally = state.tally
    tally = tally._replace(proposed=tally.proposed + read, wide_steps=tally.wide_steps + 1)
    state = state._replace(tally=tally)
    return jax.lax.while_loop(more, draw, (jnp.int32(0), going_B, state))[2]

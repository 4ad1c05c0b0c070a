"""The sampler: one jitted call that prefills each prompt once and decodes until all are done.

Prompts are left-padded to one width, so every row writes its cache at the same place. The keys and
values of a prompt are made once, and read once a token for its whole group. A token depends on
(seed, sequence uid, position) only. `start` and `advance` are the same in stretches, for a host
that wants to see sequences as they end. Left out here: refilling finished rows, paging, tools.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Model, Params, Rollout
from posttrain_jax.mesh import constrain
from posttrain_jax.models.transformer import Cache, first_places, put_back, unstack
from posttrain_jax.rollout.draw import draw
from posttrain_jax.rollout.draw_state import State
from posttrain_jax.rollout.request import Asked, Rules, begin
from posttrain_jax.rollout.sampling import row_keys
from posttrain_jax.rollout.written import Written, as_rollout, blank, enter, known_experts


class Loop(NamedTuple):
    """The decode loop's state; the C axis is the completion.

    Attributes:
      place: how many completion tokens every live row has.
      token_B: the last sampled token, not yet in the cache.
      live_B: rows that go on.
      draw: what sampling carries of each row.
      experts_BTLA: as of `Rollout`, or None; prompt and completion.
    """

    place: Array
    token_B: Array
    live_B: Array
    cache: Cache
    written: Written
    draw: State
    experts_BTLA: Array | None = None


class Seen(NamedTuple):
    """What the host looks at after a stretch of decoding: `more` is False when all have ended."""

    more: Array
    live_B: Array
    finished_B: Array
    tokens_BC: Array
    mask_BC: Array


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def sample(model: Model, params: Params, asked: Asked, rules: Rules) -> Rollout:
    """Sample `group_size` completions of each prompt, rows of a prompt together."""
    params = unstack(params)
    loop = _decode(
        model, params, _prefill(model, params, asked, rules), asked, rules, rules.max_new
    )
    return _rollout(loop, asked, rules)


layers_apart = jax.jit(unstack)


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def start(model: Model, params: Params, asked: Asked, rules: Rules) -> tuple[Loop, Seen]:
    """The first token of every row; `advance` goes on from there. `params` are `layers_apart`."""
    loop = _prefill(model, params, asked, rules)
    return loop, _seen(loop, rules)


@functools.partial(
    jax.jit, static_argnames=("model", "rules", "stretch"), donate_argnames=("loop",)
)
def advance(
    model: Model, params: Params, loop: Loop, asked: Asked, rules: Rules, stretch: int
) -> tuple[Loop, Seen]:
    """Up to `stretch` more tokens for every live row; `loop` is used up."""
    loop = _decode(model, params, loop, asked, rules, loop.place + stretch)
    return loop, _seen(loop, rules)


def _seen(loop: Loop, rules: Rules) -> Seen:
    more = (loop.place < rules.max_new) & jnp.any(loop.live_B)
    written = loop.written
    shown = (loop.live_B, written.finished_N, written.tokens_NC, written.mask_NC)
    kept = (jnp.copy(x) for x in shown)  # loop is donated
    return Seen(more, *(constrain(x, "batch", *[None] * (x.ndim - 1)) for x in kept))


def _lengths(asked: Asked, rules: Rules) -> Array:
    return jnp.repeat(jnp.sum(asked.segments_PT, axis=1), rules.group_size)


def _draw(model: Model, params: Params, hidden_BD, loop: Loop, asked: Asked, rules: Rules) -> Loop:
    """Sample the next token of every row, and enter it where the row is live."""
    logits_BV = constrain(model.logits(params, hidden_BD), "batch", None)
    keys = row_keys(asked.key, asked.uids_B, _lengths(asked, rules) + loop.place)
    place_B = jnp.broadcast_to(loop.place, loop.live_B.shape)
    drawn = draw(logits_BV, keys, place_B, rules.sampling, asked.tables, loop.draw)
    drawn = drawn._replace(token_B=jnp.where(loop.live_B, drawn.token_B, rules.pad_id))
    ended_B = drawn.stop_B if drawn.full_B is None else drawn.stop_B | drawn.full_B
    finished_B = loop.written.finished_N | (loop.live_B & drawn.stop_B)

    def put(buffer, column):
        live = jnp.expand_dims(loop.live_B, range(1, column.ndim))
        kept = column if column is drawn.token_B else jnp.where(live, column, 0)
        column = kept[:, None].astype(buffer.dtype)
        place = (0, loop.place, *[0] * (buffer.ndim - 2))
        return jax.lax.dynamic_update_slice(buffer, column, place)

    return loop._replace(
        place=loop.place + 1,
        token_B=drawn.token_B,
        live_B=loop.live_B & jnp.logical_not(ended_B),
        written=enter(loop.written, drawn, finished_B, put),
        draw=drawn.state,
    )


def _prefill(model: Model, params: Params, asked: Asked, rules: Rules) -> Loop:
    """Each prompt once, an empty cache for each row behind it, and every row's first token."""
    prompts, width = asked.prompts_PT.shape
    rows, new = prompts * rules.group_size, rules.max_new
    hidden_PTD, cache, routing = model.routed(
        params,
        asked.prompts_PT,
        positions_BT=jnp.maximum(jnp.cumsum(asked.segments_PT, axis=1) - 1, 0),
        segments_BT=asked.segments_PT,
        cache=model.init_cache(prompts, width),
    )
    experts = None
    if rules.record_experts and routing is not None:
        known = known_experts(routing, asked.segments_PT != 0)
        after = ((0, 0), (0, new), (0, 0), (0, 0))
        known = jnp.pad(known, after, constant_values=-1)
        experts = jnp.repeat(known, rules.group_size, axis=0)
    loop = Loop(
        place=jnp.int32(0),
        token_B=jnp.zeros((rows,), jnp.int32),
        live_B=jnp.ones((rows,), bool),
        cache=model.init_cache(rows, new)._replace(prompts=cache),
        written=blank(asked, rules),
        draw=begin(model, asked, rules),
        experts_BTLA=experts,
    )
    last_BD = jnp.repeat(hidden_PTD[:, -1], rules.group_size, axis=0)
    return _draw(model, params, last_BD, loop, asked, rules)


def _decode(model: Model, params: Params, loop: Loop, asked: Asked, rules: Rules, until) -> Loop:
    """Decode until all rows have `until` tokens (`max_new` at most) or have ended.

    A step reads all places of a cache, so the first half of a completion has a cache half as long:
    a loop of its own to compile. More and shorter ones gain less than their compilation costs.
    """
    length_B = _lengths(asked, rules)
    width = asked.prompts_PT.shape[1]

    def step(loop: Loop) -> Loop:
        hidden_BTD, cache, routing = model.routed(
            params,
            loop.token_B[:, None],
            positions_BT=(length_B + loop.place - 1)[:, None],
            segments_BT=jnp.ones((len(length_B), 1), jnp.int32),
            cache=loop.cache,
        )
        loop = loop._replace(cache=cache)
        if loop.experts_BTLA is not None:
            known = known_experts(routing, loop.live_B[:, None])
            here = (0, width + loop.place - 1, 0, 0)
            experts = jax.lax.dynamic_update_slice(loop.experts_BTLA, known, here)
            loop = loop._replace(experts_BTLA=experts)
        return _draw(model, params, hidden_BTD[:, 0], loop, asked, rules)

    for room in (-(-rules.max_new // 2), rules.max_new):
        end, cache = jnp.minimum(until, room), loop.cache
        more = lambda loop, end=end: (loop.place < end) & jnp.any(loop.live_B)  # noqa: E731
        loop = loop._replace(cache=first_places(cache, room))
        loop = jax.lax.while_loop(more, step, loop)
        loop = loop._replace(cache=put_back(cache, loop.cache))
    return loop


@functools.partial(jax.jit, static_argnames=("rules",))
def finish(loop: Loop, asked: Asked, rules: Rules) -> Rollout:
    """The rollout of a loop that has come to its end."""
    return _rollout(loop, asked, rules)


def _rollout(loop: Loop, asked: Asked, rules: Rules) -> Rollout:
    return as_rollout(loop.written, asked, rules, loop.experts_BTLA)

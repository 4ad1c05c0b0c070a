"""Prompts into a queue's pool: several at once, at one of a few widths.

Prompts are left-padded to one width, which the longest of a whole run would fill. Some at a time go
through the model as wide as the narrowest of `prompt_widths` that holds them all.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from posttrain_jax.api import Model, Params, Routing
from posttrain_jax.models.transformer import Cache, Pool
from posttrain_jax.rollout import pools, slots, spread
from posttrain_jax.rollout.request import Asked
from posttrain_jax.rollout.slots import Slots
from posttrain_jax.rollout.written import Written, note_experts

WIDTHS = 3
"""At how many widths at most: each is compiled."""
NARROWEST = 64
"""No width is below it: less saves no time there."""


def prompt_widths(width: int, narrowest: int) -> tuple[int, ...]:
    """The widths that prompts of so many places are prefilled at, rising: halves and quarters."""
    widths = [width >> halvings for halvings in range(WIDTHS)]
    return tuple(w for w in reversed(widths) if w >= narrowest or w == width)


def prefill(
    model: Model, params: Params, asked: Asked, s: Slots, pool: Pool, written: Written, *,
    count: int, narrowest: int,
) -> tuple[Slots, Pool, Written]:  # fmt: skip
    """Up to `count` prompts into the pool, each without its last token, a place to the right;
    where it is asked for, their tokens' experts are noted for all of their group."""
    prompts, width = asked.prompts_PT.shape
    shift = lambda x_PT: jnp.pad(x_PT[:, :-1], ((0, 0), (1, 0)))  # noqa: E731
    tokens_PW, segments_PW = shift(asked.prompts_PT), shift(asked.segments_PT)
    s, prompt, entry = slots.enter_prompts(s, segments_PW != 0, count)
    chosen = jnp.minimum(prompt, prompts - 1)

    def read(last: int) -> tuple[Cache, Routing | None]:
        """Of all places, with the last ones filled; what is left of these is padding."""
        first = width - last
        segments_BT = segments_PW[chosen, first:]
        _, cache, routing = model.routed(
            params, tokens_PW[chosen, first:],
            positions_BT=jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0),
            segments_BT=segments_BT,
            cache=model.init_cache(count, width)._replace(filled=jnp.int32(first)),
        )  # fmt: skip
        before = lambda x: jnp.pad(x, [(first * (axis == 2), 0) for axis in range(x.ndim)])  # noqa: E731
        return cache, jax.tree.map(before, routing)

    widths, which = prompt_widths(width, narrowest), jnp.int32(0)
    if len(widths) > 1:
        length_B = jnp.where(prompt < prompts, jnp.sum(segments_PW[chosen], axis=1), 0)
        too_narrow = jnp.max(length_B) > jnp.array(widths[:-1])
        which = jnp.sum(spread.anywhere(too_narrow), dtype=jnp.int32)
    cache, routing = jax.lax.switch(which, [functools.partial(read, last) for last in widths])
    row_BR = prompt[:, None] * slots.group_of(s) + jnp.arange(slots.group_of(s))
    written = note_experts(
        written, routing, row_BR, jnp.full(count, -1), segments_PW[chosen] != 0
    )  # fmt: skip
    prefilled = s.prefilled + count * jnp.array(widths, jnp.int32)[which]
    return s._replace(prefilled=prefilled), pools.enter_prompts(pool, cache, entry), written

"""The sampler: one jitted call that prefills each prompt once and decodes until all are done.

Prompts are left-padded to one width, so every row writes its cache at the same place. The cache
of a prompt is made once and fanned out to its group. A token depends on (seed, sequence uid,
position) only. Left out here: refilling finished rows, paging, stop strings, tools.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Model, Params, Rollout
from posttrain_jax.mesh import constrain
from posttrain_jax.models.transformer import Cache, unstack
from posttrain_jax.rollout.sampling import Sampling, row_keys, sample_token


class Loop(NamedTuple):
    """The decode loop's state; the C axis is the completion.

    Attributes:
      place: how many completion tokens every live row has.
      token_B: the last sampled token, not yet in the cache.
      live_B: rows that have sampled no stop token.
    """

    place: Array
    token_B: Array
    live_B: Array
    cache: Cache
    tokens_BC: Array
    mask_BC: Array
    behaviour_logp_BC: Array
    model_logp_BC: Array


def fan_out(cache: Cache, group_size: int, length: int) -> Cache:
    """Repeat each prompt's cache for its group and make room for `length` places in all."""
    room = length - cache.segments_BS.shape[1]
    wide = lambda x, pads: jnp.repeat(jnp.pad(x, pads), group_size, axis=0)  # noqa: E731
    none = (0, 0)
    return Cache(
        tuple(wide(k, (none, none, none, (0, room))) for k in cache.k_BKHS),
        tuple(wide(v, (none, none, (0, room), none)) for v in cache.v_BKSH),
        wide(cache.segments_BS, (none, (0, room))),
        cache.filled,
    )


@functools.partial(
    jax.jit, static_argnames=("model", "sampling", "group_size", "max_new", "pad_id")
)
def sample(
    model: Model,
    params: Params,
    prompts_PT: Array,
    segments_PT: Array,
    key: Array,
    uids_B: Array,
    *,
    sampling: Sampling,
    group_size: int = 1,
    max_new: int,
    pad_id: int = 0,
) -> Rollout:
    """Sample `group_size` completions of each prompt, rows of a prompt together.

    Args:
      prompts_PT: token ids, left-padded.
      segments_PT: 1 on prompt tokens, 0 on padding.
      key: the sampling key of the run; row b samples from (key, uids_B[b], position).
      max_new: completion tokens at most.
      pad_id: fills the places after a sequence's end.
    """
    prompts, width = prompts_PT.shape
    rows = prompts * group_size
    params = unstack(params)
    lengths_P = jnp.sum(segments_PT, axis=1)
    positions_PT = jnp.maximum(jnp.cumsum(segments_PT, axis=1) - 1, 0)
    hidden, cache = model.apply(
        params, prompts_PT, positions_BT=positions_PT, segments_BT=segments_PT,
        cache=model.init_cache(prompts, width),
    )  # fmt: skip
    length_B = jnp.repeat(lengths_P, group_size)

    def draw(logits_BV, place):
        keys = row_keys(key, uids_B, length_B + place)
        return sample_token(constrain(logits_BV, "batch", None), keys, sampling)

    def record(loop: Loop, token, behaviour, model_logp) -> Loop:
        token = jnp.where(loop.live_B, token, pad_id)
        stop = functools.reduce(jnp.logical_or, [token == s for s in sampling.stop], False)
        put = lambda buffer, column: jax.lax.dynamic_update_slice(  # noqa: E731
            buffer, jnp.where(loop.live_B, column, 0)[:, None].astype(buffer.dtype), (0, loop.place)
        )
        return loop._replace(
            place=loop.place + 1,
            token_B=token,
            live_B=loop.live_B & ~stop,
            tokens_BC=jax.lax.dynamic_update_slice(loop.tokens_BC, token[:, None], (0, loop.place)),
            mask_BC=put(loop.mask_BC, loop.live_B),
            behaviour_logp_BC=put(loop.behaviour_logp_BC, behaviour),
            model_logp_BC=put(loop.model_logp_BC, model_logp),
        )

    def decode(loop: Loop) -> Loop:
        hidden, cache = model.apply(
            params, loop.token_B[:, None],
            positions_BT=(length_B + loop.place - 1)[:, None],
            segments_BT=jnp.ones((rows, 1), jnp.int32),
            cache=loop.cache,
        )  # fmt: skip
        drawn = draw(model.logits(params, hidden[:, 0]), loop.place)
        return record(loop._replace(cache=cache), *drawn)

    zeros = jnp.zeros((rows, max_new), jnp.float32)
    loop = Loop(
        place=jnp.int32(0),
        token_B=jnp.zeros((rows,), jnp.int32),
        live_B=jnp.ones((rows,), bool),
        cache=fan_out(cache, group_size, width + max_new),
        tokens_BC=jnp.full((rows, max_new), pad_id, jnp.int32),
        mask_BC=jnp.zeros((rows, max_new), bool),
        behaviour_logp_BC=zeros,
        model_logp_BC=zeros,
    )
    first = jnp.repeat(model.logits(params, hidden[:, -1]), group_size, axis=0)
    loop = record(loop, *draw(first, 0))
    loop = jax.lax.while_loop(
        lambda loop: (loop.place < max_new) & jnp.any(loop.live_B), decode, loop
    )
    return _rollout(loop, prompts_PT, segments_PT, group_size)


def _rollout(loop: Loop, prompts_PT, segments_PT, group_size: int) -> Rollout:
    """Prompt and completion side by side; every array aligned with the tokens."""
    wide = lambda x: jnp.repeat(x, group_size, axis=0)  # noqa: E731
    beside = lambda x_BC: jnp.pad(x_BC, ((0, 0), (prompts_PT.shape[1], 0)))  # noqa: E731
    segments = jnp.concatenate([wide(segments_PT), loop.mask_BC.astype(jnp.int32)], axis=1)
    out = Rollout(
        tokens_BT=jnp.concatenate([wide(prompts_PT), loop.tokens_BC], axis=1),
        positions_BT=jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0),
        segments_BT=segments,
        completion_mask_BT=beside(loop.mask_BC),
        behaviour_logp_BT=beside(loop.behaviour_logp_BC),
        model_logp_BT=beside(loop.model_logp_BC),
        finished_B=~loop.live_B,
    )
    return jax.tree.map(lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)), out)

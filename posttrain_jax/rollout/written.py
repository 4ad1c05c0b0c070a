"""What a sampler writes of each sequence while it samples, and the rollout that becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Rollout, Routing
from posttrain_jax.mesh import constrain
from posttrain_jax.models import ModelConfig
from posttrain_jax.rollout.draw import Drawn
from posttrain_jax.rollout.request import Asked, Rules


class Written(NamedTuple):
    """A row a sequence; the C axis is the completion. The last four may be None.

    Attributes:
      mask_NC: True on tokens.
      behaviour_logp_NC, model_logp_NC: as of `Rollout`.
      finished_N: sequences that have sampled a stop token or string.
      free_NC: True on tokens that were sampled, not forced.
      top_tokens_NCJ, top_logp_NCJ: as of `draw.Drawn`.
      experts_NTLA: as of `Rollout`; of a queue, the plain loop keeps its own.
    """

    tokens_NC: Array
    mask_NC: Array
    behaviour_logp_NC: Array
    model_logp_NC: Array
    finished_N: Array
    free_NC: Array | None = None
    top_tokens_NCJ: Array | None = None
    top_logp_NCJ: Array | None = None
    experts_NTLA: Array | None = None


def blank(asked: Asked, rules: Rules) -> Written:
    """Nothing yet."""
    rows, likeliest = len(asked.uids_B), rules.sampling.top_logprobs
    shape = (rows, rules.max_new)
    zeros, no = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)
    forced = rules.sampling.thinking or asked.prefix_BQ is not None or rules.inserts
    return Written(
        jnp.full(shape, rules.pad_id, jnp.int32), no, zeros, zeros, jnp.zeros(rows, bool),
        no if forced else None,
        jnp.zeros((*shape, likeliest), jnp.int32) if likeliest else None,
        jnp.zeros((*shape, likeliest), jnp.float32) if likeliest else None,
    )  # fmt: skip


def enter(
    written: Written, drawn: Drawn, finished_N: Array, put: Callable[[Array, Array], Array]
) -> Written:
    """One more token of every sequence that goes on.

    Args:
      put: puts a column, one value a row of the sampler, to its place in a buffer.
    """
    of = lambda buffer, column: None if buffer is None else put(buffer, column)  # noqa: E731
    all_B = jnp.ones(drawn.token_B.shape, bool)
    return Written(
        put(written.tokens_NC, drawn.token_B),
        put(written.mask_NC, all_B),
        put(written.behaviour_logp_NC, drawn.behaviour_logp_B),
        put(written.model_logp_NC, drawn.model_logp_B),
        finished_N,
        of(written.free_NC, all_B if drawn.free_B is None else drawn.free_B),
        of(written.top_tokens_NCJ, drawn.top_tokens_BJ),
        of(written.top_logp_NCJ, drawn.top_logp_BJ),
        written.experts_NTLA,
    )


def no_experts(written: Written, asked: Asked, config: ModelConfig) -> Written:
    """With room for the experts of every token; as it is where the model has none."""
    if config.experts is None:
        return written
    layers = sum(stack.depth for stack in config.stacks if stack.sparse)
    rows, places = written.tokens_NC.shape
    shape = (rows, asked.prompts_PT.shape[1] + places, layers, config.experts.active)
    return written._replace(experts_NTLA=jnp.full(shape, -1, jnp.int16))


def note_experts(
    written: Written, routing: Routing | None, row_BR: Array, first_B: Array, real_BT: Array
) -> Written:
    """The experts of tokens that the model has read; as it is where nobody asks for them.

    Args:
      row_BR: the sequences that the tokens of a row are in, all at the same places.
      first_B: the place of a row's first token, counted from that of the first of all prompts.
      real_BT: the tokens that count; others, and sequences beyond the last, are left out.
    """
    experts_NTLA = written.experts_NTLA
    if experts_NTLA is None or routing is None:
        return written
    place_BT = first_B[:, None] + jnp.arange(real_BT.shape[1])
    place_BT = jnp.where(real_BT, place_BT, experts_NTLA.shape[1])
    known_BTLA = known_experts(routing, real_BT)
    at = experts_NTLA.at[row_BR[:, :, None], place_BT[:, None]]
    return written._replace(experts_NTLA=at.set(known_BTLA[:, None], mode="drop"))


def known_experts(routing: Routing, real_BT: Array) -> Array:
    """The experts of real tokens [B, T, L, A], int16; -1 for all others."""
    experts_BTLA = jnp.moveaxis(routing.experts_LBTA, 0, 2)
    return jnp.where(real_BT[..., None, None], experts_BTLA, -1).astype(jnp.int16)


def as_rollout(
    written: Written, asked: Asked, rules: Rules, experts_BTLA: Array | None = None
) -> Rollout:
    """Prompt and completion side by side; every array aligned with the tokens."""
    mask_BC, free_BC, width = written.mask_NC, written.free_NC, asked.prompts_PT.shape[1]
    wide = lambda x: jnp.repeat(x, rules.group_size, axis=0)  # noqa: E731

    def beside(x: Any) -> Any:
        if x is None:
            return None
        return jnp.pad(x, ((0, 0), (width, 0), *[(0, 0)] * (x.ndim - 2)))

    segments = jnp.concatenate([wide(asked.segments_PT), mask_BC.astype(jnp.int32)], axis=1)
    out = Rollout(
        tokens_BT=jnp.concatenate([wide(asked.prompts_PT), written.tokens_NC], axis=1),
        positions_BT=jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0),
        segments_BT=segments,
        completion_mask_BT=beside(mask_BC if free_BC is None else mask_BC & free_BC),
        behaviour_logp_BT=beside(written.behaviour_logp_NC),
        model_logp_BT=beside(written.model_logp_NC),
        finished_B=written.finished_N,
        experts_BTLA=written.experts_NTLA if experts_BTLA is None else experts_BTLA,
        whole_mask_BT=None if free_BC is None else beside(mask_BC),
        top_tokens_BTJ=beside(written.top_tokens_NCJ),
        top_logp_BTJ=beside(written.top_logp_NCJ),
    )
    return jax.tree.map(lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)), out)

"""What a rollout is asked for: prompts and row settings (arrays), rules (static)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Model
from posttrain_jax.rollout import draw_state
from posttrain_jax.rollout.draw_state import NO_TABLES, State, Tables
from posttrain_jax.rollout.row_settings import RowSettings
from posttrain_jax.rollout.sampling import Sampling


class Asked(NamedTuple):
    """What a rollout is of.

    Attributes:
      prompts_PT: token ids, left-padded.
      segments_PT: 1 on prompt tokens, 0 on padding.
      key: the sampling key of the run; row b samples from (key, uids_B[b], position).
      rows: settings of single rows.
      tables: of `Rules.sampling`.
      prefix_BQ: tokens that each response begins with, -1 behind them.
      thinking_B: rows that think; None: all. See `draw_state.start`.
    """

    prompts_PT: Array
    segments_PT: Array
    key: Array
    uids_B: Array
    rows: RowSettings = RowSettings()
    tables: Tables = NO_TABLES
    prefix_BQ: Array | None = None
    thinking_B: Array | None = None


class Rules(NamedTuple):
    """How a rollout is made; static.

    Attributes:
      max_new: completion tokens at most.
      pad_id: fills the places after a sequence's end.
      record_experts: a rollout tells which experts of a mixture its tokens went to.
      inserts: tokens that the host puts behind a call at most; 0: it is never asked.
      turns: it is also asked where a sequence ends with a stop token.
      cache_dtype: what a queue keeps keys and values in: `bfloat16`, `int8` with a scale for each
        token and kv head, or "", the model's type.
    """

    sampling: Sampling
    max_new: int
    group_size: int = 1
    pad_id: int = 0
    record_experts: bool = False
    inserts: int = 0
    turns: bool = False
    cache_dtype: str = ""


def begin(model: Model, asked: Asked, rules: Rules, row_B: Array | None = None) -> State:
    """What sampling carries of these rows (None: all of them) before their first token."""
    if row_B is None:
        chosen = lambda x: x  # noqa: E731
        prompt = lambda x_PT: jnp.repeat(x_PT, rules.group_size, axis=0)  # noqa: E731
    else:
        chosen = lambda x: x[row_B]  # noqa: E731
        prompt = lambda x_PT: x_PT[row_B // rules.group_size]  # noqa: E731
    own = (asked.rows, asked.prefix_BQ, asked.thinking_B)
    rows, prefix_BQ, thinking_B = jax.tree.map(lambda x: chosen(jnp.asarray(x)), own)
    batch = len(asked.uids_B) if row_B is None else len(row_B)
    return draw_state.start(
        batch, model.config.vocab_size, rules.sampling, rows=rows,
        prompt_BT=prompt(asked.prompts_PT), mask_BT=prompt(asked.segments_PT) != 0,
        prefix_BQ=prefix_BQ, thinking_B=thinking_B,
    )  # fmt: skip

"""Preferences as batches: weights on the tokens of responses, and rows that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from posttrain_jax.api import Batch
from posttrain_jax.data.loader import row_batch
from posttrain_jax.data.pairs import Layout, aligned, lay_out, one_a_row, packed
from posttrain_jax.data.preferences import Side
from posttrain_jax.mesh import batch_shards

Marks = Sequence[Sequence[Any]]
"""A number for each token of each sequence of each group."""


def find_layout(
    config: Any, mesh: Mesh, groups: Sequence[Sequence[Side]], steps: Sequence[Sequence[int]],
    parts: int,
) -> Layout:  # fmt: skip
    """How the groups of each step lie in rows.

    Args:
      config: of the stage: length, row_length, pairs_per_step.
      groups: of one size, all there are.
      steps: the groups of each step, by number.
      parts: the rows are to divide into so many microbatches.
    """
    tokens = [[side.tokens for side in group] for group in groups]
    if not config.row_length:
        # A first token that counts has nothing before it: no padding either.
        weighty = any(s.said[0] or s.template[0] for group in groups for s in group)
        if len(groups[0]) == 1 or weighty:
            return one_a_row(config.length, config.pairs_per_step, len(groups[0]))
        return aligned(tokens, config.length, config.pairs_per_step)
    return packed(tokens, steps, config.row_length, batch_shards(mesh) * parts)


def compared(side: Side, mask_formatting: bool) -> np.ndarray:
    """The tokens that a comparison sums over: all that was said, or only what is not template."""
    return side.said & ~side.template if mask_formatting else side.said


def imitation(
    groups: Sequence[tuple[Side, Side]], total: int, coef: float, norm: str, mask_formatting: bool
) -> Marks:
    """Weights of the chosen responses' negative log-likelihood.

    Args:
      total: each group's share is 1 / total.
      norm: `response`, `batch` or `sum`, see stages/preference.py.
      mask_formatting: the template's tokens, headers too, are imitated with the response.
    """
    chosen = [group[0] for group in groups]
    masks = [side.said | side.template if mask_formatting else side.said for side in chosen]
    tokens = np.array([mask.sum() for mask in masks])
    divisors = {
        "response": tokens,
        "batch": np.full(len(tokens), tokens.mean()),
        "sum": 1 + 0 * tokens,
    }
    weights = coef / total / divisors[norm]
    return [
        [mask * np.float32(weight), np.zeros(len(group[1].tokens), np.float32)]
        for mask, weight, group in zip(masks, weights, groups, strict=True)
    ]


def spread(groups: Sequence[Sequence[Side]], logp: Sequence[Sequence[np.ndarray]]) -> Marks:
    """Log-probs of the responses' tokens at their places in the sequences, 0 elsewhere."""
    found = [[np.zeros(len(side.tokens), np.float32) for side in group] for group in groups]
    for whole, group, values in zip(found, groups, logp, strict=True):
        for each, side, value in zip(whole, group, values, strict=True):
            each[side.said] = value
    return found


def place(
    mesh: Mesh, groups: Sequence[Sequence[Side]], layout: Layout, pad_id: int,
    marks: Mapping[str, Marks],
) -> Batch:  # fmt: skip
    """Groups on the mesh.

    Args:
      marks: what goes into fields of the batch, by their names; `weight_BT` is one of them.
    """
    tokens = [[side.tokens for side in group] for group in groups]
    everywhere = list(range(layout.rows))
    fields = {
        name: row_batch(mesh, lay_out(tokens, layout, pad_id, values), everywhere)
        for name, values in marks.items()
    }
    return fields["weight_BT"]._replace(**{name: batch.weight_BT for name, batch in fields.items()})

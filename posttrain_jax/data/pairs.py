"""Pairs of sequences in rows of one shape: one sequence a row, or packed.

A step has the same pairs either way. Packed, both sequences of a pair lie in one row, the first
one first, and every sequence keeps its own segment and positions; a step then has as many rows as
the step that needs most, found before training from the lengths alone, so that all steps have one
shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain_jax.data.pack import Rows, best_fit, fill

Pair = tuple[Any, Any]
"""The tokens of two sequences, each a list or an array."""


class Layout(NamedTuple):
    """The shape of a step.

    Attributes:
      length: tokens a row.
      rows: rows a step.
      sequences: the most sequences that lie in a row; 1 where they are not packed.
    """

    length: int
    rows: int
    sequences: int

    @property
    def together(self) -> int:
        """How many rows, one after the other, hold whole pairs."""
        return 2 if self.sequences == 1 else 1


def one_a_row(length: int, pairs: int) -> Layout:
    """The layout of `pairs` pairs a step with one sequence a row."""
    return Layout(length, 2 * pairs, 1)


def packed(
    sizes: Sequence[int], steps: Iterable[Sequence[int]], length: int, multiple: int
) -> Layout:
    """The layout in which the pairs of every step fit into rows of `length` tokens.

    Args:
      sizes: tokens of each pair, both sequences together.
      steps: the pairs of each step, by number.
      multiple: what the number of rows must be a multiple of.

    Raises:
      ValueError: a pair that is longer than a row.
    """
    if (longest := max(sizes)) > length:
        raise ValueError(f"a pair has {longest} tokens, over row_length={length}: raise row_length")
    rows, most = 1, 1
    for step in steps:
        packed_rows = best_fit([sizes[pair] for pair in step], length)
        rows, most = max(rows, len(packed_rows)), max(most, *map(len, packed_rows))
    return Layout(length, -(-rows // multiple) * multiple, 2 * most)


def lay_out(pairs: Sequence[Pair], layout: Layout, pad_id: int) -> Rows:
    """The rows of a step; the mask is 1 on the last token of each sequence."""
    if layout.sequences == 1:
        members = [[sequence] for pair in pairs for sequence in pair]
    else:
        fitted = best_fit([len(first) + len(second) for first, second in pairs], layout.length)
        members = [[s for number in row for s in pairs[number]] for row in fitted]
    last = lambda sequence: np.arange(1, len(sequence) + 1) == len(sequence)  # noqa: E731
    marked = [[(sequence, last(sequence)) for sequence in row] for row in members]
    return fill(marked, layout.length, pad_id, layout.rows)

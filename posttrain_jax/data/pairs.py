"""Sequences that are compared, pairs for example, in rows of one shape.

A step has the same groups of sequences in either layout. With one sequence a row, the rows of a
group lie one after the other. Packed, the sequences of a group lie in one row, the first one first,
and every sequence keeps its own segment and positions; a step then has as many rows as the step
that needs most, found before training from the lengths alone, so that all steps have one shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from posttrain_jax.data.pack import Rows, best_fit, fill

Group = Sequence[Any]
"""The tokens of each sequence, a list or an array."""


class Layout(NamedTuple):
    """The shape of a step.

    Attributes:
      length: tokens a row.
      rows: rows a step.
      sequences: the most sequences that lie in a row; 1 where they are not packed.
      members: sequences of a group: 2 for pairs.
    """

    length: int
    rows: int
    sequences: int
    members: int = 2

    @property
    def together(self) -> int:
        """How many rows, one after the other, hold whole groups."""
        return self.members if self.sequences == 1 else 1


def one_a_row(length: int, groups: int, members: int = 2) -> Layout:
    """The layout of so many groups a step with one sequence a row."""
    return Layout(length, members * groups, 1, members)


def packed(
    groups: Sequence[Group], steps: Iterable[Sequence[int]], length: int, multiple: int
) -> Layout:
    """The layout in which the groups of every step fit into rows of `length` tokens.

    Args:
      groups: all of them, of equally many sequences.
      steps: the groups of each step, by number.
      multiple: what the number of rows must be a multiple of.

    Raises:
      ValueError: a group that is longer than a row.
    """
    sizes = [_size(group) for group in groups]
    members = len(groups[0])
    if (longest := max(sizes)) > length:
        what = "a pair" if members == 2 else "a sequence"
        raise ValueError(f"{what} has {longest} tokens, over row_length={length}: raise row_length")
    rows, most = 1, 1
    for step in steps:
        fitted = best_fit([sizes[number] for number in step], length)
        rows, most = max(rows, len(fitted)), max(most, *map(len, fitted))
    return Layout(length, -(-rows // multiple) * multiple, members * most, members)


def lay_out(
    groups: Sequence[Group],
    layout: Layout,
    pad_id: int,
    marks: Sequence[Sequence[Any]],
) -> Rows:
    """The rows of a step.

    Args:
      marks: a number for each token of each sequence; they are the mask.
    """
    marked = [list(zip(*both, strict=True)) for both in zip(groups, marks, strict=True)]
    if layout.sequences == 1:
        members = [[sequence] for group in marked for sequence in group]
    else:
        fitted = best_fit([_size(group) for group in groups], layout.length)
        members = [[s for number in row for s in marked[number]] for row in fitted]
    return fill(members, layout.length, pad_id, layout.rows)


def _size(group: Group) -> int:
    return sum(map(len, group))

"""Sequences that are compared, pairs for example, in rows of one shape.

A step has the same groups of sequences in either layout. With one sequence a row, the rows of a
group lie one after the other. Packed, the sequences of a group lie in one row, the first one first,
and every sequence keeps its own segment and positions; a step then has as many rows as the step
that needs most, found before training from the lengths alone, so that all steps have one shape.

Where the sequences of every group begin alike, as the sides of a pair do with their prompt, one
sequence a row can stand so that those beginnings end at one place, with padding before the shorter
ones: a model then reads each beginning once a group (models/sharing.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

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
      prompt: so many places at the beginning are the same in all rows of a group.
    """

    length: int
    rows: int
    sequences: int
    members: int = 2
    prompt: int = 0

    @property
    def together(self) -> int:
        """How many rows, one after the other, hold whole groups."""
        return self.members if self.sequences == 1 else 1


def one_a_row(length: int, groups: int, members: int = 2) -> Layout:
    """The layout of so many groups a step with one sequence a row."""
    return Layout(length, members * groups, 1, members)


def beginning(group: Group) -> int:
    """How many tokens all sequences of a group begin with alike."""
    least = min(map(len, group))
    first = np.asarray(group[0][:least])
    same = np.all([np.asarray(other[:least]) == first for other in group], axis=0)
    return least if same.all() else int(np.argmin(same))


def aligned(groups: Sequence[Group], length: int, count: int) -> Layout:
    """One sequence a row, so that beginnings end at one place if that is less work to read.

    Args:
      groups: all of them, of equally many sequences.
      length: tokens a row otherwise.
      count: groups a step.
    """
    plain, alike = one_a_row(length, count, len(groups[0])), [beginning(group) for group in groups]
    prompt = max(alike)
    rest = max(max(map(len, group)) - n for group, n in zip(groups, alike, strict=True))
    if min(alike) == 0 or prompt + plain.members * rest >= plain.members * length:
        return plain
    return plain._replace(length=prompt + rest, prompt=prompt)


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
    rows = fill(members, layout.length, pad_id, layout.rows)
    return _moved(rows, groups, layout) if layout.prompt else rows


def _moved(rows: Rows, groups: Sequence[Group], layout: Layout) -> Rows:
    """Rows of one sequence each, moved to where the beginning of its group ends."""
    by = np.zeros((layout.rows, 1), np.int64)
    shifts = [layout.prompt - beginning(group) for group in groups]
    by[: len(groups) * layout.members, 0] = np.repeat(shifts, layout.members)
    source = (np.arange(layout.length) - by) % layout.length
    return Rows(*(np.take_along_axis(x, source, axis=1) for x in rows))


def _size(group: Group) -> int:
    return sum(map(len, group))

"""Rows with marked places, at which a head is read, and what it should say there.

A step has groups of responses (a pair, all samples of a prompt, a single one). They lie in rows of
one shape, in one of three layouts:
  one a row   every response is a row, the rows of a group one after the other;
  packed      whole groups share rows; each response has its prompt before it, and a segment and
              positions of its own, so that packing changes no score;
  shared      as packed, with one prompt for all responses of a group, in one segment: each response
              sees those before it. Llama 3 trains its reward model so, in shuffled order (arXiv
              2407.21783, section 4.1.2: an approximation that saves time and cost no accuracy).
A step has as many rows as the step that needs most, found before training from the lengths alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain_jax.api import Array, Batch
from posttrain_jax.data.pack import best_fit


class Response(NamedTuple):
    """The tokens of one conversation.

    Attributes:
      tokens: int32, prompt and response.
      prompt: how many of them stand before the response.
      labels: what the head should say at the last one; NaN is not known.
    """

    tokens: np.ndarray
    prompt: int
    labels: tuple[float, ...]


class Group(NamedTuple):
    """Responses that are compared, and the margin between a better and a worse one."""

    responses: tuple[Response, ...]
    margin: float = 0.0


class Marked(NamedTuple):
    """Rows, and M marks on each; the marks of a group lie side by side.

    Attributes:
      batch: its weights are 1 at the marks.
      place_BM: int32, where a mark is; 0 where there is none.
      prompt_BM: int32, the last token of the prompt that the marked response answers.
      label_BMO: float32, what the head should say; 0 where it is not known.
      weight_BMO: float32, 0 where no label is known.
      margin_BM: float32, the margin of the mark's group.
    """

    batch: Batch
    place_BM: Array
    prompt_BM: Array
    label_BMO: Array
    weight_BMO: Array
    margin_BM: Array


class Layout(NamedTuple):
    """The shape of a step.

    Attributes:
      length: tokens a row.
      rows: rows a step.
      members: the most responses of a group.
      groups: the most groups in a row; 0 where each response has a row of its own.
      shared: the responses of a group have one prompt.
    """

    length: int
    rows: int
    members: int
    groups: int = 0
    shared: bool = False

    @property
    def together(self) -> int:
        """How many rows, one after the other, hold whole groups."""
        return 1 if self.groups else self.members


def one_a_row(length: int, groups: int, members: int) -> Layout:
    """The layout of so many groups a step with one response a row."""
    return Layout(length, groups * members, members)


def packed(
    groups: Sequence[Group], steps: Iterable[Sequence[int]], length: int, multiple: int,
    shared: bool = False,
) -> Layout:  # fmt: skip
    """The layout in which the groups of every step fit into rows of `length` tokens.

    Args:
      steps: the groups of each step, by number.
      multiple: what the number of rows must be a multiple of.

    Raises:
      ValueError: a group that is longer than a row.
    """
    sizes = [_size(group, shared) for group in groups]
    if (longest := max(sizes)) > length:
        raise ValueError(
            f"the responses to one prompt have {longest} tokens, over row_length={length}: raise "
            "row_length, or set it to 0 for one response a row"
        )
    rows, most = 1, 1
    for step in steps:
        fitted = best_fit([sizes[number] for number in step], length)
        rows, most = max(rows, len(fitted)), max(most, *map(len, fitted))
    members = max(len(group.responses) for group in groups)
    return Layout(length, -(-rows // multiple) * multiple, members, most, shared)


def lay_out(
    groups: Sequence[Group], layout: Layout, pad_id: int, rng: np.random.Generator | None = None
) -> Marked:
    """The rows of a step; every label weighs 1 / groups.

    Args:
      rng: shuffles the responses of each group.
    """
    if rng is not None:
        groups = [
            g._replace(responses=tuple(g.responses[i] for i in rng.permutation(len(g.responses))))
            for g in groups
        ]
    marks = layout.members * layout.groups or 1
    out = _empty(layout, marks, len(groups[0].responses[0].labels), pad_id)
    used, segments = np.zeros(layout.rows, int), np.zeros(layout.rows, int)
    for row, slot, group in _seats(groups, layout):
        first, seen = used[row], 0
        for number, response in enumerate(group.responses):
            again = layout.shared and number > 0
            tokens = response.tokens[response.prompt if again else 0 :]
            if not again:
                first, seen = used[row], 0
                segments[row] += 1
            place = slice(used[row], used[row] + len(tokens))
            out.batch.tokens_BT[row, place] = tokens
            out.batch.positions_BT[row, place] = np.arange(seen, seen + len(tokens))
            out.batch.segments_BT[row, place] = segments[row]
            used[row] += len(tokens)
            seen += len(tokens)
            mark, labels = (row, slot + number), np.asarray(response.labels, np.float32)
            out.batch.weight_BT[row, used[row] - 1] = 1
            out.place_BM[mark] = used[row] - 1
            out.prompt_BM[mark] = first + max(0, min(response.prompt, len(response.tokens)) - 1)
            out.label_BMO[mark] = np.nan_to_num(labels)
            out.weight_BMO[mark] = np.isfinite(labels) / np.float32(len(groups))
            out.margin_BM[mark] = group.margin
    return out


def _size(group: Group, shared: bool) -> int:
    whole = sum(len(r.tokens) for r in group.responses)
    return whole - sum(r.prompt for r in group.responses[1:]) if shared else whole


def _seats(groups: Sequence[Group], layout: Layout) -> Iterator[tuple[int, int, Group]]:
    """The row and the first mark of each group, or of each response where it has its own row."""
    if not layout.groups:
        for number, group in enumerate(groups):
            for member, response in enumerate(group.responses):
                yield number * layout.members + member, 0, group._replace(responses=(response,))
        return
    fitted = best_fit([_size(group, layout.shared) for group in groups], layout.length)
    for row, numbers in enumerate(fitted):
        for place, number in enumerate(numbers):
            yield row, place * layout.members, groups[number]


def _empty(layout: Layout, marks: int, labels: int, pad_id: int) -> Marked:
    shape, marked = (layout.rows, layout.length), (layout.rows, marks)
    arrays: tuple[Any, ...] = (
        np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32),
        np.zeros(shape, np.float32),
    )  # fmt: skip
    batch = Batch(*arrays)
    marks_of: tuple[Any, ...] = (
        np.zeros(marked, np.int32), np.zeros(marked, np.int32),
        np.zeros((*marked, labels), np.float32), np.zeros((*marked, labels), np.float32),
        np.zeros(marked, np.float32),
    )  # fmt: skip
    return Marked(batch, *marks_of)

"""Packing: several sequences in a row of fixed length, told apart by segment ids.

Best fit in decreasing length: each sequence goes into the fullest row that still has room. Every
sequence keeps its own positions from 0, and attention stays within a segment, so a packed batch
gives the log-probs that its sequences have one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Packed rows, all [rows, length].

    Attributes:
      tokens, positions: int32.
      segments: int32; 0 is padding, 1, 2, ... the sequences of a row.
      mask: 1.0 on the tokens that bear loss.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    mask: np.ndarray


def pack(
    sequences: Sequence[tuple[Sequence[int], Sequence[bool]]], length: int, pad_id: int = 0
) -> tuple[Rows, int]:
    """Pack (tokens, loss mask) pairs into rows.

    Returns:
      the rows, and how many sequences were longer than `length` and left out.

    Raises:
      ValueError: no sequence fits.
    """
    fitting = [s for s in sequences if 0 < len(s[0]) <= length]
    if not fitting:
        raise ValueError(
            f"none of {len(sequences)} sequences fits in {length} tokens (the shortest has "
            f"{min((len(s[0]) for s in sequences), default=0)}): raise `length`"
        )
    members = best_fit([len(tokens) for tokens, _ in fitting], length)
    rows = fill([[fitting[member] for member in row] for row in members], length, pad_id)
    rows.mask[rows.positions == 0] = 0.0  # a first token has nothing to be predicted from
    return rows, len(sequences) - len(fitting)


def fill(
    members: Sequence[Sequence[tuple[Sequence[int], Any]]],
    length: int,
    pad_id: int,
    count: int | None = None,
) -> Rows:
    """Rows of these (tokens, mask) sequences, one behind the other, each a segment of its own.

    Args:
      members: the sequences of each row.
      count: rows in all, the last ones padding; default as many as there are members.
    """
    shape = (len(members) if count is None else count, length)
    out = Rows(
        np.full(shape, pad_id, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.float32),
    )
    for row, sequences in enumerate(members):
        start = 0
        for segment, (tokens, mask) in enumerate(sequences, start=1):
            place = slice(start, start + len(tokens))
            out.tokens[row, place] = tokens
            out.positions[row, place] = np.arange(len(tokens))
            out.segments[row, place] = segment
            out.mask[row, place] = mask
            start += len(tokens)
    return out


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices such that the lengths in each row sum to at most `capacity`."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = lengths[index]
        room = next((r for r in range(size, capacity + 1) if by_room[r]), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, capacity
        else:
            row = by_room[room].pop()
        rows[row].append(index)
        by_room[room - size].append(row)
    return rows

"""Pairs in rows: every sequence whole, beside its other half, in one shape for all steps."""

import numpy as np
import pytest

from posttrain_jax.data.pairs import lay_out, one_a_row, packed


def draw_pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, (count, 2))
    return [tuple(rng.integers(1, 50, size).tolist() for size in pair) for pair in sizes]


def sequences_of(rows, row):
    """What lies in a row, in order of segments, read token by token."""
    found = {}
    for token, place, segment, mask in zip(*(np.asarray(x)[row] for x in rows), strict=True):
        if segment == 0:
            assert (token, place, mask) == (99, 0, 0)
            continue
        sequence = found.setdefault(int(segment), ([], []))
        assert place == len(sequence[0])
        sequence[0].append(int(token))
        sequence[1].append(float(mask))
    assert list(found) == list(range(1, len(found) + 1))
    for _, mask in found.values():
        assert mask == [0.0] * (len(mask) - 1) + [1.0]
    return [tokens for tokens, _ in found.values()]


def test_one_sequence_a_row():
    pairs = draw_pairs(5)
    layout = one_a_row(8, 5)
    rows = lay_out(pairs, layout, pad_id=99)
    assert (layout.rows, layout.together, rows.tokens.shape) == (10, 2, (10, 8))
    for number, (first, second) in enumerate(pairs):
        assert sequences_of(rows, 2 * number) == [first]
        assert sequences_of(rows, 2 * number + 1) == [second]


@pytest.mark.parametrize("multiple", [1, 4])
def test_packed_pairs_stay_together(multiple):
    pairs = draw_pairs(40)
    sizes = [len(first) + len(second) for first, second in pairs]
    steps = [np.random.default_rng(i).permutation(40)[:12].tolist() for i in range(6)]
    layout = packed(sizes, steps, 24, multiple)
    assert layout.rows % multiple == 0 and layout.together == 1
    assert layout.rows < 12 and layout.sequences >= 4
    for step in steps:
        rows = lay_out([pairs[i] for i in step], layout, pad_id=99)
        assert rows.tokens.shape == (layout.rows, 24)
        found = []
        for row in range(layout.rows):
            members = sequences_of(rows, row)
            assert len(members) <= layout.sequences and len(members) % 2 == 0
            found += list(zip(members[0::2], members[1::2], strict=True))
        assert sorted(found) == sorted(pairs[i] for i in step)


def test_the_step_that_needs_most_rows_counts():
    # two pairs of 5 tokens share a row of 10, two of 6 do not
    assert packed([5, 5, 6, 6], [[0, 1]], 10, 1)[1:] == (1, 4)
    assert packed([5, 5, 6, 6], [[0, 1], [2, 3]], 10, 1)[1:] == (2, 4)


def test_a_pair_that_no_row_holds():
    with pytest.raises(ValueError, match="a pair has 30 tokens, over row_length=24"):
        packed([4, 30], [[0]], 24, 1)

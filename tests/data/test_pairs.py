"""Groups of sequences in rows: every one whole, beside its others, in one shape for all steps."""

import numpy as np
import pytest

from posttrain_jax.data.pairs import aligned, beginning, lay_out, one_a_row, packed


def draw_groups(count, members=2, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, (count, members))
    return [tuple(rng.integers(1, 50, size).tolist() for size in group) for group in sizes]


def marks_of(groups):
    """For each token a number that no other token has."""
    number = iter(np.arange(1, 1000) / 8)
    return [[[next(number) for _ in sequence] for sequence in group] for group in groups]


def sequences_of(rows, row):
    """(tokens, marks) of what lies in a row, in order of segments, read token by token."""
    found = {}
    for token, place, segment, mark in zip(*(np.asarray(x)[row] for x in rows), strict=True):
        if segment == 0:
            assert (token, place, mark) == (99, 0, 0)
            continue
        sequence = found.setdefault(int(segment), ([], []))
        assert place == len(sequence[0])
        sequence[0].append(int(token))
        sequence[1].append(float(mark))
    assert list(found) == list(range(1, len(found) + 1))
    return list(found.values())


@pytest.mark.parametrize("members", [1, 2, 3])
def test_one_sequence_a_row(members):
    groups = draw_groups(5, members)
    marks = marks_of(groups)
    layout = one_a_row(8, 5, members)
    rows = lay_out(groups, layout, 99, marks)
    assert (layout.rows, layout.together) == (5 * members, members)
    assert rows.tokens.shape == (5 * members, 8)
    for number, (group, marked) in enumerate(zip(groups, marks, strict=True)):
        for i in range(members):
            assert sequences_of(rows, members * number + i) == [(group[i], marked[i])]


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("multiple", [1, 4])
def test_packed_groups_stay_together(multiple, members):
    groups = draw_groups(40, members)
    marks = marks_of(groups)
    steps = [np.random.default_rng(i).permutation(40)[:12].tolist() for i in range(6)]
    layout = packed(groups, steps, 24, multiple)
    assert layout.rows % multiple == 0 and layout.together == 1
    assert layout.rows < 12 and layout.sequences >= 2 * members
    for step in steps:
        chosen = [groups[i] for i in step]
        rows = lay_out(chosen, layout, 99, [marks[i] for i in step])
        assert rows.tokens.shape == (layout.rows, 24)
        found = []
        for row in range(layout.rows):
            inside = sequences_of(rows, row)
            assert len(inside) <= layout.sequences and len(inside) % members == 0
            found += [inside[i : i + members] for i in range(0, len(inside), members)]
        expected = [list(zip(groups[i], marks[i], strict=True)) for i in step]
        assert sorted(found) == sorted(expected)


def test_the_step_that_needs_most_rows_counts():
    # two pairs of 5 tokens share a row of 10, two of 6 do not
    groups = [("..", "..."), ("...", ".."), ("...", "..."), ("....", "..")]
    assert packed(groups, [[0, 1]], 10, 1)[1:4] == (1, 4, 2)
    assert packed(groups, [[0, 1], [2, 3]], 10, 1)[1:4] == (2, 4, 2)


@pytest.mark.parametrize(("members", "what"), [(1, "a sequence has 30"), (2, "a pair has 60")])
def test_a_group_that_no_row_holds(members, what):
    with pytest.raises(ValueError, match=f"{what} tokens, over row_length=24"):
        packed([("....",) * members, ("." * 30,) * members], [[0]], 24, 1)


def test_one_pair_in_each_packed_row():
    groups = [([1, 2, 3], [4]), ([5, 6], [7, 8])]
    layout = packed(groups, [[0, 1]], 5, 1)
    assert layout == (5, 2, 2, 2, 0) and layout.together == 1
    marks = marks_of(groups)
    rows = lay_out(groups, layout, 99, marks)
    found = [sequences_of(rows, row) for row in range(2)]
    assert found == [list(zip(g, m, strict=True)) for g, m in zip(groups, marks, strict=True)]


def test_beginnings():
    assert beginning(([1, 2, 3], [1, 2, 4, 5])) == 2
    assert beginning(([1, 2], [1, 2, 4])) == 2 and beginning(([3], [4])) == 0
    assert beginning(([1, 2, 3], [1, 2, 3, 4], [1, 9])) == 1


def test_beginnings_end_at_one_place():
    groups = [([1, 2, 3, 4, 5], [1, 2, 3, 6]), ([7, 8, 8], [7, 9, 9])]
    layout = aligned(groups, 6, 3)
    assert layout == (5, 6, 1, 2, 3) and layout.together == 2
    marks = [[np.array(s) / 2 for s in group] for group in groups]
    rows = lay_out(groups, layout, 99, marks)  # a step of two groups only
    assert rows.tokens.tolist() == [
        [1, 2, 3, 4, 5], [1, 2, 3, 6, 99], [99, 99, 7, 8, 8], [99, 99, 7, 9, 9], [99] * 5, [99] * 5
    ]  # fmt: skip
    assert rows.positions.tolist()[:3] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 0, 0, 1, 2]]
    real = rows.tokens != 99
    np.testing.assert_array_equal(rows.segments, real)
    np.testing.assert_array_equal(rows.mask, np.where(real, rows.tokens / 2, 0))


@pytest.mark.parametrize(
    ("groups", "length"),
    [
        ([([1, 2, 3], [1, 2, 4]), ([1], [2])], 9),  # a group that has none
        ([([1, 2, 3, 4], [1, 2, 5]), ([6, 7, 8, 9, 5], [6] * 5)], 5),  # 2 + 2 * 4 places of 10
    ],
)
def test_rows_stay_plain_where_nothing_is_won(groups, length):
    assert aligned(groups, length, 2) == one_a_row(length, 2)

"""Packing: what comes back out of the rows, and how full they are."""

import itertools

import numpy as np
import pytest

from posttrain_jax.data.pack import best_fit, pack


def make_sequences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(1, 100, n).tolist(), (rng.random(n) < 0.5).tolist()) for n in lengths]


def unpack(rows):
    """The sequences as read off the rows: (tokens, mask) by row and segment."""
    found = []
    for tokens, positions, segments, mask in zip(*rows, strict=True):
        for segment in range(1, segments.max() + 1):
            place = np.flatnonzero(segments == segment)
            assert place.tolist() == list(range(place[0], place[-1] + 1))
            assert positions[place].tolist() == list(range(len(place)))
            found.append((tokens[place].tolist(), mask[place].tolist()))
    return found


def test_all_sequences_that_fit_come_back_whole():
    lengths = [1, 5, 16, 17, 3, 3, 9, 12, 2, 16, 40, 7, 0]
    sequences = make_sequences(lengths)
    rows, dropped = pack(sequences, 16, pad_id=77)
    assert dropped == 3  # 17, 40 and the empty one
    fitting = [(tokens, mask) for tokens, mask in sequences if 0 < len(tokens) <= 16]
    expected = [(tokens, [0.0, *map(float, mask[1:])]) for tokens, mask in fitting]
    assert sorted(unpack(rows)) == sorted(expected)
    padding = rows.segments == 0
    assert (rows.tokens[padding] == 77).all()
    assert not rows.mask[padding].any() and not rows.positions[padding].any()


def test_the_first_token_of_a_sequence_bears_no_loss():
    rows, _ = pack([([1, 2, 3], [True] * 3), ([4, 5], [True] * 2)], 8)
    assert rows.tokens[0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert rows.mask[0].tolist() == [0, 1, 1, 0, 1, 0, 0, 0]
    assert rows.segments[0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]


def fewest_rows(lengths, capacity):
    """By trying every assignment."""
    for count in itertools.count(1):
        for rows in itertools.product(range(count), repeat=len(lengths)):
            loads = np.bincount(rows, weights=lengths, minlength=count)
            if loads.max() <= capacity:
                return count


def fullest_row_first(lengths, capacity):
    """Best fit decreasing, written as a search over all rows -> the loads of the rows."""
    loads = []
    for size in sorted(lengths, reverse=True):
        room = [(load, i) for i, load in enumerate(loads) if load + size <= capacity]
        if room:
            loads[max(room)[1]] += size
        else:
            loads.append(size)
    return sorted(loads)


@pytest.mark.parametrize("seed", range(8))
def test_best_fit_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 11, 6).tolist()
    rows = best_fit(lengths, 10)
    assert sorted(itertools.chain(*rows)) == list(range(6))
    loads = [sum(lengths[i] for i in row) for row in rows]
    assert max(loads) <= 10
    fewest = fewest_rows(lengths, 10)
    assert fewest <= len(rows) <= 11 / 9 * fewest + 6 / 9  # Dosa 2007, for decreasing order


def test_each_sequence_goes_into_the_fullest_row_with_room():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 64, 300).tolist()
    loads = [sum(lengths[i] for i in row) for row in best_fit(lengths, 64)]
    assert sorted(loads) == fullest_row_first(lengths, 64)


def test_nothing_fits():
    with pytest.raises(ValueError, match=r"none of 2 sequences fits in 4 .*shortest has 5.*raise"):
        pack(make_sequences([5, 9]), 4)

"""Bins of difficulty by hand, and what they must keep: order, ties, balance of the folds."""

import numpy as np
import pytest

from posttrain_jax.evals.difficulty import difficulty_bins, two_folds


def test_bins_by_hand():
    rate = np.array([0.0, 0.9, 0.5, 0.1, 1.0, 0.4, 0.6, 0.2, 0.8, 0.3])
    assert difficulty_bins(rate).tolist() == [4, 0, 2, 4, 0, 2, 1, 3, 1, 3]
    assert difficulty_bins(rate, 2).tolist() == [1, 0, 0, 1, 0, 1, 0, 1, 0, 1]
    # Six of ten are always right: ranks 1 to 6, the middle one 3, of ten; then 7 and 8; 9; 10.
    ties = np.array([1.0] * 6 + [0.5, 0.5, 0.25, 0.0])
    assert difficulty_bins(ties).tolist() == [1] * 6 + [3, 3, 4, 4]
    assert difficulty_bins([0.3]).tolist() == [2] and difficulty_bins([]).tolist() == []


@pytest.mark.parametrize("samples", [2, 8, 1000])
def test_ties_share_a_bin_and_easier_ones_are_never_in_a_later_bin(samples):
    rate = np.random.default_rng(samples).integers(0, samples + 1, 203) / samples
    bins = difficulty_bins(rate)
    assert set(bins) <= set(range(5))
    for value in rate:
        assert len(set(bins[rate == value])) == 1
        assert bins[rate > value].max(initial=0) <= bins[rate == value][0]
    if samples == 1000:  # next to no ties
        assert np.bincount(bins).tolist() == pytest.approx([203 / 5] * 5, abs=2)
    order = np.random.default_rng(0).permutation(len(rate))
    assert (difficulty_bins(rate[order]) == bins[order]).all()


def test_folds_halve_every_bin():
    bins = np.array([0] * 7 + [1] * 4 + [3] * 1)
    folds = two_folds(bins)
    assert np.bincount(bins, folds).tolist() == [3, 2, 0, 0]
    assert (folds == two_folds(bins)).all()
    assert any((folds != two_folds(bins, seed)).any() for seed in range(1, 4))


def test_no_bins():
    with pytest.raises(ValueError, match="bins=0: expected 1 or more"):
        difficulty_bins([0.5], 0)

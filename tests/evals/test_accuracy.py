"""pass@k and the majority vote against enumeration."""

import itertools

import numpy as np
import pytest

from posttrain_jax.evals.accuracy import majority, pass_at_k


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples):
    for correct in range(samples + 1):
        right = [1] * correct + [0] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(right, k))
            share = sum(any(s) for s in subsets) / len(subsets)
            assert pass_at_k(samples, correct, k) == pytest.approx(share)


def test_more_than_there_are_raises():
    with pytest.raises(ValueError, match="pass@5 needs at least 5 samples a problem, got 4"):
        pass_at_k(4, 2, 5)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        ([7, 7, 9, 9, 9], [0, 0, 1, 1, 1], 1.0),
        ([7, 7, 9], [0, 0, 1], 0.0),
        ([7, 9, 0, 0, 0], [1, 0, 0, 0, 0], 0.5),  # no answer is no vote; a tie counts half
        ([7, 8, 9], [0, 1, 0], 1 / 3),
        ([0, 0], [0, 0], 0.0),
        ([5, 5], [1, 0], 0.5),  # the same answer judged both ways
    ],
)
def test_majority(answers, correct, expected):
    assert majority(answers, correct) == pytest.approx(expected)
    order = np.random.default_rng(0).permutation(len(answers))
    shuffled = majority([answers[i] for i in order], [correct[i] for i in order])
    assert shuffled == pytest.approx(expected)

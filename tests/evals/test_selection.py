"""Best-of-n and votes against enumeration of all subsets, and all orders within ties."""

import itertools
import math

import numpy as np
import pytest

from posttrain_jax.evals.accuracy import majority, pass_at_k
from posttrain_jax.evals.first_error import first_error, first_error_metrics
from posttrain_jax.evals.selection import (
    CHOICES,
    SUBSETS,
    Samples,
    best_of,
    choice_columns,
    majority_of,
    powers_of_two,
    subsets,
    weighted_of,
    weighted_vote,
)

SCORES = [0.5, 0.25, 0.75, 0.25, 0.5, 0.5]
CORRECT = [1, 1, 0, 0, 0, 1]
ANSWERS = [7, 7, 9, 0, 9, 7]


@pytest.mark.parametrize("k", range(1, 7))
def test_best_of_is_the_mean_over_subsets(k):
    found = []
    for subset in itertools.combinations(range(6), k):
        top = max(SCORES[i] for i in subset)
        found.append(np.mean([CORRECT[i] for i in subset if SCORES[i] == top]))
    assert best_of(SCORES, CORRECT, k) == pytest.approx(np.mean(found))


def test_best_of_at_its_ends():
    assert best_of(SCORES, CORRECT, 1) == pytest.approx(np.mean(CORRECT))
    perfect = [float(c) for c in CORRECT]
    for k in range(1, 7):
        assert best_of(perfect, CORRECT, k) == pytest.approx(pass_at_k(6, 3, k))
        assert best_of([1.0] * 6, CORRECT, k) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_votes_are_means_over_subsets(k):
    subsets = list(itertools.combinations(range(6), k))
    take = lambda values, subset: [values[i] for i in subset]  # noqa: E731
    plain = [majority(take(ANSWERS, s), take(CORRECT, s)) for s in subsets]
    assert majority_of(ANSWERS, CORRECT, k) == pytest.approx(np.mean(plain))
    found = []
    for s in subsets:
        sums = {a: sum(SCORES[i] for i in s if ANSWERS[i] == a) for a in {7, 9}}
        sums = {a: v for a, v in sums.items() if any(ANSWERS[i] == a for i in s)}
        leaders = [a for a, v in sums.items() if v == max(sums.values())]
        rights = [np.mean([CORRECT[i] for i in s if ANSWERS[i] == a]) for a in leaders]
        found.append(np.mean(rights) if rights else 0.0)
    assert weighted_of(ANSWERS, SCORES, CORRECT, k) == pytest.approx(np.mean(found))


def test_a_weighted_vote_by_hand():
    # 7 has 0.4 in two, 9 has 0.5 in one: the majority says 7, the weights say 9.
    assert weighted_vote([7, 7, 9], [0.2, 0.2, 0.5], [1, 1, 0]) == 0.0
    assert majority([7, 7, 9], [1, 1, 0]) == 1.0
    assert weighted_vote([7, 7, 9], [1.0, 1.0, 1.0], [1, 1, 0]) == 1.0
    assert weighted_vote([7, 9], [0.1 + 0.2, 0.3], [1, 0]) == 0.5  # a tie, rounding aside
    assert weighted_vote([0, 0], [1.0, 1.0], [1, 1]) == 0.0  # no answer is no vote


def test_all_subsets_where_they_are_few_and_random_ones_where_they_are_many():
    expected = {frozenset(rows) for rows in itertools.combinations(range(6), 3)}
    assert {frozenset(np.flatnonzero(row)) for row in subsets(6, 3)} == expected
    drawn = subsets(20, 10)
    assert drawn.shape == (SUBSETS, 20) and (drawn.sum(axis=1) == 10).all()
    assert len({tuple(row) for row in drawn.tolist()}) > 250
    assert drawn.mean(axis=0) == pytest.approx(0.5, abs=0.12)  # 4 standard deviations
    assert (drawn != subsets(20, 10, seed=1)).any()


def test_a_vote_of_many_is_near_the_one_over_all_subsets():
    """Two answers: with c of n right, the k are right where more than half of them are."""
    n, right, k = 24, 14, 9
    answers = [1] * right + [2] * (n - right)
    correct = [float(a == 1) for a in answers]
    ways = [math.comb(right, r) * math.comb(n - right, k - r) for r in range(k // 2 + 1, k + 1)]
    exact = sum(ways) / math.comb(n, k)
    assert majority_of(answers, correct, k) == pytest.approx(exact, abs=4 * 0.5 / SUBSETS**0.5)


def test_columns_of_all_choices():
    problems = [
        Samples(ANSWERS, CORRECT, {"s": SCORES, "t": [-s for s in SCORES]}),
        Samples([1] * 6, [1.0] * 6, {"s": [0.5] * 6, "t": [0.5] * 6}),
    ]
    found = choice_columns(problems, (1, 4, 2), ["s", "t"])
    assert list(found) == [
        "pass@1", "pass@2", "pass@4", "maj@2", "maj@4", "best@2/s", "best@4/s", "best@2/t",
        "best@4/t", "weighted@2/s", "weighted@4/s", "weighted@2/t", "weighted@4/t",
    ]  # fmt: skip
    assert found["pass@1"] == [0.5, 1.0]
    assert found["pass@2"] == [pytest.approx(1 - 3 / 15), 1.0]
    assert found["best@4/t"] == [best_of([-s for s in SCORES], CORRECT, 4), 1.0]
    assert found["maj@4"][0] == CHOICES["majority"](problems[0], "", 4)
    assert list(choice_columns(problems, (1,))) == ["pass@1"]


def test_powers_of_two_end_with_the_number_itself():
    assert [powers_of_two(n) for n in (1, 2, 4, 6)] == [(1,), (1, 2), (1, 2, 4), (1, 2, 4, 6)]


@pytest.mark.parametrize("k", [0, 7])
def test_sizes_that_can_not_be(k):
    with pytest.raises(ValueError, match=f"k={k} of 6 samples: expected 1 to 6"):
        best_of(SCORES, CORRECT, k)


def test_first_errors_as_processbench_scores_them():
    assert [first_error(v) for v in ([1, 1], [1, 0, 0], [0.4, 1], [0.5, 0.49])] == [-1, 1, 0, 1]
    # With an error: 2 of 3 found. Right ones: 1 of 2 passed. F1 = 2 ab / (a + b).
    found = first_error_metrics([1, 0, 2, -1, 3], [1, 0, 1, -1, -1])
    assert found["found_error"]["mean"] == pytest.approx(2 / 3)
    assert found["passed_right"]["mean"] == 0.5
    assert found["first_error_f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert "first_error_f1" not in first_error_metrics([-1], [-1])
    assert first_error_metrics([1, 0], [-1, 1])["first_error_f1"] == 0.0

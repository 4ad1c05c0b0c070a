"""The choice by bins: by hand, against brute force, and that no fold scores its own choice."""

import itertools

import numpy as np
import pytest

from posttrain_jax.evals.compute import Option, compute_optimal, doubling_budgets


def option(name, right, tokens):
    return Option(name, np.array(right, float), np.full(len(right), float(tokens)))


def test_by_hand():
    """Bin 0: one sample is as good as four. Bin 1: only the search helps, and costs 40."""
    options = [
        option("one", [1, 1, 0, 0], 10),
        option("four", [1, 1, 0, 0], 40),
        option("search", [0, 0, 1, 1], 40),
    ]
    bins, folds = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    rich = compute_optimal(options, bins, folds, 40.0)
    assert rich.right_P.tolist() == [1] * 4 and rich.tokens_P.tolist() == [10, 10, 40, 40]
    assert rich.chosen == {0: {"one": 2}, 1: {"search": 2}}
    poor = compute_optimal(options, bins, folds, 39.0)
    assert poor.right_P.tolist() == [1, 1, 0, 0] and poor.tokens_P.tolist() == [10] * 4
    assert compute_optimal(options, bins, folds, 1.0).chosen == poor.chosen  # the cheapest


def test_what_one_fold_chooses_is_scored_on_the_other():
    """Each option is right on one fold alone: every choice is wrong where it is scored."""
    options = [option("a", [1, 1, 0, 0], 5), option("b", [0, 0, 1, 1], 5)]
    found = compute_optimal(options, np.zeros(4, int), np.array([0, 0, 1, 1]), 5.0)
    assert found.right_P.sum() == 0 and found.chosen == {0: {"a": 1, "b": 1}}


def test_a_bin_of_one_problem_takes_the_cheapest():
    options = [option("dear", [1], 9), option("cheap", [0], 3)]
    found = compute_optimal(options, np.zeros(1, int), np.zeros(1, int), 9.0)
    assert found.chosen == {0: {"cheap": 1}} and found.right_P.tolist() == [0]


@pytest.mark.parametrize("budget", [4.0, 8.0, 30.0])
def test_against_brute_force(budget):
    rng = np.random.default_rng(int(budget))
    bins, folds = rng.integers(0, 3, 60), rng.integers(0, 2, 60)
    options = [
        Option(str(i), rng.random(60), k * rng.uniform(3, 5, 60))
        for i, k in enumerate([1, 2, 4, 1, 6])
    ]
    found = compute_optimal(options, bins, folds, budget)
    allowed = [o for o in options if o.tokens_P.mean() <= budget]
    allowed = allowed or [min(options, key=lambda o: o.tokens_P.mean())]
    for number, fold in itertools.product(range(3), range(2)):
        other = [p for p in range(60) if bins[p] == number and folds[p] != fold]
        here = [p for p in range(60) if bins[p] == number and folds[p] == fold]
        best = max(allowed, key=lambda o: sum(o.right_P[p] for p in other))
        assert found.right_P[here].tolist() == best.right_P[here].tolist()
        assert found.tokens_P[here].tolist() == best.tokens_P[here].tolist()


def test_budgets_double_up_to_the_dearest():
    options = [option("a", [1], 10), option("b", [1], 70), option("c", [1], 40)]
    assert doubling_budgets(options) == (10, 20, 40, 70)
    assert doubling_budgets(options[:1]) == (10,)
    assert doubling_budgets([options[0], options[2]]) == (10, 20, 40)

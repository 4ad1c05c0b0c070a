"""Bootstrap intervals against all resamples of a few problems, and the large-sample limit."""

import itertools
import math

import numpy as np
import pytest

from posttrain_jax.evals.bootstrap import by_domain, intervals, with_intervals
from posttrain_jax.metrics import mean_stderr


def test_few_problems_against_all_their_resamples():
    values = [0.0, 0.2, 0.9, 1.0]
    every = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    exact = np.quantile(every, [0.1, 0.9])
    (found,) = intervals(np.array(values)[:, None], level=0.8, resamples=40_000)
    assert found == pytest.approx(exact, abs=0.0251)  # resampled means lie 0.025 apart
    inside = np.mean([(found[0] <= m) & (m <= found[1]) for m in every])
    assert inside == pytest.approx(0.8, abs=0.04)


def test_many_problems_give_the_normal_interval():
    """mean +- 1.96 s / sqrt(n), with the s of a population: resampling draws from these n."""
    values = np.random.default_rng(1).beta(2, 1, 400)
    (found,) = intervals(values[:, None], resamples=10_000)
    error = values.std() / math.sqrt(len(values))
    assert found == pytest.approx(
        values.mean() + 1.96 * error * np.array([-1, 1]), abs=0.08 * error
    )
    (narrow,) = intervals(values[:, None], level=0.6827, resamples=10_000)
    assert narrow == pytest.approx(values.mean() + error * np.array([-1, 1]), abs=0.08 * error)


def test_shares_of_a_few_problems_by_the_binomial():
    """30 problems, 12 right: the resampled sum is binomial(30, 0.4)."""
    values = np.array([1.0] * 12 + [0.0] * 18)
    mass = [math.comb(30, k) * 0.4**k * 0.6 ** (30 - k) for k in range(31)]
    ends = [int(np.searchsorted(np.cumsum(mass), q)) / 30 for q in (0.025, 0.975)]
    (found,) = intervals(values[:, None], resamples=20_000)
    assert found == pytest.approx(ends, abs=1e-9)


def test_the_same_again_and_columns_share_their_resamples(monkeypatch):
    values = np.random.default_rng(2).random((50, 1))
    both = intervals(np.hstack([values, 1 - values]))
    assert both[0] == pytest.approx(1 - both[1][::-1])
    assert (intervals(values) == intervals(values)).all()
    assert both[0] == pytest.approx(intervals(values)[0])
    assert both[0] != pytest.approx(intervals(values, seed=1)[0])
    monkeypatch.setattr("posttrain_jax.evals.bootstrap._BLOCK", 50 * 700)  # blocks of 700
    assert both[0] == pytest.approx(intervals(values)[0])


def test_metrics_of_all_and_of_each_domain():
    columns = {"pass@1": [1.0, 0.0, 0.5, 0.5], "greedy": [1.0, 1.0, 0.0, 0.0]}
    found = by_domain(columns, ["sums", "sums", "words", "words"])
    assert list(found) == [
        "pass@1", "greedy", "pass@1/sums", "greedy/sums", "pass@1/words", "greedy/words"
    ]  # fmt: skip
    assert found["pass@1"] == mean_stderr(columns["pass@1"]) | {
        "low": found["pass@1"]["low"], "high": found["pass@1"]["high"]
    }  # fmt: skip
    assert (found["pass@1/sums"]["low"], found["pass@1/sums"]["high"]) == (0.0, 1.0)
    assert found["pass@1/words"] == {"mean": 0.5, "stderr": 0.0, "n": 2, "low": 0.5, "high": 0.5}


def test_nothing_to_resample():
    assert with_intervals({}) == {}
    with pytest.raises(ValueError, match="one problem or more"):
        intervals(np.zeros((0, 1)))

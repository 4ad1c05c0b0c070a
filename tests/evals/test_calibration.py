"""Reliability curves and calibration errors by hand, and accuracy by domain."""

import numpy as np
import pytest

from posttrain_jax.data.graded import Graded
from posttrain_jax.evals import reward_quality
from posttrain_jax.evals.calibration import calibration, calibration_error, reliability, sigmoid


def test_bins_by_hand():
    """Bins (0.5, 0.6], ..., the first with its lower end."""
    found = reliability([0.5, 0.6, 0.61, 0.7, 1.0], [1, 0, 1, 1, 1])
    assert [(round(b.low, 9), round(b.high, 9), b.cases) for b in found] == [
        (0.5, 0.6, 2), (0.6, 0.7, 2), (0.9, 1.0, 1)
    ]  # fmt: skip
    assert [b.confidence for b in found] == pytest.approx([0.55, 0.655, 1.0])
    assert [b.right["mean"] for b in found] == [0.5, 1.0, 1.0]
    # 2/5 |0.5 - 0.55| + 2/5 |1 - 0.655| + 0
    assert calibration_error(found) == pytest.approx(0.4 * 0.05 + 0.4 * 0.345)


def test_metrics_name_the_bins():
    metrics = calibration([0.55, 0.95, 0.97], [0, 1, 0])
    assert set(metrics) == {
        "calibration_error", "reliability/0", "confidence/0", "reliability/4", "confidence/4"
    }  # fmt: skip
    assert metrics["reliability/4"]["mean"] == 0.5 and metrics["reliability/4"]["n"] == 2
    assert metrics["confidence/4"]["mean"] == pytest.approx(0.96)
    assert metrics["calibration_error"] == pytest.approx(0.55 / 3 + 2 / 3 * 0.46)
    assert calibration([], []) == {}


def test_what_is_calibrated_has_a_small_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200_000)
    right = rng.random(200_000) < confidence
    assert calibration(confidence, right)["calibration_error"] < 0.01
    assert calibration(confidence, rng.random(200_000) < 0.5)["calibration_error"] > 0.2


def test_confidences_of_the_less_likely_side_are_refused():
    with pytest.raises(ValueError, match=r"lie in \[0.5, 1\], got 0.4 to 0.9"):
        reliability([0.4, 0.9], [1, 1])


def test_sigmoid_far_out():
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    assert sigmoid(np.array([1.5]))[0] == pytest.approx(1 / (1 + np.exp(-1.5)), rel=1e-15)


def test_ranks_of_groups():
    """A group of three with one better one has two pairs; it counts as much as a pair does."""
    groups = [
        Graded({"domain": "sums"}, ("a", "b", "c"), ((1.0,), (0.0,), (0.0,))),
        Graded({"kind": "safety"}, ("a", "b"), ((0.0,), (1.0,))),
        Graded({"kind": "safety"}, ("a", "b"), ((1.0,), (1.0,))),  # no pair
    ]
    scores = [np.float64([[1.0], [0.5], [2.0]]), np.float64([[0.0], [3.0]]), np.zeros((2, 1))]
    found = reward_quality.ranks(groups, scores, ())
    assert found["pair_accuracy"]["mean"] == pytest.approx((0.5 + 1) / 2)
    assert found["pair_accuracy"]["n"] == 2
    assert found["pair_accuracy/sums"]["mean"] == 0.5
    assert found["pair_accuracy/safety"]["mean"] == 1.0
    # Gaps 0.5, -1 and 3: confidences 0.622, 0.731, 0.953, of which the middle one is wrong.
    e = [abs(1 - 0.62245933), 0.73105858, abs(1 - 0.95257413)]
    assert found["calibration_error"] == pytest.approx(sum(e) / 3, abs=1e-7)


def test_labels_of_single_responses():
    groups = [Graded({"kind": k}, ("a",), ((y,),)) for k, y in (("x", 1.0), ("x", 0.0), ("y", 0.0))]
    scores = [np.float64([[s]]) for s in (2.0, 1.0, -1.0)]
    found = reward_quality.binary(groups, scores, ())
    assert found["label_accuracy"]["mean"] == pytest.approx(2 / 3)
    assert (found["label_accuracy/x"]["mean"], found["label_accuracy/y"]["mean"]) == (0.5, 1.0)


def test_ratings_leave_out_what_is_not_known():
    nan = float("nan")
    groups = [Graded({}, ("a",), (g,)) for g in ((0.0, nan), (1.0, 0.5), (0.5, nan))]
    outputs = [np.float64([o]) for o in ((0.5, 9.0), (1.0, 1.0), (0.75, 9.0))]
    found = reward_quality.ratings(groups, outputs, ("help", "safe"))
    assert found["squared_error/help"]["mean"] == pytest.approx((0.25 + 0 + 0.0625) / 3)
    assert found["squared_error/safe"] == {"mean": 0.25, "stderr": 0.0, "n": 1}
    assert found["correlation/help"] == pytest.approx(1.0)
    assert "correlation/safe" not in found

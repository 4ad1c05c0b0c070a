"""The pairwise loss by hand."""

import math

import jax
import numpy as np
import pytest

from posttrain_jax.losses import bradley_terry

CHOSEN = np.array([2.0, 0.0, -1.0], np.float32)
REJECTED = np.array([0.0, 0.0, 1.0], np.float32)
WEIGHT = np.array([0.5, 0.25, 0.25], np.float32)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_by_hand(margin):
    value, metrics = bradley_terry.loss(CHOSEN, REJECTED, WEIGHT, margin=margin)
    # -log sigmoid(x) = log(1 + e^-x)
    lost = [math.log1p(math.exp(margin - gap)) for gap in (2.0, 0.0, -2.0)]
    assert float(value) == pytest.approx(np.dot(WEIGHT, lost), rel=1e-6)
    assert float(metrics["pair_accuracy"]) == 0.5  # a tie is not right
    assert float(metrics["score_gap"]) == pytest.approx(0.5 * 2 + 0.25 * 0 - 0.25 * 2)


def test_the_gradient_pushes_the_wrong_pair_hardest():
    gradient = jax.grad(lambda c: bradley_terry.loss(c, REJECTED, np.float32([1, 1, 1]))[0])(CHOSEN)
    # -sigmoid(-gap)
    np.testing.assert_allclose(gradient, [-0.1192029, -0.5, -0.8807971], atol=1e-6)


def test_far_apart_scores_stay_finite():
    value, _ = bradley_terry.loss(np.float32([-1e4]), np.float32([1e4]), np.float32([1]))
    assert float(value) == pytest.approx(2e4)

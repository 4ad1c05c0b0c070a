"""Aggregation weights by Python loops; ratios, clipping and KL estimators by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.losses.common import (
    aggregation_weights,
    clipped_surrogate,
    kl_estimate,
    log_ratio,
    weighted_sum,
)

# Four sequences of 3, 1, 0 and 2 tokens that bear loss, with prompts and padding around them.
MASK = np.array([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]], np.float32)
VALUES = np.array([[9, 1, 2, 6, 9], [9, 9, 5, 9, 9], [9, 9, 9, 9, 9], [9, 9, 9, 4, 8]], np.float32)
EXPECTED = {
    "token_mean_global": (1 + 2 + 6 + 5 + 4 + 8) / 6,
    "seq_mean_token_mean": ((1 + 2 + 6) / 3 + 5 + 0 + (4 + 8) / 2) / 4,
    "seq_sum": ((1 + 2 + 6) + 5 + 0 + (4 + 8)) / 4,
    "constant": ((1 + 2 + 6) + 5 + 0 + (4 + 8)) / (10 * 4),
}


@pytest.mark.parametrize("mode", sorted(EXPECTED))
@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_the_mean_that_each_mode_prints(mode, microbatches):
    weight = aggregation_weights(MASK, mode, microbatches=microbatches, constant=10.0)
    assert float(jnp.sum(weight * VALUES)) == pytest.approx(EXPECTED[mode], rel=1e-6)
    assert np.all(np.asarray(weight)[MASK == 0] == 0)


@pytest.mark.parametrize(
    ("microbatches", "expected"),
    [
        (1, 26 / 6),
        # rows 0 and 2: 9 / 3; rows 1 and 3: (5 + 12) / 3
        (2, (9 / 3 + 17 / 3) / 2),
        # one row each; the empty one counts as a microbatch of mean 0
        (4, (9 / 3 + 5 + 0 + 12 / 2) / 4),
    ],
)
def test_the_local_mean_is_the_mean_over_microbatches(microbatches, expected):
    weight = aggregation_weights(MASK, "token_mean_local", microbatches=microbatches)
    assert float(jnp.sum(weight * VALUES)) == pytest.approx(expected, rel=1e-6)


def test_the_local_mean_of_rows_that_stay_together():
    weight = aggregation_weights(MASK, "token_mean_local", microbatches=2, together=2)
    # rows 0 and 1: (9 + 5) / 4; rows 2 and 3: 12 / 2
    assert float(jnp.sum(weight * VALUES)) == pytest.approx((14 / 4 + 12 / 2) / 2, rel=1e-6)


def test_a_batch_without_a_loss_token_has_no_weight():
    for mode in ("token_mean_global", "token_mean_local", "seq_mean_token_mean"):
        assert float(jnp.sum(aggregation_weights(np.zeros((2, 3)), mode))) == 0


def test_unknown_names_raise():
    with pytest.raises(ValueError, match=r"aggregation 'mean': expected one of .*seq_sum"):
        aggregation_weights(MASK, "mean")
    with pytest.raises(ValueError, match="needs aggregation_constant"):
        aggregation_weights(MASK, "constant")
    with pytest.raises(ValueError, match="importance_level 'word'"):
        log_ratio(MASK, MASK, MASK > 0, "word")
    with pytest.raises(ValueError, match="kl estimator 'k4': expected k1, k2 or k3"):
        kl_estimate(jnp.zeros(2), "k4")


def test_ratio_levels():
    logp = np.log(np.array([[0.5, 0.5, 0.9], [0.25, 0.1, 0.3]], np.float32))
    behaviour = np.log(np.array([[0.25, 0.25, 0.1], [0.5, 0.1, 0.6]], np.float32))
    mask = np.array([[True, True, False], [True, True, True]])
    token = np.exp(log_ratio(logp, behaviour, mask, "token"))
    np.testing.assert_allclose(token, [[2, 2, 1], [0.5, 1, 0.5]], rtol=1e-5)
    sequence = np.exp(log_ratio(logp, behaviour, mask, "sequence"))
    np.testing.assert_allclose(sequence, [[4, 4, 4], [0.25, 0.25, 0.25]], rtol=1e-5)


def test_extreme_ratios_stay_finite_with_finite_gradients():
    far = jnp.array([[500.0, -500.0]])

    def total(logp):
        return jnp.sum(jnp.exp(log_ratio(logp, jnp.zeros_like(far), far != 0, "token")))

    assert np.all(np.isfinite(jax.grad(total)(far))) and np.isfinite(total(far))
    for estimator in ("k1", "k2", "k3"):
        assert np.all(np.isfinite(kl_estimate(far, estimator)))


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "bound", "gradient"),
    # low 0.2, high 0.3: the clip binds where it makes the objective smaller, and stops the gradient
    [
        (1.0, 2.0, 2.0, False, 2.0),
        (1.25, 2.0, 2.5, False, 2.0),
        (1.5, 2.0, 2.6, True, 0.0),
        (0.5, 2.0, 1.0, False, 2.0),
        (1.5, -2.0, -3.0, False, -2.0),
        (0.9, -2.0, -1.8, False, -2.0),
        (0.5, -2.0, -1.6, True, 0.0),
        (1.5, 0.0, 0.0, False, 0.0),
    ],
)
def test_the_clip_on_both_signs_of_the_advantage(ratio, advantage, value, bound, gradient):
    def gain(r):
        return clipped_surrogate(r, advantage, 0.2, 0.3)

    (found, clipped), slope = jax.value_and_grad(gain, has_aux=True)(ratio)
    assert float(found) == pytest.approx(value, rel=1e-6)
    assert bool(clipped) is bound
    assert float(slope) == pytest.approx(gradient, rel=1e-6)


def test_estimators_of_the_kl_divergence():
    """k1 and k3 are unbiased: their mean under pi is the divergence, by enumeration."""
    pi, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    exact = sum(p * math.log(p / q) for p, q in zip(pi, reference, strict=True))
    d = np.log(pi / reference).astype(np.float32)
    assert float(pi @ np.asarray(kl_estimate(d, "k1"))) == pytest.approx(exact, abs=1e-6)
    assert float(pi @ np.asarray(kl_estimate(d, "k3"))) == pytest.approx(exact, abs=1e-6)
    assert np.all(np.asarray(kl_estimate(d, "k3")) >= 0)
    # k2 = (log 2)^2 / 2 where pi = 2 reference
    assert float(kl_estimate(jnp.log(2.0), "k2")) == pytest.approx(0.2402265, abs=1e-6)
    # k3 = q - 1 - log q, q = reference / pi = 1/2
    assert float(kl_estimate(jnp.log(2.0), "k3")) == pytest.approx(0.1931472, abs=1e-6)


def test_k3_is_exact_near_zero():
    """exp(-d) - 1 + d = d^2/2 - d^3/6 + ...; the naive form loses all digits at 1e-4."""
    assert float(kl_estimate(jnp.float32(1e-2), "k3")) == pytest.approx(4.98337e-5, rel=2e-3)
    assert 0 <= float(kl_estimate(jnp.float32(1e-4), "k3")) < 1e-7


def test_a_zero_weight_silences_what_is_not_finite():
    values = jnp.array([1.0, jnp.nan, jnp.inf, 3.0])
    weight = jnp.array([0.5, 0.0, 0.0, 2.0])
    assert float(weighted_sum(values, weight)) == 6.5
    assert np.asarray(jax.grad(weighted_sum)(values, weight)).tolist() == [0.5, 0, 0, 2.0]

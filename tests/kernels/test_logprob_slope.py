"""Gradients that are made with the log-probs, where the loss is a weighted sum of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.kernels import token_logprobs


@pytest.fixture(scope="module")
def given():
    """(hidden, head, targets, weights, of which many are 0)."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((4, 70, 16)).astype(np.float32)
    head = rng.standard_normal((97, 16)).astype(np.float32)
    targets = rng.integers(1, 97, (4, 70))
    weight = (rng.random((4, 70)) * (rng.random((4, 70)) < 0.4)).astype(np.float32)
    return hidden, head, targets, weight


def gradients(given, slope, factor=-3.0, temperature=0.7, loss=None):
    """Value and gradients of `factor` times the weighted log-probs, compiled."""
    hidden, head, targets, weight = given

    def total(hidden, head):
        logp, entropy = token_logprobs(
            hidden, head, targets, temperature, never=0, needed_BT=weight != 0, slope_BT=slope
        )
        return loss(logp, entropy) if loss else factor * jnp.sum(logp * weight)

    return jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, head)


@pytest.mark.parametrize("factor", [-1.0, -3.0, 0.25])
def test_they_are_those_of_the_backward_pass(given, factor, monkeypatch):
    monkeypatch.setattr("posttrain_jax.kernels.chunks.CHUNKS", {"cpu": (1, 40)})  # several chunks
    value, grads = gradients(given, None, factor)
    found, sloped = gradients(given, given[3], factor)
    assert float(found) == pytest.approx(float(value), rel=1e-6)
    for expected, got in zip(grads, sloped, strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=5e-6)


def test_log_probs_and_entropies_are_the_same(given):
    hidden, head, targets, weight = given
    plain = token_logprobs(hidden, head, targets, never=0)
    for expected, got in zip(
        plain, token_logprobs(hidden, head, targets, never=0, slope_BT=weight), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "loss",
    [
        lambda logp, entropy: jnp.sum(logp * logp),
        lambda logp, entropy: jnp.sum(logp[:2]),
        lambda logp, entropy: jnp.sum(entropy),
    ],
)
def test_a_loss_that_is_another_gives_no_gradient_instead_of_a_wrong_one(given, loss):
    _, grads = gradients(given, given[3], loss=loss)
    assert all(np.isnan(g).all() for g in grads)

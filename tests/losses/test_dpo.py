"""DPO against numbers worked in float64, and its pairs under microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.losses import dpo

# Two pairs: rows 0 and 1 are chosen, 2 and 3 rejected.
LOGP = np.array([[-9.0, -1.0, -2.0], [-9.0, -0.5, -9.0], [-9.0, -3.0, -1.0], [-9.0, -9.0, -2.5]])
REFERENCE = np.array([[0.0, -1.5, -2.5], [0, -0.4, 0], [0, -2.0, -1.5], [0, 0, -2.0]])
MASK = np.array([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 0, 1]], float)


def run(mask=MASK, **options):
    zeros = jnp.zeros(MASK.shape, jnp.int32)
    batch = Batch(zeros, zeros, zeros, jnp.asarray(mask / 2), reference_logp_BT=REFERENCE)
    return dpo.loss(PolicyOut(jnp.asarray(LOGP), jnp.zeros(MASK.shape)), batch, **options)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_by_hand():
    # d: chosen 0.5 + 0.5 = 1.0 and -0.1; rejected -1.0 + 0.5 = -0.5 and -0.5.
    value, metrics = run(beta=0.2)
    margins = [0.2 * 1.5, 0.2 * 0.4]
    assert value == pytest.approx(np.mean([-np.log(sigmoid(m)) for m in margins]), rel=1e-6)
    assert metrics["pair_accuracy"] == 1.0
    assert metrics["margin"] == pytest.approx(np.mean(margins), rel=1e-6)
    assert metrics["chosen_reward"] == pytest.approx(0.2 * (1.0 - 0.1) / 2, rel=1e-6)
    assert metrics["rejected_reward"] == pytest.approx(0.2 * -0.5, rel=1e-6)


def test_length_normalised_by_hand():
    value, _ = run(beta=5.0, length_normalised=True)
    margins = [5 * (1.0 / 2 + 0.5 / 2), 5 * (-0.1 + 0.5)]
    assert value == pytest.approx(np.mean([-np.log(sigmoid(m)) for m in margins]), rel=1e-6)


def test_label_smoothing_and_nll_by_hand():
    value, metrics = run(beta=0.2, label_smoothing=0.1, nll_coef=0.3)
    margins = np.array([0.3, 0.08])
    pairs = -0.9 * np.log(sigmoid(margins)) - 0.1 * np.log(sigmoid(-margins))
    nll = np.mean([(1.0 + 2.0) / 2, 0.5])
    assert metrics["chosen_nll"] == pytest.approx(nll, rel=1e-6)
    assert value == pytest.approx(pairs.mean() + 0.3 * nll, rel=1e-6)


def test_gradient_by_hand():
    """dL/dlogp = -beta sigmoid(-margin) / pairs on chosen tokens, the opposite on rejected ones."""
    zeros = jnp.zeros(MASK.shape, jnp.int32)
    batch = Batch(zeros, zeros, zeros, jnp.asarray(MASK / 2), reference_logp_BT=REFERENCE)
    loss = lambda logp: dpo.loss(PolicyOut(logp, logp), batch, beta=0.2)[0]  # noqa: E731
    slope = 0.2 * sigmoid(-np.array([0.3, 0.08])) / 2
    expected = np.concatenate([-slope, slope])[:, None] * MASK
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(LOGP)), expected, rtol=1e-5)


def test_a_masked_pair_counts_nothing():
    mask = MASK.copy()
    mask[[1, 3]] = 0
    value, metrics = run(mask=mask, beta=0.2)
    assert value == pytest.approx(-np.log(sigmoid(0.3)) / 2, rel=1e-6)
    assert metrics["pair_accuracy"] == 0.5


def test_bad_batches_raise():
    zeros = jnp.zeros((3, 2), jnp.int32)
    batch = Batch(zeros, zeros, zeros, jnp.ones((3, 2)))
    out = PolicyOut(jnp.zeros((3, 2)), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="reference_logp_BT"):
        dpo.loss(out, batch)
    with pytest.raises(ValueError, match="3 rows are not pairs"):
        dpo.loss(out, batch._replace(reference_logp_BT=jnp.zeros((3, 2))))

"""DPO against numbers worked in float64, in pairs of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.losses import dpo

# Two pairs: rows 0 and 2 are chosen, 1 and 3 rejected.
LOGP = np.array([[-9.0, -1.0, -2.0], [-9.0, -3.0, -1.0], [-9.0, -0.5, -9.0], [-9.0, -9.0, -2.5]])
REFERENCE = np.array([[0.0, -1.5, -2.5], [0, -2.0, -1.5], [0, -0.4, 0], [0, 0, -2.0]])
MASK = np.array([[0, 1, 1], [0, 1, 1], [0, 1, 0], [0, 0, 1]], float)
# d: chosen 0.5 + 0.5 = 1.0 and -0.1; rejected -1.0 + 0.5 = -0.5 and -0.5.


def run(mask=MASK, nll=None, **options):
    zeros, ones = (jnp.full(MASK.shape, x, jnp.int32) for x in (0, 1))
    batch = Batch(
        zeros, zeros, ones, jnp.asarray(mask / 2), reference_logp_BT=REFERENCE, nll_weight_BT=nll
    )
    return dpo.loss(PolicyOut(jnp.asarray(LOGP), jnp.zeros(MASK.shape)), batch, **options)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_by_hand():
    value, metrics = run(beta=0.2)
    margins = [0.2 * 1.5, 0.2 * 0.4]
    assert value == pytest.approx(np.mean([-np.log(sigmoid(m)) for m in margins]), rel=1e-6)
    assert {name: float(x) for name, x in metrics.items()} == pytest.approx(
        {
            "loss": float(value), "pair_accuracy": 1.0, "margin": np.mean(margins),
            "chosen_reward": 0.2 * (1.0 - 0.1) / 2, "rejected_reward": 0.2 * -0.5,
            "chosen_logp": (-3.0 - 0.5) / 2, "rejected_logp": (-4.0 - 2.5) / 2,
            "chosen_tokens": 1.5, "rejected_tokens": 1.5,
        },
        rel=1e-6,
    )  # fmt: skip


def test_length_normalised_by_hand():
    value, _ = run(beta=5.0, length_normalised=True)
    margins = [5 * (1.0 / 2 + 0.5 / 2), 5 * (-0.1 + 0.5)]
    assert value == pytest.approx(np.mean([-np.log(sigmoid(m)) for m in margins]), rel=1e-6)


def test_a_longer_chosen_response_has_to_win_by_less():
    """R-DPO: with the last token of the first rejected response gone, 2 tokens against 1."""
    mask = MASK.copy()
    mask[1, 2] = 0  # d of the first rejected response is then -1.0
    value, metrics = run(mask=mask, beta=0.2, length_coef=0.3)
    seen = [0.2 * 2.0 + 0.3 * (2 - 1), 0.2 * 0.4]
    assert value == pytest.approx(np.mean([-np.log(sigmoid(m)) for m in seen]), rel=1e-6)
    assert metrics["margin"] == pytest.approx(0.2 * (2.0 + 0.4) / 2, rel=1e-6)


def test_label_smoothing_and_likelihood_by_hand():
    nll = np.zeros(MASK.shape)
    nll[0, :], nll[2, 1] = 0.1, 0.05  # a token without a weight in the preference counts here
    value, metrics = run(beta=0.2, label_smoothing=0.1, nll=jnp.asarray(nll))
    margins = np.array([0.3, 0.08])
    pairs = -0.9 * np.log(sigmoid(margins)) - 0.1 * np.log(sigmoid(-margins))
    expected = 0.1 * (9.0 + 1.0 + 2.0) + 0.05 * 0.5
    assert metrics["nll"] == pytest.approx(expected, rel=1e-6)
    assert value == pytest.approx(pairs.mean() + expected, rel=1e-6)


def test_gradient_by_hand():
    """dL/dlogp = -beta sigmoid(-margin) / pairs on chosen tokens, the opposite on rejected ones."""
    zeros, ones = (jnp.full(MASK.shape, x, jnp.int32) for x in (0, 1))
    batch = Batch(zeros, zeros, ones, jnp.asarray(MASK / 2), reference_logp_BT=REFERENCE)
    loss = lambda logp: dpo.loss(PolicyOut(logp, logp), batch, beta=0.2)[0]  # noqa: E731
    slope = 0.2 * sigmoid(-np.array([0.3, 0.08])) / 2
    expected = np.array([-slope[0], slope[0], -slope[1], slope[1]])[:, None] * MASK
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(LOGP)), expected, rtol=1e-5)


def test_a_pair_with_a_masked_side_counts_nothing():
    mask = MASK.copy()
    mask[3] = 0
    value, metrics = run(mask=mask, beta=0.2)
    assert value == pytest.approx(-np.log(sigmoid(0.3)) / 2, rel=1e-6)
    assert metrics["pair_accuracy"] == 0.5


def test_bad_batches_raise():
    ones = jnp.ones((3, 2), jnp.int32)
    batch = Batch(ones, ones, ones, jnp.ones((3, 2)))
    out = PolicyOut(jnp.zeros((3, 2)), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="3 rows of 1 sequences are not pairs"):
        dpo.loss(out, batch)
    with pytest.raises(ValueError, match="the dpo loss needs reference_logp_BT"):
        dpo.loss(out, batch, sequences=2)

"""Advantages against TRL's and rlax's own (tests/oracle/make_policy_gradient_goldens.py)."""

from pathlib import Path

import numpy as np
import pytest

from posttrain_jax import registry
from posttrain_jax.advantages import Told

GOLDEN = Path(__file__).parents[1] / "golden" / "policy_gradient"
CASES = {
    "group": ("group", {"ddof": 1, "eps": 1e-4}, False),
    "centred": ("group", {"divide_by_std": False}, False),
    "gdpo": ("gdpo", {}, False),
    "rloo": ("rloo", {}, True),
}


@pytest.mark.parametrize("name", CASES)
def test_trls_advantages(name):
    """A response that no verifier could score is NaN there, and not valid here."""
    estimator, options, with_kl = CASES[name]
    with np.load(GOLDEN / "advantages.npz") as file:
        stored = {k: file[k] for k in file if k != "versions"}
    values = stored["values"].astype(np.float32)
    mask = np.ones((12, 2), bool)
    cost = np.stack([stored["kl"] - 1, np.ones(12)], axis=1).astype(np.float32)
    told = Told(
        values @ stored["weights"].astype(np.float32), values, stored["weights"],
        ~np.isnan(values[:, 0]), mask, 4, kl_BT=cost if with_kl else None,
    )  # fmt: skip
    advantage, _, _ = registry.load("advantages", estimator).advantage(told, **options)
    np.testing.assert_allclose(advantage[:, 1], stored[name], rtol=0, atol=1e-6)
    assert np.array_equal(advantage[:, 0], advantage[:, 1])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.97, 0.0)])
def test_rlaxs_generalised_advantages(gamma, lam):
    """Its rewards are minus our costs; the last token's also has the response's reward."""
    with np.load(GOLDEN / "ppo.npz") as file:
        reward, value, expected = (file[k] for k in ("reward", "value", f"gae/{gamma}/{lam}"))
    cost = -reward.astype(np.float32)
    cost[:, -1] += 2.0
    rows = len(reward)
    told = Told(
        np.full(rows, 2.0), np.zeros((rows, 1)), np.ones(1), np.ones(rows, bool),
        np.ones(reward.shape, bool), 1, kl_BT=cost, value_BT=value.astype(np.float32),
    )  # fmt: skip
    gae = registry.load("advantages", "gae")
    found, returns, _ = gae.advantage(told, gamma=gamma, lam=lam, scope="none")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(returns, expected + value, rtol=0, atol=1e-6)

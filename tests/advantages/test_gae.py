"""Generalised advantages, whitening and the KL in the reward by loops in float64."""

import numpy as np
import pytest

from posttrain_jax.advantages import Told, gae, kl_penalty, whiten, with_end

MASK = (
    np.array([[0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]]) > 0
)
END = np.array([[0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]]) > 0


@pytest.fixture
def told():
    rng = np.random.default_rng(0)
    value, cost = (rng.normal(0, 1, MASK.shape).astype(np.float32) for _ in range(2))
    return Told(
        rng.normal(0, 3, 4).astype(np.float32), np.zeros((4, 1)), np.ones(1), np.ones(4, bool),
        MASK, 1, kl_BT=cost, value_BT=value,
    )  # fmt: skip


def by_definition(told, gamma, lam, mask):
    """A_t = sum_k (gamma lam)^k d_t+k, d from one's own token to the next, at each place."""
    found = np.zeros(mask.shape)
    for row in range(len(mask)):
        places = np.flatnonzero(mask[row])
        value = [float(told.value_BT[row, t]) for t in places] + [0.0]
        reward = [-float(told.kl_BT[row, t]) * told.mask_BT[row, t] for t in places]
        reward[-1] += float(told.reward_B[row])
        steps = range(len(places))
        delta = [reward[i] + gamma * value[i + 1] - value[i] for i in steps]
        for i in steps:
            found[row, places[i]] = sum((gamma * lam) ** (j - i) * delta[j] for j in steps[i:])
    return found


@pytest.mark.parametrize(("place", "steps"), [("last", MASK), ("after", END)])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8)])
def test_by_definition(told, place, steps, gamma, lam):
    """Over a tool's output; with `after` a state of its own where the row has room for it."""
    found, returns, metrics = gae.advantage(
        told, gamma=gamma, lam=lam, scope="none", reward_place=place
    )
    expected = by_definition(told, gamma, lam, steps)
    np.testing.assert_allclose(found, expected * MASK, atol=2e-6)
    np.testing.assert_allclose(returns, (expected + told.value_BT) * steps, atol=2e-6)
    assert np.array_equal(with_end(MASK), END)
    target = (expected + told.value_BT)[steps]
    explained = 1 - expected[steps].var() / target.var()
    assert float(metrics["explained_variance"]) == pytest.approx(explained, abs=1e-5)
    assert float(metrics["return"]) == pytest.approx(target.mean(), abs=1e-6)


def test_the_place_of_the_reward_matters_only_to_lambda(told):
    """With gamma = 1 they differ by lam^k (1 - lam) (V_end - reward), k tokens before the last."""
    both = [
        np.asarray(gae.advantage(told, lam=0.9, scope="none", reward_place=place)[0])
        for place in ("last", "after")
    ]
    gap = both[1] - both[0]
    lead = 0.1 * (told.value_BT[0, 4] - told.reward_B[0])
    np.testing.assert_allclose(gap[0, 1:4], [0.81 * lead, 0.9 * lead, lead], atol=1e-6)
    np.testing.assert_allclose(gap[[1, 3]], 0, atol=1e-6)  # no room: they met the length limit
    same = [
        gae.advantage(told, lam=1.0, scope="none", reward_place=place)[0]
        for place in ("last", "after")
    ]
    np.testing.assert_allclose(*same, atol=2e-6)


@pytest.mark.parametrize("ddof", [0, 1])
def test_whitening_scopes(told, ddof):
    raw = np.asarray(gae.advantage(told, scope="none")[0], np.float64)
    white = gae.advantage(told, ddof=ddof, eps=0.01)[0]
    tokens = raw[MASK]
    expected = (raw - tokens.mean()) / np.sqrt(tokens.var(ddof=ddof) + 0.01) * MASK
    np.testing.assert_allclose(white, expected, atol=2e-6)
    local = gae.advantage(told, scope="local", parts=2, ddof=ddof)[0]
    for rows in (slice(0, None, 2), slice(1, None, 2)):  # row i is in part i % 2
        tokens = raw[rows][MASK[rows]]
        expected = (raw[rows] - tokens.mean()) / tokens.std(ddof=ddof) * MASK[rows]
        np.testing.assert_allclose(local[rows], expected, atol=2e-6)


def test_whitening_of_equal_values_is_exactly_zero():
    for value in (0.0, 1 / 3, -7.3):
        assert not np.asarray(whiten(np.full((4, 6), value, np.float32), MASK)).any()
    one = np.zeros((4, 6), bool)
    one[2, 3] = True
    assert not np.asarray(whiten(np.full((4, 6), 5.0), one)).any()
    assert not np.asarray(whiten(np.full((4, 6), 5.0), np.zeros_like(one))).any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # gaps of log 2, -log 2, 30, times 0.5
        ({}, [0.5 * np.log(2), -0.5 * np.log(2), 15.0]),
        ({"estimator": "k2"}, [np.log(2) ** 2 / 4, np.log(2) ** 2 / 4, 225.0]),
        ({"estimator": "k3"}, [0.5 * (0.5 - 1 + np.log(2)), 0.5 * (2 - 1 - np.log(2)), 14.5]),
        ({"log_bound": 20.0}, [0.5 * np.log(2), -0.5 * np.log(2), 10.0]),
        ({"estimator": "k3", "log_bound": 20.0, "bound": 10.0},
         [0.5 * (0.5 - 1 + np.log(2)), 0.5 * (2 - 1 - np.log(2)), 5.0]),
    ],
)  # fmt: skip
def test_the_kl_in_the_reward_by_hand(options, expected):
    reference = np.array([[-1.0, -1.0, -31.0, -5.0]], np.float32)
    logp = reference + np.array([[np.log(2), -np.log(2), 30.0, np.nan]], np.float32)
    mask = np.array([[True, True, True, False]])
    found = kl_penalty(logp, reference, mask, coef=0.5, **options)
    np.testing.assert_allclose(found, [[*expected, 0.0]], rtol=1e-5)

"""What holds of every estimator, and formulas in float64 of those that no public library has."""

import functools

import jax
import numpy as np
import pytest

from posttrain_jax import registry
from posttrain_jax.advantages import Told

GROUPED = {
    "group": {},
    "rloo": {},
    "gdpo": {},
    "reinforce_plus_plus": {"group_baseline": True},
}
ALL = {**GROUPED, "remax": {}, "none": {}, "gae": {}}
GROUP, GROUPS, WIDTH = 3, 4, 5


@functools.cache
def jitted(name, **options):
    module = registry.load("advantages", name)
    return jax.jit(lambda told: module.advantage(told._replace(group_size=GROUP), **options))


def run(name, told, **options):
    return jitted(name, **{**ALL.get(name, {}), **options})(told)


@pytest.fixture
def told():
    rng = np.random.default_rng(0)
    rows = GROUP * GROUPS
    values = rng.normal(1.0, 2.0, (rows, 2)).astype(np.float32)
    mask = np.arange(WIDTH) < rng.integers(1, WIDTH + 1, (rows, 1))
    mask[4] = [False, True, False, True, True]  # a prompt, a tool's output between two tokens
    weights = np.array([1.0, 0.5], np.float32)
    return Told(
        (values * weights).sum(1), values, weights, np.ones(rows, bool), mask, GROUP,
        value_BT=rng.normal(0, 1, mask.shape).astype(np.float32),
        greedy_B=np.repeat(rng.normal(1, 1, GROUPS), GROUP).astype(np.float32),
    )  # fmt: skip


def costs(mask, seed=1):
    return np.random.default_rng(seed).normal(0, 0.3, mask.shape).astype(np.float32)


def to_go(told, row, gamma=1.0):
    """Returns of a row by a loop over its own tokens."""
    places = np.flatnonzero(told.mask_BT[row])
    cost = np.zeros(WIDTH) if told.kl_BT is None else told.kl_BT[row].astype(np.float64)
    rewards = [-cost[t] for t in places]
    rewards[-1] += float(told.reward_B[row])
    found, total = np.zeros(WIDTH), 0.0
    for place, reward in zip(places[::-1], rewards[::-1], strict=True):
        total = reward + gamma * total
        found[place] = total
    return found


@pytest.mark.parametrize("name", ALL)
def test_rows_that_are_not_valid_count_nowhere(told, name):
    """Whatever stands in them, NaN too; and all is 0 off the response."""
    valid = told.valid_B.copy()
    valid[[1, 6]] = False
    clean = run(name, told._replace(valid_B=valid))
    reward, values = told.reward_B.copy(), told.values_BW.copy()
    value = told.value_BT.copy()
    reward[[1, 6]], values[[1, 6]], value[[1, 6]] = np.nan, np.nan, np.nan
    dirty = run(
        name, told._replace(reward_B=reward, values_BW=values, value_BT=value, valid_B=valid)
    )
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    found = np.asarray(clean[0])
    assert np.isfinite(found).all()
    assert not found[[1, 6]].any() and not found[~told.mask_BT].any()
    assert found[told.mask_BT & valid[:, None]].all()


@pytest.mark.parametrize("name", GROUPED)
def test_permuting_the_members_of_groups_permutes_advantages(told, name):
    order = np.array([2, 0, 1, 3, 5, 4, 8, 7, 6, 9, 10, 11])
    mask = np.ones_like(told.mask_BT)  # each token of a row has the same advantage
    told = told._replace(mask_BT=mask)
    moved = told._replace(reward_B=told.reward_B[order], values_BW=told.values_BW[order])
    np.testing.assert_allclose(run(name, moved)[0], run(name, told)[0][order], atol=1e-6)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("value", [1.0, 0.1, 1 / 3, 1e6])
def test_equal_rewards_give_exact_zeros_and_are_counted(told, name, value):
    values = told.values_BW.copy()
    values[3:6] = value
    reward = (values * told.weights_W).sum(1)
    found, _, metrics = run(name, told._replace(reward_B=reward, values_BW=values))
    assert not np.asarray(found)[3:6].any() and np.asarray(found)[told.mask_BT][:3].any()
    assert metrics["all_equal_groups"] == 1 / GROUPS and metrics["groups_of_one"] == 0


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_one_or_none_gives_zeros_and_is_counted(told, name):
    valid = told.valid_B.copy()
    valid[[0, 1, 3, 4, 5]] = False
    found, _, metrics = run(name, told._replace(valid_B=valid))
    assert not np.asarray(found)[:6].any() and np.isfinite(found).all()
    assert metrics["groups_of_one"] == metrics["all_equal_groups"] == 2 / GROUPS
    module = registry.load("advantages", name)
    found, _, metrics = module.advantage(told._replace(group_size=1), **GROUPED[name])
    assert not np.asarray(found).any() and metrics["groups_of_one"] == 1


def test_group_is_the_function_of_the_same_name_at_every_token(told):
    found, returns, _ = run("group", told, ddof=1)
    for group in range(GROUPS):
        rows = np.s_[group * GROUP : (group + 1) * GROUP]
        reward = told.reward_B[rows].astype(np.float64)
        expected = (reward - reward.mean()) / reward.std(ddof=1)
        mask = told.mask_BT[rows]
        np.testing.assert_allclose(found[rows], expected[:, None] * mask, atol=1e-6)
    assert returns is None


def test_a_kl_in_the_reward_counts_with_its_sum(told):
    told = told._replace(kl_BT=costs(told.mask_BT))
    less = told.reward_B - (told.kl_BT * told.mask_BT).sum(1)
    for name in ("group", "rloo"):
        plain = run(name, told._replace(reward_B=less, kl_BT=None))[0]
        np.testing.assert_allclose(run(name, told)[0], plain, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_returns_to_go_of_reinforce_and_remax(told, gamma):
    told = told._replace(kl_BT=costs(told.mask_BT))
    expected = np.stack([to_go(told, row, gamma) for row in range(len(told.mask_BT))])
    found = run("none", told, gamma=gamma, baseline=0.25)[0]
    np.testing.assert_allclose(found, (expected - 0.25) * told.mask_BT, atol=2e-6)
    found, _, metrics = run("remax", told, gamma=gamma)
    expected = (expected - told.greedy_B[:, None]) * told.mask_BT
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert metrics["equal_to_greedy"] == 0


def test_a_response_as_good_as_the_greedy_one_gives_exact_zeros_and_is_counted(told):
    reward = told.reward_B.copy()
    reward[[2, 7]] = told.greedy_B[[2, 7]]
    valid = told.valid_B.copy()
    valid[[0, 7]] = False
    found, _, metrics = run("remax", told._replace(reward_B=reward, valid_B=valid))
    assert not np.asarray(found)[2].any()
    assert metrics["equal_to_greedy"] == pytest.approx(1 / 10)


@pytest.mark.parametrize("ddof", [0, 1])
def test_reinforce_plus_plus(told, ddof):
    """arXiv 2501.03262: A = r - sum of later costs, whitened over all tokens of the batch."""
    told = told._replace(kl_BT=costs(told.mask_BT))
    returns = np.stack([to_go(told, row) for row in range(len(told.mask_BT))])
    tokens = returns[told.mask_BT]
    expected = (returns - tokens.mean()) / tokens.std(ddof=ddof) * told.mask_BT
    found = run("reinforce_plus_plus", told, group_baseline=False, ddof=ddof)[0]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_reinforce_plus_plus_with_a_group_baseline(told):
    reward = told.reward_B.astype(np.float64).reshape(GROUPS, GROUP)
    centred = (reward - reward.mean(1, keepdims=True)).reshape(-1, 1) * told.mask_BT
    tokens = centred[told.mask_BT]
    expected = (centred - tokens.mean()) / tokens.std() * told.mask_BT
    np.testing.assert_allclose(run("reinforce_plus_plus", told)[0], expected, atol=2e-6)


def test_reinforce_plus_plus_of_a_batch_of_equal_rewards_is_zero(told):
    told = told._replace(reward_B=np.full_like(told.reward_B, 1 / 3))
    assert not np.asarray(run("reinforce_plus_plus", told, group_baseline=False)[0]).any()


def test_gdpo_tells_apart_what_sums_to_the_same(told):
    """(1, 0) and (0, 1) have one sum; a term whose weight is 0 says nothing."""
    values = np.zeros_like(told.values_BW)
    values[:3] = [[1, 0], [0, 1], [0, 1]]
    values[3:6] = [[1, 1], [1, 2], [1, 3]]
    even = np.ones(2, np.float32)
    told = told._replace(values_BW=values, weights_W=even, reward_B=values.sum(1))
    found, _, metrics = run("gdpo", told._replace(weights_W=np.array([1.0, 2.0], np.float32)))
    assert np.asarray(found)[:3][told.mask_BT[:3]].all()
    assert metrics["all_equal_groups"] == 0.5
    assert not np.asarray(run("group", told)[0])[:3].any()
    found, _, metrics = run("gdpo", told._replace(weights_W=np.array([1.0, 0.0], np.float32)))
    assert not np.asarray(found)[3:].any() and metrics["all_equal_groups"] == 0.75


def test_what_an_estimator_needs_is_asked_for(told):
    with_kl = told._replace(kl_BT=costs(told.mask_BT))
    for name, options, wrong, message in (
        ("remax", {}, told._replace(greedy_B=None), "greedy_B"),
        ("gae", {}, told._replace(value_BT=None), "value_BT"),
        ("gae", {"scope": "world"}, told, "whiten 'world'"),
        ("gae", {"scope": "local", "parts": 5}, told, "12 rows are not 5 equal parts"),
        ("gae", {"reward_place": "first"}, told, "reward_place 'first'"),
        ("gdpo", {}, with_kl, "kl_coef"),
        ("reinforce_plus_plus", {"group_baseline": True}, with_kl, "kl_estimator='k2'"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.load("advantages", name).advantage(wrong, **options)

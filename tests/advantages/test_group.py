"""Group-normalised advantages against numbers worked by hand and the statistics module."""

import statistics

import jax
import numpy as np
import pytest

from posttrain_jax.advantages import group_normalised

normalise = jax.jit(
    group_normalised, static_argnames=("group_size", "divide_by_std", "ddof", "eps")
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # mean 1/2; population std 1/2, sample std sqrt(1/3)
        ({}, [1, -1, -1, 1]),
        ({"ddof": 1}, [0.8660254, -0.8660254, -0.8660254, 0.8660254]),
        ({"divide_by_std": False}, [0.5, -0.5, -0.5, 0.5]),
    ],
)
def test_by_hand(options, expected):
    advantage, equal = normalise(np.array([1.0, 0.0, 0.0, 1.0]), 4, **options)
    np.testing.assert_allclose(advantage, expected, atol=1e-6)
    assert equal.tolist() == [False]


@pytest.mark.parametrize(("ddof", "spread"), [(0, statistics.pstdev), (1, statistics.stdev)])
def test_each_group_by_itself(ddof, spread):
    reward = np.random.default_rng(0).normal(3.0, 2.0, (5, 6)).astype(np.float32)
    advantage, _ = normalise(reward.reshape(-1), 6, ddof=ddof)
    for found, group in zip(advantage.reshape(5, 6), reward.tolist(), strict=True):
        mean, std = statistics.fmean(group), spread(group)
        np.testing.assert_allclose(found, [(r - mean) / std for r in group], atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, -7.3, 1e6])
@pytest.mark.parametrize("divide", [True, False])
def test_equal_rewards_give_exact_zeros_and_are_reported(value, divide):
    reward = np.array([value] * 7 + [0, 1, 0, 0, 0, 0, 0], np.float32)
    advantage, equal = normalise(reward, 7, divide_by_std=divide)
    assert np.asarray(advantage)[:7].tolist() == [0.0] * 7
    assert equal.tolist() == [True, False]
    assert np.all(np.asarray(advantage)[7:] != 0)


def test_masked_rows_count_neither_in_mean_nor_in_std():
    reward = np.array([1.0, 900.0, 3.0, 5.0, -300.0], np.float32)
    mask = np.array([True, False, True, True, False])
    advantage, equal = normalise(reward, 5, mask_B=mask)
    # mean 3, population std sqrt(8/3)
    np.testing.assert_allclose(advantage, [-1.2247449, 0, 0, 1.2247449, 0], atol=1e-6)
    assert equal.tolist() == [False]


@pytest.mark.parametrize("mask", [[True, False, False], [False, False, False]])
def test_a_group_with_less_than_two_valid_rows_gives_no_gradient(mask):
    advantage, equal = normalise(np.array([5.0, 1.0, 2.0]), 3, mask_B=np.array(mask))
    assert advantage.tolist() == [0, 0, 0]
    assert equal.tolist() == [True]


def test_a_small_spread_is_divided_by_more_than_itself():
    reward = np.array([0.0, 2e-3], np.float32)
    advantage, _ = normalise(reward, 2, eps=1e-3)  # mean 1e-3, std 1e-3: 1e-3 / (1e-3 + 1e-3)
    np.testing.assert_allclose(advantage, [-0.5, 0.5], atol=1e-6)

"""The sampling rules against brute-force sets in numpy, and frequencies against probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.rollout.draw import draw
from posttrain_jax.rollout.sampling import (
    Sampling,
    filter_logits,
    first_largest,
    row_keys,
    waits,
)

LOGITS = np.random.default_rng(0).normal(0, 2, (6, 12)).astype(np.float32)
filtered = jax.jit(filter_logits, static_argnums=1)


@functools.partial(jax.jit, static_argnums=2)
def sampled(logits_BV, keys_B, sampling):
    """(token, its log-prob under the sampling distribution, and under the model)."""
    return draw(logits_BV, keys_B, jnp.zeros(len(logits_BV), jnp.int32), sampling)[:3]


def allowed_probs(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """One row's sampling distribution, in float64, token by token in falling order."""
    scaled = np.float64(logits) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda v: -probs[v])
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        whole, kept, mass = sum(probs[v] for v in order), [], 0.0
        for v in order:
            if mass / whole >= top_p:
                break
            kept.append(v)
            mass += probs[v]
        order = kept
    order = [v for v in order if probs[v] >= min_p * probs[order[0]]]
    rest = np.zeros_like(probs)
    rest[order] = probs[order] / probs[order].sum()
    return rest


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.01},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 6, "top_p": 0.7, "min_p": 0.2},
    ],
)
def test_the_renormalised_distribution(rules):
    probs = jax.nn.softmax(filtered(LOGITS, Sampling(**rules)))
    expected = np.array([allowed_probs(row, **rules) for row in LOGITS])
    assert ((np.asarray(probs) > 0) == (expected > 0)).all()
    np.testing.assert_allclose(probs, expected, atol=1e-5)


def test_the_filters_apply_in_the_order_that_is_written():
    """0.5, 0.2, 0.2, 0.1: top-3 leaves 0.56, 0.22, 0.22, of which top-p 0.5 keeps the first."""
    logits = np.log(np.array([[0.5, 0.21, 0.19, 0.1]], np.float32))
    kept = filtered(logits, Sampling(top_k=3, top_p=0.53)) > -1e29
    assert kept.tolist() == [[True, False, False, False]]
    assert (filtered(logits, Sampling(top_p=0.53)) > -1e29).tolist() == [[True, True, False, False]]


def test_more_top_k_than_tokens_keeps_all():
    np.testing.assert_array_equal(filtered(LOGITS, Sampling(top_k=50)), LOGITS)


@pytest.mark.parametrize("rules", [{}, {"temperature": 0.6, "top_k": 7, "top_p": 0.9}])
def test_frequencies_by_chi_square(rules):
    draws = 20_000
    logits = np.array([1.0, 0.0, -0.5, 2.0, -3.0, 1.5, 0.2, -0.1], np.float32)
    keys = row_keys(jax.random.key(7), jnp.arange(draws), jnp.full(draws, 3))
    tokens, behaviour, _ = sampled(jnp.tile(logits, (draws, 1)), keys, Sampling(**rules))
    probs = allowed_probs(logits, **rules)
    counts = np.bincount(tokens, minlength=8)
    assert not counts[probs == 0].any()
    expected = draws * probs[probs > 0]
    chi2 = (((counts[probs > 0] - expected) ** 2) / expected).sum()
    assert chi2 < 24.3  # 7 degrees of freedom (or fewer), p = 0.001
    np.testing.assert_allclose(behaviour, np.log(probs[np.asarray(tokens)]), atol=1e-5)


def test_behaviour_and_model_log_probs_under_truncation():
    rules = {"temperature": 0.5, "top_k": 3}
    keys = row_keys(jax.random.key(1), jnp.arange(6), jnp.zeros(6, int))
    tokens, behaviour, model = sampled(LOGITS, keys, Sampling(**rules))
    for token, b, m, row in zip(tokens, behaviour, model, LOGITS, strict=True):
        assert b == pytest.approx(np.log(allowed_probs(row, **rules)[token]), abs=1e-5)
        assert m == pytest.approx(np.log(allowed_probs(row)[token]), abs=1e-5)


def test_greedy_takes_the_likeliest_and_ignores_keys_and_filters():
    for seed in (0, 1):
        keys = row_keys(jax.random.key(seed), jnp.arange(6), jnp.zeros(6, int))
        tokens, behaviour, model = sampled(LOGITS, keys, Sampling(temperature=0.0, top_k=3))
        assert tokens.tolist() == [max(range(12), key=row.__getitem__) for row in LOGITS]
        assert behaviour.tolist() == [0] * 6
        expected = [np.log(allowed_probs(row).max()) for row in LOGITS]
        np.testing.assert_allclose(model, expected, atol=1e-5)


def test_the_first_of_the_largest_is_taken():
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 3, (64, 50)).astype(np.float32)  # many are equal
    values[0] = -np.inf
    values[1] = -1e30
    assert first_largest(jnp.array(values)).tolist() == values.argmax(axis=1).tolist()


def test_keys_come_from_uid_and_position_not_from_the_row():
    key = jax.random.key(0)
    data = jax.random.key_data(row_keys(key, jnp.array([5, 6, 5, 6]), jnp.array([2, 2, 3, 3])))
    assert len(np.unique(data, axis=0)) == 4
    alone = jax.random.key_data(row_keys(key, jnp.array([6]), jnp.array([3])))
    assert alone[0].tolist() == data[3].tolist()


@pytest.mark.parametrize(
    ("rules", "truncated"),
    [({}, False), ({"temperature": 0.3}, False), ({"top_k": 2}, True), ({"top_p": 0.9}, True),
     ({"min_p": 0.1}, True)],
)  # fmt: skip
def test_truncated_says_whether_tokens_are_excluded(rules, truncated):
    assert Sampling(**rules).truncated is truncated
    assert bool((filtered(LOGITS, Sampling(**rules)) < -1e29).any()) is truncated
    assert Sampling(temperature=0.0).truncated  # greedy: only the likeliest one can be sampled


def test_waits_are_exponential_for_every_row_and_place():
    keys = row_keys(jax.random.key(3), jnp.arange(300), jnp.full(300, 9))
    found = np.sort(np.float64(jax.jit(waits, static_argnums=1)(keys, 400)), axis=None)
    n = found.size
    distance = np.abs(-np.expm1(-found) - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.95 / np.sqrt(n)  # Kolmogorov-Smirnov, p = 0.001
    assert found[0] < 2e-4 and found[0] > 0  # the least of 120,000
    assert np.isfinite(found).all()


def test_waits_of_neighbours_have_nothing_to_do_with_each_other():
    uids, positions = jnp.repeat(jnp.arange(128), 128), jnp.tile(jnp.arange(128), 128)
    found = np.float64(waits(row_keys(jax.random.key(0), uids, positions), 64))
    uniform = np.exp(-found).reshape(128, 128, 64) - 0.5  # uid, position, place
    for axis in range(3):
        for apart in (1, 2, 7, 32):
            low, high = (
                uniform.take(range(*ends), axis)
                for ends in ((0, uniform.shape[axis] - apart), (apart, uniform.shape[axis]))
            )
            products = 12 * low * high
            assert abs(products.mean()) < 3.9 * products.std() / np.sqrt(products.size)


def test_waits_of_a_row_do_not_depend_on_the_rows_beside_it_nor_on_the_vocabulary():
    keys = row_keys(jax.random.key(0), jnp.arange(5), jnp.arange(5))
    np.testing.assert_array_equal(waits(keys, 40)[3:, :30], waits(keys[3:], 30))

"""Values of a model of its own and of a head on the policy, against the float64 decoder."""

import jax
import numpy as np
import pytest

from posttrain_jax import train_state, value_model
from posttrain_jax.api import Batch

START = 3


@pytest.fixture
def rows(small, hidden_float64):
    """(batch of two rows, a head, the values that it has by the float64 decoder).

    The second row is padded on its left, and bears weight one place after its end.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 32, (2, 8)).astype(np.int32)
    segments = np.ones((2, 8), np.int32)
    segments[1, [0, 7]] = 0
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
    weight = np.zeros((2, 8), np.float32)
    weight[0, [3, 4, 6]] = weight[1, [4, 5, 7]] = 1
    head = {"weight": rng.standard_normal((16, 1)).astype(np.float32)}
    expected = np.zeros((2, 8))
    for row, first in ((0, 0), (1, 1)):
        hidden = hidden_float64(small.exact, small.model.config, tokens[row, first:])
        for t in np.flatnonzero(weight[row]):
            expected[row, t] = hidden[t - 1 - first] @ head["weight"][:, 0]  # before token t
    return Batch(tokens, positions, segments, weight), head, expected


def test_a_value_is_that_of_the_state_before_its_token(small, rows):
    batch, head, expected = rows
    params = {"backbone": small.params, "head": head}
    found = value_model.values(value_model.value_out, small.model, params, batch, start=START)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_head_on_the_policy_reads_the_same_states(small, rows):
    batch, head, expected = rows
    params = {**small.params, value_model.HEAD: head}
    found = value_model.values(train_state.policy_out, small.model, params, batch, start=START)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    plain = value_model.without_head(params)
    assert jax.tree.structure(plain) == jax.tree.structure(small.params)
    assert train_state.policy_out(small.model, plain, batch, START, 1.0).value_BT is None

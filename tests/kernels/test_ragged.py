"""Ragged products against a loop over rows in float64, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.kernels.ragged import ragged_matmul

multiply = jax.jit(ragged_matmul, static_argnames="impl")
IMPLS = ("ragged", "blocked", "reference")
SIZES = ([5, 0, 9, 1], [0, 0, 0, 16], [16, 0, 0, 0], [3, 4, 0, 2], [0, 0, 0, 0])


def inputs(rows=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, 6)), rng.standard_normal((4, 6, 3))


def by_row(x, w, sizes):
    """[sum of sizes, F]: each row with the matrix of its group."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    return np.stack([x[i] @ w[g] for i, g in enumerate(group)]) if len(group) else np.zeros((0, 3))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sizes", SIZES)
def test_every_row_meets_the_matrix_of_its_group(impl, sizes):
    x, w = inputs()
    found = multiply(jnp.float32(x), jnp.float32(w), jnp.array(sizes, jnp.int32), impl=impl)
    assert found.shape == (16, 3)
    np.testing.assert_allclose(found[: sum(sizes)], by_row(x, w, sizes), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS[:2])
def test_gradients_by_hand(impl):
    """d sum(g * x w) is g w^T for a row, and the sum of x^T g over a group's rows."""
    x, w = inputs(seed=1)
    sizes = [5, 0, 8, 1]
    g = np.random.default_rng(2).standard_normal((16, 3)) * (np.arange(16) < 14)[:, None]

    def value(x, w):
        out = ragged_matmul(x, w, jnp.array(sizes, jnp.int32), impl=impl)
        return jnp.sum(jnp.where(jnp.arange(16)[:, None] < 14, out, 0.0) * g)

    grad_x, grad_w = jax.jit(jax.grad(value, (0, 1)))(jnp.float32(x), jnp.float32(w))
    group = np.repeat(np.arange(4), sizes)
    np.testing.assert_allclose(
        grad_x[:14], [w[e] @ g[i] for i, e in enumerate(group)], atol=1e-5
    )  # fmt: skip
    for e in range(4):
        here = np.flatnonzero(group == e)
        np.testing.assert_allclose(grad_w[e], x[here].T @ g[here], atol=1e-5)


def test_the_blocked_form_costs_at_most_twice_the_rows():
    """2 M D F of work; JAX's lowering of ragged_dot does it for each of 16 groups."""
    sizes = jnp.full(16, 32, jnp.int32)

    def work(impl):
        x, w = jnp.ones((512, 32)), jnp.ones((16, 32, 64))
        call = jax.jit(lambda x, w, sizes: ragged_matmul(x, w, sizes, impl=impl))
        return call.lower(x, w, sizes).compile().cost_analysis()["flops"] / (2 * 512 * 32 * 64)

    assert work("blocked") < 2.2
    assert work("ragged") > 15  # where this no longer holds, `auto` may take it on CPU too


def test_an_unknown_form():
    with pytest.raises(ValueError, match="'dense': expected auto, ragged, blocked or reference"):
        ragged_matmul(jnp.ones((2, 3)), jnp.ones((1, 3, 2)), jnp.array([2]), impl="dense")

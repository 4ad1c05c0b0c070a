"""Routers and experts against brute force in numpy float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.models import moe
from posttrain_jax.models.config import Experts
from posttrain_jax.models.moe import Routes

route = jax.jit(moe.route, static_argnums=0)
own_experts = jax.jit(functools.partial(moe.own_experts, activation="silu"))
SOFTMAX = Experts(count=6, active=2, ffn=5)
SIGMOID = Experts(
    count=8, active=3, ffn=5, router="sigmoid", scale=2.5, groups=4, active_groups=2
)  # fmt: skip


def softmax_by_hand(e, logits):
    """(experts, weights, entropy) of one token."""
    p = np.exp(logits) / np.exp(logits).sum()
    chosen = sorted(range(e.count), key=lambda i: (-p[i], i))[: e.active]
    weight = p[chosen] / p[chosen].sum() if e.normalise else p[chosen]
    return chosen, weight * e.scale, -(p * np.log(p)).sum()


def sigmoid_by_hand(e, logits, bias):
    """As DeepSeek-V3's paper tells it, by trying all groups and all experts."""
    s = 1 / (1 + np.exp(-logits))
    good, size = s + bias, e.count // e.groups
    quality = [sorted(good[g * size : (g + 1) * size])[-2:] for g in range(e.groups)]
    kept = max(itertools.combinations(range(e.groups), e.active_groups),
               key=lambda groups: sum(sum(quality[g]) for g in groups))  # fmt: skip
    able = [i for i in range(e.count) if i // size in kept]
    chosen = sorted(able, key=lambda i: (-good[i], i))[: e.active]
    weight = s[chosen] / s[chosen].sum() if e.normalise else s[chosen]
    p = s / s.sum()
    return chosen, weight * e.scale, -(p * np.log(p)).sum()


def logits_of(e, seed, tokens=40):
    return 2 * np.random.default_rng(seed).standard_normal((2, tokens // 2, e.count))


def compare(found: Routes, expected):
    flat = (np.asarray(x).reshape(-1, *x.shape[2:]) for x in found)
    for choice, weight, entropy, (chosen, weights, nats) in zip(*flat, expected, strict=True):
        assert choice.tolist() == list(chosen)
        np.testing.assert_allclose(weight, weights, rtol=1e-5)
        assert entropy == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_softmax_router(normalise):
    e = Experts(count=6, active=2, ffn=5, normalise=normalise, scale=1.5)
    logits = logits_of(e, 0)
    expected = [softmax_by_hand(e, row) for row in logits.reshape(-1, e.count)]
    compare(route(e, jnp.float32(logits)), expected)


@pytest.mark.parametrize("normalise", [True, False])
def test_sigmoid_router_with_groups_and_a_bias_that_only_chooses(normalise):
    e = Experts(**{**vars(SIGMOID), "normalise": normalise})
    logits, bias = logits_of(e, 1), np.random.default_rng(2).standard_normal(8)
    flat = logits.reshape(-1, e.count)
    expected = [sigmoid_by_hand(e, row, bias) for row in flat]
    compare(route(e, jnp.float32(logits), jnp.float32(bias)), expected)
    unbiased = [sigmoid_by_hand(e, row, 0 * bias)[0] for row in flat]
    assert any(a[0] != b for a, b in zip(expected, unbiased, strict=True))


def test_groups_shut_out_experts_that_are_good_alone_also_where_scores_are_negative():
    """Expert 0 is the best of all, but its group's two best are worse than the others'."""
    e = Experts(count=4, active=2, ffn=1, router="sigmoid", groups=2, active_groups=1)
    logits, bias = np.zeros((1, 1, 4)), np.array([-1.0, -3.0, -1.5, -1.6])
    found = route(e, jnp.float32(logits), jnp.float32(bias))
    assert found.choice_BTA.tolist() == [[[2, 3]]]


def test_equal_scores_go_to_the_lower_numbers():
    found = route(SOFTMAX, jnp.zeros((1, 1, 6)))
    assert found.choice_BTA.tolist() == [[[0, 1]]]
    found = route(SIGMOID, jnp.zeros((1, 1, 8)), jnp.zeros(8))
    assert found.choice_BTA.tolist() == [[[0, 1, 2]]]


def test_recorded_choices_stay_and_weigh_what_the_router_says_now():
    logits = logits_of(SOFTMAX, 3, tokens=6)
    recorded = np.array([[[5, 0], [-1, -1], [2, 3]], [[1, 4], [0, 5], [-1, -1]]], np.int16)
    found = route(SOFTMAX, jnp.float32(logits), None, jnp.asarray(recorded))
    for place in np.ndindex(2, 3):
        own, _, _ = softmax_by_hand(SOFTMAX, logits[place])
        chosen = list(recorded[place]) if recorded[place][0] >= 0 else own
        assert found.choice_BTA[place].tolist() == chosen
        p = np.exp(logits[place])[chosen]
        np.testing.assert_allclose(found.weight_BTA[place], p / p.sum(), rtol=1e-5)
    # and they are differentiated: d log(w0 / w1) / d logits is +1 and -1 at the recorded experts
    ratio = lambda x: jnp.log(  # noqa: E731
        jnp.divide(*route(SOFTMAX, x, None, jnp.asarray(recorded)).weight_BTA[0, 0])
    )
    grad = jax.grad(ratio)(jnp.float32(logits))[0, 0]
    np.testing.assert_allclose(grad, [-1, 0, 0, 0, 0, 1], atol=1e-5)


def random_experts(count, width, ffn, seed):
    rng = np.random.default_rng(seed)
    shapes = ((count, width, ffn), (count, width, ffn), (count, ffn, width))
    return tuple(0.5 * rng.standard_normal(shape) for shape in shapes)


def dense(y, choice, weight, gate, up, down):
    """Every token's experts in a loop."""

    def one(token, e):
        inner = token @ gate[e]
        return (inner / (1 + np.exp(-inner)) * (token @ up[e])) @ down[e]

    return np.array([
        sum(w * one(token, e) for e, w in zip(experts, weights, strict=True))
        for token, experts, weights in zip(y, choice, weight, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize(("count", "active", "tokens"), [(6, 2, 14), (2, 2, 3), (12, 3, 1)])
def test_experts_equal_a_loop_over_tokens_in_float64(count, active, tokens):
    rng = np.random.default_rng(4)
    y = rng.standard_normal((tokens, 7))
    choice = np.stack([rng.permutation(count)[:active] for _ in range(tokens)])
    weight, matrices = rng.random((tokens, active)), random_experts(count, 7, 5, 5)
    found = own_experts(
        jnp.float32(y)[None], jnp.asarray(choice)[None], jnp.float32(weight)[None],
        *map(jnp.float32, matrices), 0,
    )[0]  # fmt: skip
    np.testing.assert_allclose(found, dense(y, choice, weight, *matrices), atol=1e-5)


def test_devices_with_a_part_of_the_experts_add_up():
    rng = np.random.default_rng(6)
    y, weight = rng.standard_normal((1, 9, 7)), rng.random((1, 9, 3))
    choice = np.stack([rng.permutation(8)[:3] for _ in range(9)])[None]
    matrices = [jnp.float32(m) for m in random_experts(8, 7, 5, 7)]
    work = lambda first, part: own_experts(  # noqa: E731
        jnp.float32(y), jnp.asarray(choice), jnp.float32(weight),
        *(m[first : first + part] for m in matrices), first,
    )  # fmt: skip
    parts = sum(work(first, 2) for first in (0, 2, 4, 6))
    np.testing.assert_allclose(parts, work(0, 8), atol=1e-6)


def test_gradients_equal_those_of_the_dense_formulation():
    """Every expert on every token, weighted by 0 where it was not chosen."""
    rng = np.random.default_rng(8)
    y, logits = (jnp.float32(rng.standard_normal((2, 5, n))) for n in (7, SOFTMAX.count))
    matrices = [jnp.float32(m) for m in random_experts(SOFTMAX.count, 7, 5, 9)]
    towards = jnp.float32(rng.standard_normal((2, 5, 7)))

    def sparse(y, logits, *matrices):
        routes = route(SOFTMAX, logits)
        return jnp.sum(towards * moe.apart(y, routes, matrices, "silu", True))

    def plain(y, logits, gate, up, down):
        top, chosen = jax.lax.top_k(jax.nn.softmax(logits), SOFTMAX.active)
        top /= jnp.sum(top, axis=-1, keepdims=True)
        weight = jnp.einsum("BTAE,BTA->BTE", jax.nn.one_hot(chosen, SOFTMAX.count), top)
        inner = jax.nn.silu(jnp.einsum("BTD,EDF->BTEF", y, gate))
        inner *= jnp.einsum("BTD,EDF->BTEF", y, up)
        return jnp.einsum("BTD,BTEF,EFD,BTE->", towards, inner, down, weight)

    both = [jax.jit(jax.grad(f, range(5)))(y, logits, *matrices) for f in (sparse, plain)]
    for found, expected in zip(*both, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": "linear"}, "experts.router='linear': expected one of"),
        ({"groups": 3}, "8 of them in 3 groups"),
        ({"active_groups": 5}, "of which 5 stay"),
        ({"active": 5}, "5 of 4 "),
        ({"groups": 8, "active_groups": 8}, "a group needs two"),
        ({"first_dense": 2}, "first_dense=2: expected less than layers=2"),
    ],
)
def test_impossible_mixtures(changes, message):
    with pytest.raises(ValueError, match=message):
        moe.check(Experts(**{**vars(SIGMOID), **changes}), 2)

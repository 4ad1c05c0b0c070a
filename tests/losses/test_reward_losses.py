"""Losses of reward models against TRL and torch (stored), brute force over pairs, identities."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.losses import bradley_terry, listwise, pointwise, regression, step_cross_entropy

STORED = np.load(Path(__file__).parents[1] / "golden" / "reward_losses.npz")


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-12, rtol=1e-10)


def pairs(options, margin, flipped=False):
    """Our loss and its gradient (chosen, rejected) on the stored scores."""
    scores = np.stack([STORED["chosen"], STORED["rejected"]], axis=1)[..., None]
    labels = np.broadcast_to([[1.0], [0.0]], scores.shape)
    side = slice(None, None, -1 if flipped else 1)
    weight = np.full(scores.shape, 1 / len(scores))

    def loss(x):
        return bradley_terry.loss(x[:, side], labels[:, side], weight, margin, **options)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(scores))
    return value, gradient[..., 0].T


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("name", "with_margin", "options"),
    [
        ("pairs", False, {}), ("pairs_margin", True, {}),
        ("pairs_center", True, {"center_coef": 0.01}),
    ],
)  # fmt: skip
def test_bradley_terry_is_that_of_trl(name, with_margin, options, flipped):
    margin = STORED["margin"] * with_margin
    value, gradient = pairs(options, margin, flipped)
    close(value, STORED[name])
    close(gradient, STORED[f"{name}_gradient"])


def test_bradley_terry_takes_pairs_only_and_counts_no_ties():
    x = np.zeros((1, 3, 1))
    with pytest.raises(ValueError, match="groups of 3 responses: set loss='listwise'"):
        bradley_terry.loss(x, x, x, np.zeros(1))
    x = np.array([[[1.0], [1.0]], [[-1e4], [1e4]]])
    label, weight = np.array([[[1.0], [0.0]]] * 2), np.full((2, 2, 1), 0.5)
    value, metrics = bradley_terry.loss(x, label, weight, np.zeros(2))
    assert float(metrics["pair_accuracy"]) == 0.0  # a tie is not right
    assert float(metrics["score_gap"]) == -1e4
    assert float(value) == pytest.approx((math.log(2) + 2e4) / 2)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_listwise_is_the_mean_over_all_pairs(size):
    """Qwen2.5-Math's 1 / (k (n - k)) sum; with ranks the mean over the pairs that differ."""
    rng = np.random.default_rng(size)
    scores, label = rng.normal(size=(4, size)), rng.integers(0, 3, (4, size)).astype(float)
    label[0] = [1] + [0] * (size - 1)
    label[1] = 1.0  # no pair
    here = np.ones((4, size), bool)
    here[2, -1] = False
    margin = rng.random(4)
    weight = here * 0.25
    value, metrics = listwise.loss(scores[..., None], label[..., None], weight[..., None], margin)
    lost, right = 0.0, 0.0
    for g in range(4):
        found = [
            scores[g, i] - scores[g, j] for i, j in itertools.permutations(range(size), 2)
            if label[g, i] > label[g, j] and here[g, i] and here[g, j]
        ]  # fmt: skip
        if found:
            lost += np.mean([math.log1p(math.exp(margin[g] - gap)) for gap in found]) / 4
            right += np.mean([gap > 0 for gap in found]) / 4
    close(value, lost)
    close(metrics["pair_accuracy"], right)


def test_qwens_six_and_a_pair():
    scores, k = np.random.default_rng(0).normal(size=6), 2
    label, weight = np.float64([1, 0, 0, 1, 0, 0]), np.ones((1, 6, 1))
    value, _ = listwise.loss(scores[None, :, None], label[None, :, None], weight, np.zeros(1))
    gaps = scores[label == 1][:, None] - scores[label == 0][None]
    close(value, -1 / (k * (6 - k)) * np.sum(np.log(1 / (1 + np.exp(-gaps)))))
    two = [x[None, :2, None] for x in (scores, label, np.ones(6))]
    close(listwise.loss(*two, np.zeros(1))[0], bradley_terry.loss(*two, np.zeros(1))[0])


def test_the_order_of_a_group_changes_nothing():
    rng = np.random.default_rng(3)
    x, label, weight = (
        rng.normal(size=(2, 5, 1)),
        rng.integers(0, 2, (2, 5, 1)),
        np.full((2, 5, 1), 0.5),
    )
    order = rng.permutation(5)
    grad = jax.grad(lambda x, label: listwise.loss(x, label, weight, np.zeros(2))[0])
    close(grad(x, label)[:, order], grad(x[:, order], label[:, order]))


def test_pointwise_is_torchs_cross_entropy():
    x, y = STORED["chosen"][:, None, None], (STORED["rejected"] > 0)[:, None, None] * 1.0
    loss = lambda x: pointwise.loss(x, y, np.full(x.shape, 1 / len(x)), np.zeros(len(x)))  # noqa: E731
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(x))
    close(value, STORED["points"])
    close(gradient[:, 0, 0], STORED["points_gradient"])
    close(metrics["label_accuracy"], np.mean((x > 0) == (y > 0)))


def test_steps_are_torchs_cross_entropy():
    logits, labels = STORED["logits"], STORED["labels"]
    for name, y, here in (
        ("steps", np.maximum(labels, 0.0), labels >= 0),
        ("soft", STORED["share"], np.ones(labels.shape, bool)),
    ):
        loss = lambda x, y=y, here=here: step_cross_entropy.loss(x, y, here / here.sum())  # noqa: E731
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
        close(value, STORED[name])
        close(gradient, STORED[f"{name}_gradient"])
        right = (logits[..., 1] > logits[..., 0]) == (y > 0.5)
        close(metrics["step_accuracy"], right[here].mean())


def test_regression_leaves_out_what_is_not_rated():
    x, y = np.float64([[[0.5, 3.0]], [[0.0, 0.25]]]), np.float64([[[1.0, 0.0]], [[0.5, 0.75]]])
    weight = np.float64([[[0.5, 0.0]], [[0.5, 0.5]]])
    value, _ = regression.loss(x, y, weight, np.zeros(2))
    close(value, (0.25 + 0.25 + 0.25) / 2)

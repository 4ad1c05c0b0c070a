"""The GRPO loss against numbers worked by hand and Python loops over float64 formulas."""

import math

import jax
import numpy as np
import pytest

from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.losses import grpo
from posttrain_jax.losses.common import aggregation_weights

# R1, arXiv 2501.12948v1, eq. 1-2, eight rows: token ratios pi / pi_old, token ratios pi_ref / pi,
# advantage; then the row's term min(r A, clip(r) A) - beta (q - 1 - log q), with r and q the
# products over the row, clip to [0.8, 1.2], beta = 0.1.
ROWS = [
    ([2.0, 0.5, 1.0], [1.0, 1.0, 1.0], 1.0, 1.0),  # r = 1: only the sequence counts
    ([2.0, 2.0, 1.0], [1.0, 1.0, 1.0], 1.0, 1.2),  # r = 4, clipped from above
    ([2.0, 2.0, 1.0], [1.0, 1.0, 1.0], -1.0, -4.0),  # r = 4, not clipped for A < 0
    ([0.5], [1.0], 2.0, 1.0),  # r = 1/2, not clipped for A > 0
    ([0.5], [1.0], -2.0, -1.6),  # r = 1/2, clipped from below
    ([1.0, 1.1], [2.0, 1.0], 1.0, 1.1 - 0.1 * (2 - 1 - math.log(2))),
    ([1.0, 1.0], [0.5, 0.5], 0.0, -0.1 * (0.25 - 1 + math.log(4))),
    ([], [], 3.0, 0.0),  # no token bears loss; the row still counts among the eight
]


@pytest.fixture(scope="module")
def r1_rows():
    """Rows right-aligned behind a prompt of two places, with arbitrary numbers outside the mask."""
    rng = np.random.default_rng(0)
    logp, behaviour, reference = (rng.normal(-3, 2, (8, 5)).astype(np.float32) for _ in range(3))
    mask = np.zeros((8, 5), np.float32)
    for row, (ratios, references, _, _) in enumerate(ROWS):
        place = np.s_[row, 2 : 2 + len(ratios)]
        mask[place] = 1
        behaviour[place] = logp[place] - np.log(ratios)
        reference[place] = logp[place] + np.log(references)
    advantage = np.repeat([[row[2]] for row in ROWS], 5, axis=1).astype(np.float32)
    weight = aggregation_weights(mask, "seq_mean_token_mean")
    ints = np.zeros((8, 5), np.int32)
    return PolicyOut(logp, rng.random((8, 5), np.float32)), Batch(
        ints, ints, ints, weight, advantage, behaviour, reference
    )


def test_r1_by_hand(r1_rows):
    options = {"importance_level": "sequence", "kl_coef": 0.1, "kl_estimator": "k3"}
    value, metrics = jax.jit(lambda o, b: grpo.loss(o, b, **options))(*r1_rows)
    assert float(value) == pytest.approx(-sum(row[3] for row in ROWS) / 8, rel=1e-5)
    kl = ((2 - 1 - math.log(2)) + (0.25 - 1 + math.log(4))) / 8
    assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-5)
    assert float(metrics["clip_fraction"]) == pytest.approx(2 / 8)
    assert float(metrics["max/logprob_gap"]) == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_token_level_by_a_loop(r1_rows, estimator):
    """Each token has a ratio and a divergence of its own; asymmetric clip, entropy bonus."""
    out, batch = r1_rows
    total = 0.0
    for ratios, references, advantage, _ in ROWS:
        for r, q in zip(ratios, references, strict=True):
            held = min(max(r, 1 - 0.1), 1 + 0.4) * advantage
            kl = {"k1": -math.log(q), "k2": math.log(q) ** 2 / 2, "k3": q - 1 - math.log(q)}
            total += (min(r * advantage, held) - 0.5 * kl[estimator]) / len(ratios) / 8
    mask = np.asarray(batch.weight_BT) > 0
    entropies = [row[m].mean() for row, m in zip(out.entropy_BT, mask, strict=True) if m.any()]
    value, metrics = grpo.loss(
        out, batch, clip_low=0.1, clip_high=0.4, kl_coef=0.5, kl_estimator=estimator,
        entropy_coef=0.3,
    )  # fmt: skip
    assert float(value) == pytest.approx(-(total + 0.3 * sum(entropies) / 8), rel=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(sum(entropies) / 8, rel=1e-5)


def test_on_policy_the_gradient_is_that_of_the_weighted_log_likelihood(r1_rows):
    out, batch = r1_rows
    batch = batch._replace(behaviour_logp_BT=out.logp_BT)
    for level in ("token", "sequence"):

        def value(logp, level=level):
            return grpo.loss(PolicyOut(logp, out.entropy_BT), batch, importance_level=level)[0]

        gradient = jax.grad(value)(out.logp_BT)
        weight = np.asarray(batch.weight_BT)
        # at r = 1 a row's n equal terms w r A each have the derivative w A by each of n tokens
        tokens = (weight > 0).sum(axis=1, keepdims=True) if level == "sequence" else 1
        np.testing.assert_allclose(gradient, -weight * batch.advantage_BT * tokens, atol=1e-6)


def test_clipped_tokens_give_no_gradient(r1_rows):
    out, batch = r1_rows
    gradient = np.asarray(
        jax.grad(lambda logp: grpo.loss(PolicyOut(logp, out.entropy_BT), batch)[0])(out.logp_BT)
    )
    assert gradient[1, 2:5].tolist()[:2] == [0, 0]  # ratio 2, advantage 1
    assert gradient[4, 2] == 0  # ratio 1/2, advantage -2
    assert gradient[2, 2] == pytest.approx(2 / 3 / 8)  # ratio 2, advantage -1, one of 3 tokens
    assert gradient[3, 2] == pytest.approx(-0.5 * 2 / 8)  # ratio 1/2, advantage 2


def test_what_is_masked_can_be_anything(r1_rows):
    out, batch = r1_rows
    dirty = np.where(np.asarray(batch.weight_BT) > 0, out.logp_BT, -1e30).astype(np.float32)
    options = {"importance_level": "sequence", "kl_coef": 0.1}
    clean = grpo.loss(out, batch, **options)[0]

    def value(logp):
        return grpo.loss(PolicyOut(logp, out.entropy_BT), batch, **options)[0]

    assert float(value(dirty)) == float(clean)
    assert np.all(np.isfinite(jax.grad(value)(dirty)))


def test_missing_arrays_raise(r1_rows):
    out, batch = r1_rows
    with pytest.raises(ValueError, match=r"needs .*advantage_BT.*behaviour_logp_BT"):
        grpo.loss(out, batch._replace(behaviour_logp_BT=None))
    with pytest.raises(ValueError, match=r"kl_coef=0\.1 needs reference_logp_BT"):
        grpo.loss(out, batch._replace(reference_logp_BT=None), kl_coef=0.1)

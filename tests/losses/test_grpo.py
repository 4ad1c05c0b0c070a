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


@pytest.fixture
def tokens():
    """Ratios pi / pi_proximal of four rows, and their weights w = pi_proximal / pi_behaviour."""
    ratios = np.array([[2.0, 0.5], [2.0, 0.5], [8.0, 1.0], [1.0, 1.0]], np.float32)
    weights = np.array([[1.0, 4.0], [0.25, 1.0], [1.0, 9.0], [0.5, 0.5]], np.float32)
    advantage = np.array([[1.0], [-1.0], [-1.0], [2.0]], np.float32) * np.ones((1, 2), np.float32)
    logp = np.array([[-1, -2], [-3, -1], [-1, -1], [-2, -2]], np.float32)
    ints, proximal = np.zeros((4, 2), np.int32), logp - np.log(ratios)
    batch = Batch(
        ints, ints, ints, np.full((4, 2), 0.125, np.float32), advantage,
        proximal - np.log(weights), proximal_logp_BT=proximal,
    )  # fmt: skip
    return PolicyOut(logp, np.zeros((4, 2), np.float32)), batch


@pytest.mark.parametrize(
    ("options", "terms", "clipped"),
    [
        ({}, [1.2, 0.5, -2, -0.8, -8, -1, 2, 2], 2),
        # r A >= 3 A where A < 0
        ({"dual_clip": 3.0}, [1.2, 0.5, -2, -0.8, -3, -1, 2, 2], 3),
        # stop(clip(r)) A log pi, whatever the sign of A
        ({"surrogate": "cispo"}, [-1.2, -1.6, 3.6, 0.8, 1.2, 1, -4, -4], 5),
        # geometric means 1, 1, sqrt 8, 1
        ({"importance_level": "sequence_mean"}, [1, 1, -1, -1, -(8**0.5), -(8**0.5), 2, 2], 0),
        # the same with w = 1, 2 (cut off from 4); 1/4, 1; 1, 2 (from 9); 1/2, 1/2
        ({"off_policy_weight": "token"}, [1.2, 1, -0.5, -0.8, -8, -2, 1, 1], 2),
        # products 4, 1/4, 9, 1/4, cut off at 3
        (
            {"off_policy_weight": "sequence", "off_policy_cap": 3.0},
            [3.6, 1.5, -0.5, -0.2, -24, -3, 0.5, 0.5],
            2,
        ),
        # tokens of 1, 1, 1, 1/2, 1/2 are within [1/2, 2]; those of 4, 1/4, 9 are not
        ({"off_policy_mask": "token"}, [1.2, 0, 0, -0.8, -8, 0, 2, 2], 2),
        # geometric means 2, 1/2, 3, 1/2: out go the third row, and with 0.6 the second and fourth
        ({"off_policy_mask": "sequence_mean"}, [1.2, 0.5, -2, -0.8, 0, 0, 2, 2], 2),
        ({"off_policy_mask": "sequence_mean", "off_policy_low": 0.6}, [1.2, 0.5] + [0] * 6, 2),
        # both: 4 is cut off to 3 and stays within [1/4, 5]
        (
            {"off_policy_weight": "token", "off_policy_cap": 3.0, "off_policy_mask": "token",
             "off_policy_low": 0.25, "off_policy_high": 5.0},
            [1.2, 1.5, -0.5, -0.8, -8, 0, 1, 1],
            2,
        ),
    ],
)  # fmt: skip
def test_surrogates_and_corrections_by_hand(tokens, options, terms, clipped):
    out, batch = tokens
    value, metrics = grpo.loss(out, batch, **options)
    assert float(value) == pytest.approx(-sum(terms) / 8, rel=1e-5)
    assert float(metrics["clip_fraction"]) == pytest.approx(clipped / 8)
    gap = np.abs(out.logp_BT - batch.behaviour_logp_BT).max()
    assert float(metrics["max/logprob_gap"]) == pytest.approx(gap, rel=1e-6)


def test_shares_of_what_was_truncated_and_masked(tokens):
    options = {"off_policy_weight": "token", "off_policy_cap": 3.0, "off_policy_mask": "token",
               "off_policy_low": 0.4, "off_policy_high": 5.0}  # fmt: skip
    _, metrics = grpo.loss(*tokens, **options)
    assert float(metrics["off_policy_truncated"]) == 2 / 8  # 4 and 9
    assert float(metrics["off_policy_masked"]) == 2 / 8  # 9 and 1/4
    mean = (1 + 3 + 0 + 1 + 1 + 0 + 0.5 + 0.5) / 8
    assert float(metrics["off_policy_weight"]) == pytest.approx(mean, rel=1e-6)


def test_cispo_keeps_the_gradient_of_clipped_tokens(tokens):
    out, batch = tokens

    def value(logp):
        return grpo.loss(PolicyOut(logp, out.entropy_BT), batch, surrogate="cispo")[0]

    held = np.clip([[2.0, 0.5], [2.0, 0.5], [8.0, 1.0], [1.0, 1.0]], 0.8, 1.2)
    np.testing.assert_allclose(jax.grad(value)(out.logp_BT), -held * batch.advantage_BT / 8, 1e-5)


def test_bounds_of_the_divergence(tokens):
    """d = 30 in one token: k3 = e^-d - 1 + d there; 0 in all others."""
    out, batch = tokens
    reference = out.logp_BT.copy()
    reference[0, 0] -= 30
    batch = batch._replace(reference_logp_BT=reference)
    for options, expected in (
        ({}, 29.0),
        ({"kl_log_bound": 20.0}, 19.0),
        ({"kl_log_bound": 20.0, "kl_bound": 10.0}, 10.0),
        ({"kl_estimator": "k2", "kl_log_bound": 20.0}, 200.0),
    ):
        metrics = grpo.loss(out, batch, kl_coef=1.0, **options)[1]
        assert float(metrics["kl"]) == pytest.approx(expected / 8, rel=1e-6)


def test_unknown_words_and_missing_log_probs_raise(tokens):
    out, batch = tokens
    with pytest.raises(ValueError, match="surrogate 'soft': expected 'clipped' or 'cispo'"):
        grpo.loss(out, batch, surrogate="soft")
    with pytest.raises(ValueError, match="level 'word'"):
        grpo.loss(out, batch, off_policy_mask="word")
    for options in ({"off_policy_weight": "token"}, {"off_policy_mask": "token"}):
        with pytest.raises(ValueError, match="proximal_logp_BT"):
            grpo.loss(out, batch._replace(proximal_logp_BT=None), **options)


def test_missing_arrays_raise(r1_rows):
    out, batch = r1_rows
    with pytest.raises(ValueError, match=r"needs .*advantage_BT.*behaviour_logp_BT"):
        grpo.loss(out, batch._replace(behaviour_logp_BT=None))
    with pytest.raises(ValueError, match=r"kl_coef=0\.1 needs reference_logp_BT"):
        grpo.loss(out, batch._replace(reference_logp_BT=None), kl_coef=0.1)

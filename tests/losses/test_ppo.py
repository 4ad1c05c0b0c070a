"""The value loss by hand, and PPO as the sum of its two losses."""

import jax
import numpy as np
import pytest

from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.losses import grpo, ppo, value

# V_old, V, R, then max((V - R)^2, (clip(V, V_old +- 0.2) - R)^2), its slope by V, and clipped
ROWS = [
    (1.0, 1.1, 2.0, 0.81, -1.8, False),  # within the bounds
    (1.0, 1.5, 2.0, 0.64, 0.0, True),  # past the bound towards R: no gradient further
    (1.0, 1.5, 0.0, 2.25, 3.0, False),  # past the bound, away from R: pulled back
    (1.0, 0.0, 0.5, 0.25, -1.0, False),  # clip to 0.8: 0.09 is less
    (9.9, np.nan, np.nan, 0.0, 0.0, False),  # no weight
]
OLD, NOW, TARGET, ERROR, SLOPE, CLIPPED = (
    np.array(x, np.float32)[:, None] for x in zip(*ROWS, strict=True)
)
WEIGHT = np.array([[0.25], [0.25], [0.25], [0.25], [0.0]], np.float32)


def batch(**more):
    ints = np.zeros((5, 1), np.int32)
    return Batch(ints, ints, ints, WEIGHT, value_BT=OLD, return_BT=TARGET, **more)


def out(values=NOW):
    zeros = np.zeros((5, 1), np.float32)
    return PolicyOut(zeros, zeros, value_BT=values)


def test_the_value_loss_by_hand():
    (lost, metrics), slope = jax.value_and_grad(
        lambda v: value.loss(out(v), batch(), value_clip=0.2), has_aux=True
    )(NOW)
    assert float(lost) == pytest.approx(0.5 * ERROR.sum() / 4, rel=1e-6)
    assert float(metrics["value_clip_fraction"]) == CLIPPED.sum() / 4
    np.testing.assert_allclose(slope, 0.5 * SLOPE / 4, atol=1e-6)
    plain = 0.5 * np.square(NOW - TARGET)[:4].mean()
    assert float(value.loss(out(), batch(), value_clip=0.0)[0]) == pytest.approx(plain, rel=1e-6)


def test_ppo_is_the_policys_loss_and_a_share_of_the_values():
    rng = np.random.default_rng(0)
    advantage, behaviour = (rng.normal(0, 0.3, (5, 1)).astype(np.float32) for _ in range(2))
    whole = batch(advantage_BT=advantage, behaviour_logp_BT=behaviour)
    policy = grpo.loss(out(), whole, clip_high=0.3)[0]
    lost, metrics = ppo.loss(out(), whole, vf_coef=0.7, clip_high=0.3)
    expected = float(policy) + 0.7 * 0.5 * ERROR.sum() / 4
    assert float(lost) == float(metrics["loss"]) == pytest.approx(expected, rel=1e-6)
    assert {"clip_fraction", "entropy", "value_loss"} <= set(metrics)
    alone = ppo.loss(out(None), whole, clip_high=0.3)[0]
    assert float(alone) == float(policy)  # the value model is another's


def test_missing_values_raise():
    with pytest.raises(ValueError, match=r"value_BT.*return_BT"):
        value.loss(out(), batch()._replace(return_BT=None))
    with pytest.raises(ValueError, match="value head"):
        value.loss(out(None), batch())

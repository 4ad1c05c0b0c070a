"""Cross-entropy by hand."""

import math

import jax
import numpy as np
import pytest

from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.losses import sft


def test_the_weighted_negative_log_likelihood():
    logp = np.log(np.array([[0.5, 0.25], [0.1, 0.9]], np.float32))
    entropy = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    weight = np.array([[0.0, 0.5], [0.5, 0.0]], np.float32)
    ints = np.zeros((2, 2), np.int32)
    batch = Batch(ints, ints, ints, weight)
    value, metrics = sft.loss(PolicyOut(logp, entropy), batch)
    assert float(value) == pytest.approx((math.log(4) + math.log(10)) / 2, rel=1e-6)
    assert float(metrics["entropy"]) == 2.5
    gradient = jax.grad(lambda x: sft.loss(PolicyOut(x, entropy), batch)[0])(logp)
    assert gradient.tolist() == (-weight).tolist()

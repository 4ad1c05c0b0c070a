"""Pointwise reward modelling: each response is labelled by itself, as safe or unsafe.

DeepSeek-R1's safety model (Nature 645, 2025, Methods): "a point-wise methodology to distinguish
between safe and unsafe responses"; binary cross-entropy of sigmoid(score).
"""

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Metrics

LABELS = "binary"


def loss(
    outputs_GNO: Array, label_GNO: Array, weight_GNO: Array, margin_G: Array
) -> tuple[Array, Metrics]:
    """-(y log sigmoid(s) + (1 - y) log sigmoid(-s)), weighted sum; O is 1; no margin is taken.

    Args:
      label_GNO: y, 1 or 0, or a share between them.
      weight_GNO: sum to 1 over the batch.
    """
    del margin_G
    y, s = label_GNO, outputs_GNO
    cost = -(y * jax.nn.log_sigmoid(s) + (1 - y) * jax.nn.log_sigmoid(-s))
    value = jnp.sum(weight_GNO * cost)
    accuracy = jnp.sum(weight_GNO * ((s > 0) == (y > 0.5)))
    return value, {"loss": value, "label_accuracy": accuracy}

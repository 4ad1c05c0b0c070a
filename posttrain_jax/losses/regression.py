"""Rewards of several objectives by regression: the first stage of ArmoRM.

Wang et al. 2024, arXiv 2406.12845, section 3.1: one linear output an objective, squared error to
its rating; a rating that a data set doesn't have is left out.
"""

import jax.numpy as jnp

from posttrain_jax.api import Array, Metrics

LABELS = "ratings"


def loss(
    outputs_GNO: Array, label_GNO: Array, weight_GNO: Array, margin_G: Array
) -> tuple[Array, Metrics]:
    """Weighted sum of squared errors over responses and objectives; no margin is taken.

    Args:
      label_GNO: ratings, on one scale for all objectives (0 to 1, say).
      weight_GNO: 0 where there is no rating.
    """
    del margin_G
    value = jnp.sum(weight_GNO * jnp.square(outputs_GNO - label_GNO))
    return value, {"loss": value}

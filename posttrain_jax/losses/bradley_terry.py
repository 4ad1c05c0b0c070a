"""Bradley-Terry reward modelling: -log sigmoid(s_chosen - s_rejected - margin).

Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the margin is Llama 2's, arXiv 2307.09288, eq. 2.
"""

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Metrics


def loss(
    chosen_B: Array, rejected_B: Array, weight_B: Array, *, margin: float = 0.0
) -> tuple[Array, Metrics]:
    """Weighted sum over pairs; weights sum to 1 over the batch."""
    gap = chosen_B - rejected_B
    value = jnp.sum(weight_B * -jax.nn.log_sigmoid(gap - margin))
    accuracy = jnp.sum(weight_B * (gap > 0))
    return value, {"loss": value, "pair_accuracy": accuracy, "score_gap": jnp.sum(weight_B * gap)}

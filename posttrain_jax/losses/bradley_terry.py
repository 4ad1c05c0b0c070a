"""Bradley-Terry reward modelling: -log sigmoid(s_better - s_worse - margin).

Ouyang et al. 2022, arXiv 2203.02155, eq. 1, for pairs; the margin is Llama 2's, arXiv 2307.09288,
eq. 2, a number of its own for each pair.
"""

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Metrics

LABELS = "ranks"


def loss(
    outputs_GNO: Array, label_GNO: Array, weight_GNO: Array, margin_G: Array, *,
    center_coef: float = 0.0,
) -> tuple[Array, Metrics]:  # fmt: skip
    """Weighted sum over pairs, whose weights sum to 1 over the batch; N is 2, O is 1.

    Args:
      label_GNO: the response with the higher label should score higher.
      weight_GNO: 0 for both of a pair that isn't there.
      center_coef: of (s_better + s_worse)^2, which keeps scores near 0 (Eisenstein et al. 2023,
        arXiv 2312.09244, section 2.2; TRL's `center_rewards_coefficient`).

    Raises:
      ValueError: groups of another size.
    """
    if outputs_GNO.shape[1] != 2:
        raise ValueError(
            f"groups of {outputs_GNO.shape[1]} responses: set loss='listwise', bradley_terry "
            "takes pairs"
        )
    scores_GN, weight_G = outputs_GNO[..., 0], weight_GNO[:, 0, 0]
    first_is_better_G = jnp.sign(label_GNO[:, 0, 0] - label_GNO[:, 1, 0])
    gap_G = (scores_GN[:, 0] - scores_GN[:, 1]) * first_is_better_G
    value = jnp.sum(weight_G * -jax.nn.log_sigmoid(gap_G - margin_G))
    if center_coef:
        value += center_coef * jnp.sum(weight_G * jnp.square(jnp.sum(scores_GN, axis=1)))
    accuracy, mean_gap = jnp.sum(weight_G * (gap_G > 0)), jnp.sum(weight_G * gap_G)
    return value, {"loss": value, "pair_accuracy": accuracy, "score_gap": mean_gap}

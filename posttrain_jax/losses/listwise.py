"""Listwise reward modelling: all pairs of a better and a worse response to one prompt.

Qwen2.5-Math, arXiv 2409.12122, eq. 1: -1 / (k (6 - k)) sum log sigmoid(s_right - s_wrong) over the
k right and 6 - k wrong of six responses. Here of any number, and of any number of ranks: Llama 3's
edited > chosen > rejected (arXiv 2407.21783, section 4.1.2) gives three pairs; two responses are
Bradley-Terry's one. The mean is over a prompt's pairs, then over prompts.
"""

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Metrics

LABELS = "ranks"


def loss(
    outputs_GNO: Array, label_GNO: Array, weight_GNO: Array, margin_G: Array
) -> tuple[Array, Metrics]:
    """Weighted sum over groups of the mean over their pairs; O is 1.

    Args:
      label_GNO: the response with the higher label should score higher; equal ones make no pair.
      weight_GNO: 0 for responses that aren't there, elsewhere the group's weight, which sum to 1.
      margin_G: how far apart every pair of a group should be at least.
    """
    score_GN, label_GN, here_GN = outputs_GNO[..., 0], label_GNO[..., 0], weight_GNO[..., 0] > 0
    better_GNN = label_GN[:, :, None] > label_GN[:, None, :]
    pair_GNN = better_GNN & here_GN[:, :, None] & here_GN[:, None, :]
    count_G = jnp.maximum(1, jnp.sum(pair_GNN, axis=(1, 2)))
    weight_GNN = pair_GNN * (jnp.max(weight_GNO, axis=(1, 2)) / count_G)[:, None, None]
    gap_GNN = score_GN[:, :, None] - score_GN[:, None, :]
    cost_GNN = -jax.nn.log_sigmoid(gap_GNN - margin_G[:, None, None])
    value = jnp.sum(weight_GNN * cost_GNN)
    return value, {
        "loss": value,
        "pair_accuracy": jnp.sum(weight_GNN * (gap_GNN > 0)),
        "score_gap": jnp.sum(weight_GNN * gap_GNN),
    }

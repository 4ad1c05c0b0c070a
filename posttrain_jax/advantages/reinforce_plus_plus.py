"""REINFORCE++: token-level returns with the KL in the reward, whitened over the batch.

Hu et al. 2025, arXiv 2501.03262: A_t = r - beta sum_{i >= t} KL_i, then (A - mean) / std over all
tokens of the batch. Its baseline variant first takes the group's mean from the reward, and has its
KL, k2, in the loss.
"""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.advantages._returns import returns_to_go, total_reward
from posttrain_jax.advantages._told import Told
from posttrain_jax.advantages._whitening import whiten
from posttrain_jax.advantages.group import counted, group_normalised, spread
from posttrain_jax.api import Array, Metrics


def advantage(
    told: Told,
    *,
    gamma: float = 1.0,
    group_baseline: bool = False,
    scope: str = "batch",
    parts: int = 1,
    ddof: int = 0,
    eps: float = 1e-8,
) -> tuple[Array, None, Metrics]:
    """Whitened returns; `scope`, `parts`, `ddof` and `eps` are those of `whiten`.

    Args:
      group_baseline: the baseline variant. Groups whose rewards are all equal stay at 0, though
        the batch's mean over tokens need not be 0.

    Raises:
      ValueError: `group_baseline` with a KL in the reward.
    """
    mask_BT = told.mask_BT & told.valid_B[:, None]
    options = {"scope": scope, "parts": parts, "ddof": ddof, "eps": eps}
    if not group_baseline:
        return whiten(returns_to_go(told, gamma), mask_BT, **options), None, {}
    if told.kl_BT is not None:
        raise ValueError("group_baseline=True has its KL in the loss (kl_estimator='k2')")
    centred_B, equal_G = group_normalised(
        total_reward(told), told.group_size, mask_B=told.valid_B, divide_by_std=False
    )
    white_BT = whiten(spread(centred_B, told), mask_BT, **options)
    equal_BT = jnp.repeat(equal_G, told.group_size)[:, None]
    return jnp.where(equal_BT, 0.0, white_BT), None, counted(told, equal_G)

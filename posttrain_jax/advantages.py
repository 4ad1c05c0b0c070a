"""Advantages from rewards: arrays in, arrays out."""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.api import Array


def group_normalised(
    reward_B: Array,
    group_size: int,
    *,
    mask_B: Array | None = None,
    divide_by_std: bool = True,
    ddof: int = 0,
    eps: float = 1e-8,
) -> tuple[Array, Array]:
    """(r - mean) / (std + eps) within each group of consecutive rows.

    DeepSeekMath, arXiv 2402.03300, section 4.1.2; without the division it is Dr. GRPO's
    (arXiv 2503.20783). Neither DeepSeek paper says whether std is the sample's or the
    population's; TRL and open-instruct take the sample's, `ddof=1`.

    Args:
      reward_B: rewards; rows g * group_size ... (g + 1) * group_size - 1 share a prompt.
      mask_B: False for rows that count neither in mean and std nor in the loss.

    Returns:
      advantages [B] (0 where masked, and in groups whose rewards are all equal), and for each
      group whether its rewards are all equal, so that it gives no gradient.
    """
    reward = reward_B.reshape(-1, group_size).astype(jnp.float32)
    mask = jnp.ones_like(reward) if mask_B is None else mask_B.reshape(reward.shape) * 1.0
    count = jnp.sum(mask, axis=1, keepdims=True)
    mean = jnp.sum(reward * mask, axis=1, keepdims=True) / jnp.maximum(count, 1)
    centred = (reward - mean) * mask
    high = jnp.max(jnp.where(mask > 0, reward, -jnp.inf), axis=1, keepdims=True)
    low = jnp.min(jnp.where(mask > 0, reward, jnp.inf), axis=1, keepdims=True)
    equal = high <= low  # by comparison: the centred values of equal rewards may not be exact zeros
    if divide_by_std:
        variance = jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(count - ddof, 1)
        centred = centred / (jnp.sqrt(variance) + eps)
    return jnp.where(equal, 0.0, centred).reshape(-1), equal[:, 0]

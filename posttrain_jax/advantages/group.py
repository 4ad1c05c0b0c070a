"""Rewards against the mean of their group, in units of its standard deviation: GRPO's.

DeepSeekMath, arXiv 2402.03300, section 4.1.2. With `divide_by_std=False` Dr. GRPO's, arXiv
2503.20783, and what open-instruct calls `centered`.
"""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.advantages._returns import total_reward
from posttrain_jax.advantages._told import Told
from posttrain_jax.api import Array, Metrics

MIN_GROUP = 2


def advantage(
    told: Told, *, divide_by_std: bool = True, ddof: int = 0, eps: float = 1e-8
) -> tuple[Array, None, Metrics]:
    """One advantage for all tokens of a response; the options are those of `group_normalised`.

    A KL in the reward counts with its sum over the response.
    """
    advantage_B, equal_G = group_normalised(
        total_reward(told),
        told.group_size,
        mask_B=told.valid_B,
        divide_by_std=divide_by_std,
        ddof=ddof,
        eps=eps,
    )
    return spread(advantage_B, told), None, counted(told, equal_G)


def spread(advantage_B: Array, told: Told) -> Array:
    """Each response's advantage at each of its tokens -> [B, T]."""
    return jnp.where(told.mask_BT & told.valid_B[:, None], advantage_B[:, None], 0.0)


def counted(told: Told, equal_G: Array) -> Metrics:
    """Shares of the groups that give no gradient, and of those because one row at most is valid."""
    valid_G = jnp.sum(told.valid_B.reshape(-1, told.group_size), axis=1)
    return {"all_equal_groups": jnp.mean(equal_G), "groups_of_one": jnp.mean(valid_G < 2)}


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

"""Rewards against the mean of the other members of their group.

Ahmadian et al. 2024, arXiv 2402.14740, section 4 (after Kool et al. 2019): A_i = r_i - mean of r_j,
j != i. The baseline does not depend on the response, so the gradient is unbiased.
"""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.advantages._returns import total_reward
from posttrain_jax.advantages._told import Told
from posttrain_jax.advantages.group import counted, group_normalised, spread
from posttrain_jax.api import Array, Metrics

MIN_GROUP = 2


def advantage(told: Told) -> tuple[Array, None, Metrics]:
    """One advantage for all tokens of a response.

    A KL in the reward counts with its sum over the response, as in the paper (eq. 1) and TRL.
    """
    centred_B, equal_G = group_normalised(
        total_reward(told), told.group_size, mask_B=told.valid_B, divide_by_std=False
    )
    valid_G = jnp.sum(told.valid_B.reshape(-1, told.group_size), axis=1, keepdims=True)
    # r - mean of the n - 1 others = (r - mean of all n) n / (n - 1)
    centred_GR = centred_B.reshape(-1, told.group_size) * (valid_G / jnp.maximum(valid_G - 1, 1))
    return spread(centred_GR.reshape(-1), told), None, counted(told, equal_G)

"""ReMax: returns less the reward of the greedy response to the same prompt.

Li et al. 2023, arXiv 2310.10505, algorithm 1. The baseline does not depend on the sampled response,
so the gradient is unbiased; it costs one more response a prompt.
"""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.advantages._returns import returns_to_go
from posttrain_jax.advantages._told import Told
from posttrain_jax.api import Array, Metrics

REQUIRES = ("greedy_B",)


def advantage(told: Told, *, gamma: float = 1.0) -> tuple[Array, None, Metrics]:
    """The return from each token on, KL in the reward included, less the greedy reward.

    Raises:
      ValueError: no greedy rewards.
    """
    if told.greedy_B is None:
        raise ValueError("the remax advantage needs greedy_B, the rewards of greedy responses")
    mask_BT = told.mask_BT & told.valid_B[:, None]
    equal_B = told.valid_B & (told.reward_B == told.greedy_B)
    share = jnp.sum(equal_B) / jnp.maximum(jnp.sum(told.valid_B), 1)
    advantage_BT = jnp.where(mask_BT, returns_to_go(told, gamma) - told.greedy_B[:, None], 0.0)
    return advantage_BT, None, {"equal_to_greedy": share}

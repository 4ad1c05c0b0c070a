"""REINFORCE: returns less a constant (Williams 1992, Machine Learning 8, section 4)."""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.advantages._returns import returns_to_go
from posttrain_jax.advantages._told import Told
from posttrain_jax.api import Array, Metrics


def advantage(
    told: Told, *, baseline: float = 0.0, gamma: float = 1.0
) -> tuple[Array, None, Metrics]:
    """The discounted return from each token on, KL in the reward included, less the baseline."""
    mask_BT = told.mask_BT & told.valid_B[:, None]
    return jnp.where(mask_BT, returns_to_go(told, gamma) - baseline, 0.0), None, {}

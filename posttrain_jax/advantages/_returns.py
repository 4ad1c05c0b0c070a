"""Rewards of single tokens, and what they add up to from each token on."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from posttrain_jax.advantages._told import Told
from posttrain_jax.api import Array
from posttrain_jax.losses.common import LOG_RATIO_BOUND, kl_estimate

PLACES = ("last", "after")


def kl_penalty(
    logp_BT: Array,
    reference_logp_BT: Array,
    mask_BT: Array,
    *,
    coef: float | Array,
    estimator: str = "k1",
    log_bound: float = LOG_RATIO_BOUND,
    bound: float = 0.0,
) -> Array:
    """What each token costs, coef * KL(policy || reference) estimated at it -> `Told.kl_BT`.

    Args:
      logp_BT: under the policy that sampled the tokens (PPO: at the first update).
      estimator, log_bound, bound: as of `losses.common.kl_estimate`. Tülu 3's PPO has k1.
    """
    chex.assert_equal_shape([logp_BT, reference_logp_BT, mask_BT])
    gap = jnp.where(mask_BT, logp_BT - reference_logp_BT, 0.0)
    return coef * kl_estimate(gap, estimator, log_bound, bound)


def total_reward(told: Told) -> Array:
    """Each response's reward, less what its tokens cost -> [B]; 0 of rows that aren't valid."""
    reward_B = told.reward_B.astype(jnp.float32)
    if told.kl_BT is not None:
        reward_B = reward_B - jnp.sum(jnp.where(told.mask_BT, told.kl_BT, 0.0), axis=1)
    return jnp.where(told.valid_B, reward_B, 0.0)


def with_end(mask_BT: Array) -> Array:
    """The mask with one more place after its last in every row that has room for it."""
    last_BT = mask_BT & (jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1] == 1)
    return mask_BT | jnp.pad(last_BT, ((0, 0), (1, 0)))[:, :-1]


def token_rewards(told: Told, place: str = "last") -> tuple[Array, Array]:
    """Rewards token by token and the mask of their places.

    A token's own reward is minus its cost; the response's reward comes at the last token, or, with
    `after`, one place later where the row has room: a state of its own, after the end.

    Raises:
      ValueError: an unknown place.
    """
    if place not in PLACES:
        raise ValueError(f"reward_place {place!r}: expected one of {PLACES}")
    mask_BT = told.mask_BT & told.valid_B[:, None]
    cost_BT = jnp.where(mask_BT, 0.0 if told.kl_BT is None else told.kl_BT, 0.0)
    if place == "after":
        mask_BT = with_end(mask_BT)
    last_BT = mask_BT & (jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1] == 1)
    return jnp.where(last_BT, told.reward_B[:, None], 0.0) - cost_BT, mask_BT


def lambda_sums(
    reward_BT: Array, value_BT: Array, mask_BT: Array, *, gamma: float, lam: float
) -> Array:
    """A_t = d_t + gamma lam A_t+1,  d_t = r_t + gamma V_t+1 - V_t,  0 after the last place.

    Schulman et al. 2016, arXiv 1506.02438, eq. 11-16. Steps go from one masked-in place to the
    next, so that a tool's output between two tokens of the policy takes no time. With values of 0
    and lam = 1 these are the discounted returns.

    Returns:
      float32 [B, T], 0 where masked out.
    """
    chex.assert_equal_shape([reward_BT, value_BT, mask_BT])

    def step(later, now):
        next_value, next_sum = later
        reward, value, mask = now
        value = jnp.where(mask, value, next_value)
        here = jnp.where(
            mask, reward + gamma * next_value - value + gamma * lam * next_sum, next_sum
        )
        return (value, here), here

    end = jnp.zeros(reward_BT.shape[0], jnp.float32)
    arrays = tuple(jnp.asarray(x).T for x in (reward_BT, value_BT, mask_BT))
    _, sums_TB = jax.lax.scan(step, (end, end), arrays, reverse=True)
    return jnp.where(mask_BT, sums_TB.T, 0.0)


def returns_to_go(told: Told, gamma: float) -> Array:
    """The discounted sum of each token's reward and all later ones -> [B, T]."""
    reward_BT, mask_BT = token_rewards(told)
    return lambda_sums(reward_BT, jnp.zeros_like(reward_BT), mask_BT, gamma=gamma, lam=1.0)

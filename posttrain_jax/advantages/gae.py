"""Generalised advantage estimation with a value model, as in PPO.

Schulman et al. 2016, arXiv 1506.02438; whitening and the place of the reward as in Tülu 3,
arXiv 2411.15124, table 21, and open-instruct's code for it.

`value_BT[b, t]` is the value of the state in which token t is chosen. open-instruct gives the
response's reward one step after the last token, in a state of its own (`reward_place="after"`), if
the response ended before the length limit. Without it, the last token's own step has the reward.
With gamma = 1 `after` is more by (1 - lam) (V_end - reward) at a response's last token, and by that
times lam^k at the k-th before it: the same with lam = 1, and once V_end has learnt the reward. With
gamma < 1 it also discounts the reward once more.
"""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.advantages._returns import lambda_sums, token_rewards
from posttrain_jax.advantages._told import Told
from posttrain_jax.advantages._whitening import whiten
from posttrain_jax.api import Array, Metrics

REQUIRES = ("value_BT",)


def advantage(
    told: Told,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    scope: str = "batch",
    parts: int = 1,
    ddof: int = 1,
    eps: float = 1e-8,
    reward_place: str = "last",
) -> tuple[Array, Array, Metrics]:
    """Whitened advantages, and returns: advantages before whitening + values.

    Args:
      scope, parts, ddof, eps: of `whiten`; `scope="none"` leaves advantages as they are.
      reward_place: `last` or `after` (see above). With `after` the place after the last token has a
        return too, and a value to be learnt: `with_end` gives the mask of what the value model
        learns. Its value is that of the batch, which needs a model's answer there.

    Raises:
      ValueError: no values, an unknown scope or place.
    """
    if told.value_BT is None:
        raise ValueError("the gae advantage needs value_BT, from a value head or a value model")
    reward_BT, steps_BT = token_rewards(told, reward_place)
    value_BT = jnp.where(steps_BT, told.value_BT, 0.0).astype(jnp.float32)
    sums_BT = lambda_sums(reward_BT, value_BT, steps_BT, gamma=gamma, lam=lam)
    return_BT = sums_BT + value_BT
    mask_BT = told.mask_BT & told.valid_B[:, None]
    white_BT = whiten(sums_BT, mask_BT, scope=scope, parts=parts, ddof=ddof, eps=eps)
    return white_BT, return_BT, value_metrics(value_BT, return_BT, steps_BT)


def value_metrics(value_BT: Array, return_BT: Array, mask_BT: Array) -> Metrics:
    """Means over tokens, and the share of the returns' variance that the values explain."""
    count = jnp.maximum(jnp.sum(mask_BT), 1)
    mean = lambda x: jnp.sum(jnp.where(mask_BT, x, 0.0)) / count  # noqa: E731
    variance = mean(jnp.square(return_BT - mean(return_BT)))
    missed = mean(jnp.square(return_BT - value_BT - mean(return_BT - value_BT)))
    return {
        "value": mean(value_BT),
        "return": mean(return_BT),
        "explained_variance": jnp.where(variance > 0, 1 - missed / variance, 0.0),
    }

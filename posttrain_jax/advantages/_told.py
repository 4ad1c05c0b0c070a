"""What is known of a rollout when its advantages are computed."""

from __future__ import annotations

from typing import NamedTuple

from posttrain_jax.api import Array


class Told(NamedTuple):
    """A rollout's rewards and all else that an estimator may ask for; one sequence a row.

    Attributes:
      reward_B: the reward of each response, the weighted sum of its terms.
      values_BW: the terms; 0 where a term does not apply to a row.
      weights_W: the terms' weights.
      valid_B: False for rows that count nowhere (a verifier failed, a truncated sample masked).
      mask_BT: True on the tokens that the policy chose: no prompt, tool output or padding.
      group_size: rows g * group_size ... (g + 1) * group_size - 1 answer one prompt; static.
      kl_BT: what each token costs for its divergence from the reference, in units of reward, so
        the coefficient is in it (`kl_penalty`); None: no KL in the reward.
      value_BT: the value of the state in which each token is chosen (`api.PolicyOut`).
      greedy_B: the reward of the greedy response to the row's prompt.
    """

    reward_B: Array
    values_BW: Array
    weights_W: Array
    valid_B: Array
    mask_BT: Array
    group_size: int
    kl_BT: Array | None = None
    value_BT: Array | None = None
    greedy_B: Array | None = None

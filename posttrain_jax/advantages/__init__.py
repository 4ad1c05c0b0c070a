"""Advantages: one file an estimator, named by its file: `registry.load("advantages", name)`.

Each is `advantage(told: Told, **options) -> (advantage_BT, return_BT | None, metrics)`, arrays in,
arrays out, for `jax.jit` with the options and `told.group_size` static. Advantages are float32, and
0 off the response and on rows that aren't valid. `return_BT` is what a value model learns, given by
estimators that have one. Metrics are means over the rollout's groups, rows or tokens. A file may
name the fields of `Told` that it needs beside the rewards (`REQUIRES`) and the smallest group that
it can learn from (`MIN_GROUP`).

  group                mean and std of the group: GRPO, DAPO; without std Dr. GRPO
  rloo                 mean of the other members of the group
  gdpo                 each reward term normalised in the group, then the batch
  remax                the reward of the greedy response to the same prompt (needs greedy_B)
  reinforce_plus_plus  returns with KL in the reward, whitened over the batch
  gae                  a value model (needs value_BT), as PPO
  none                 a constant

A row that isn't valid counts nowhere, whatever its numbers. Where the group is the baseline, one
whose rewards are all equal, or with a single valid row, has advantages of exactly 0 and is counted.
"""

from posttrain_jax.advantages._returns import kl_penalty, with_end
from posttrain_jax.advantages._told import Told
from posttrain_jax.advantages._whitening import whiten
from posttrain_jax.advantages.group import group_normalised

__all__ = ["Told", "group_normalised", "kl_penalty", "whiten", "with_end"]

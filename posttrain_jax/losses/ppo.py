"""PPO: the policy's loss, and with a shared value head vf_coef times the value's.

Schulman et al. 2017, arXiv 1707.06347, eq. 9. With a value model of its own the policy's update is
this without the second part (the output has no values), and the value model's is losses/value.py.
"""

from __future__ import annotations

from typing import Any

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses import grpo, value

REQUIRES = grpo.REQUIRES


def loss(
    out: PolicyOut, batch: Batch, *, vf_coef: float = 0.1, value_clip: float = 0.2, **policy: Any
) -> tuple[Array, Metrics]:
    """The sum of both.

    Args:
      vf_coef, value_clip: Tülu 3's, arXiv 2411.15124, table 21.
      policy: options of losses/grpo.py.

    Raises:
      ValueError: a batch that lacks what is asked for.
    """
    total, metrics = grpo.loss(out, batch, **policy)
    if out.value_BT is None:
        return total, metrics
    lost, more = value.loss(out, batch, value_clip=value_clip)
    total = total + vf_coef * lost
    return total, {**more, **metrics, "loss": total}

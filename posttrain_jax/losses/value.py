"""PPO's value loss, 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2).

The clipped form is that of OpenAI's baselines and of open-instruct's code for Tülu 3 (arXiv
2411.15124, table 21: c = 0.2), not of the paper, arXiv 1707.06347, eq. 9, which has the plain
square. Tokens are weighted as the batch says; the coefficient is ppo.py's.
"""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses.common import weighted_sum

REQUIRES = ("value_BT", "return_BT")


def loss(out: PolicyOut, batch: Batch, *, value_clip: float = 0.2) -> tuple[Array, Metrics]:
    """The weighted sum over tokens.

    Args:
      value_clip: c, in units of reward; 0: the plain square.

    Raises:
      ValueError: a batch without old values or returns, an output without values.
    """
    if batch.value_BT is None or batch.return_BT is None:
        raise ValueError(f"the value loss needs {REQUIRES} in the batch")
    if out.value_BT is None:
        raise ValueError("the value loss needs a model with a value head, or a value model")
    mask = batch.weight_BT != 0
    value, old, target = (
        jnp.where(mask, x, 0.0) for x in (out.value_BT, batch.value_BT, batch.return_BT)
    )
    error = jnp.square(value - target)
    clipped = jnp.zeros_like(mask)
    if value_clip:
        held = jnp.square(jnp.clip(value, old - value_clip, old + value_clip) - target)
        error, clipped = jnp.maximum(error, held), held > error
    lost = 0.5 * weighted_sum(error, batch.weight_BT)
    return lost, {
        "loss": lost,
        "value_loss": lost,
        "value_clip_fraction": weighted_sum(clipped.astype(jnp.float32), batch.weight_BT),
    }

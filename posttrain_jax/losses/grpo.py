"""GRPO's objective with all the switches that published recipes set (advantages come in).

  L = -E_t[ min(r A, clip(r, 1 - low, 1 + high) A) - beta KL_t ]

DeepSeekMath, arXiv 2402.03300, eq. 3 (ratio a token); DeepSeek-R1, arXiv 2501.12948v1, eq. 1-2
(ratio and KL a sequence: `importance_level="sequence"` with `seq_mean_token_mean` weights gives
each sequence's term once). E_t is the weighted sum of losses/common.py.
"""

import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses.common import clipped_surrogate, kl_estimate, log_ratio, weighted_sum

REQUIRES = ("advantage_BT", "behaviour_logp_BT")


def loss(
    out: PolicyOut,
    batch: Batch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    importance_level: str = "token",
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    entropy_coef: float = 0.0,
) -> tuple[Array, Metrics]:
    """Clipped policy gradient with a KL penalty in the loss.

    Args:
      kl_coef: needs `batch.reference_logp_BT` when not 0.

    Raises:
      ValueError: a batch without advantages or log-probs, an unknown level or estimator.
    """
    if batch.advantage_BT is None or batch.behaviour_logp_BT is None:
        raise ValueError(f"the grpo loss needs {REQUIRES} in the batch")
    weight, mask = batch.weight_BT, batch.weight_BT != 0
    delta = log_ratio(out.logp_BT, batch.behaviour_logp_BT, mask, importance_level)
    gain, clipped = clipped_surrogate(jnp.exp(delta), batch.advantage_BT, clip_low, clip_high)
    objective = weighted_sum(gain, weight) + entropy_coef * weighted_sum(out.entropy_BT, weight)
    metrics = {
        "entropy": weighted_sum(out.entropy_BT, weight),
        "clip_fraction": weighted_sum(clipped.astype(jnp.float32), weight),
        "max/logprob_gap": jnp.max(
            jnp.where(mask, jnp.abs(out.logp_BT - batch.behaviour_logp_BT), 0.0)
        ),
    }
    if kl_coef:
        if batch.reference_logp_BT is None:
            raise ValueError(f"kl_coef={kl_coef} needs reference_logp_BT in the batch")
        reference = log_ratio(out.logp_BT, batch.reference_logp_BT, mask, importance_level)
        kl = weighted_sum(kl_estimate(reference, kl_estimator), weight)
        objective, metrics = objective - kl_coef * kl, {**metrics, "kl": kl}
    return -objective, {**metrics, "loss": -objective}

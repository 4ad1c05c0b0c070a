"""Weights and masks for tokens that another policy sampled than the one that is updated.

The sampler's engine, its precision or its age make pi_behaviour differ from the trainer's policy at
the first update, pi_proximal. The clipped ratio is against pi_proximal; what remains is
w = pi_proximal / pi_behaviour, a constant of each token.
"""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics
from posttrain_jax.losses.common import log_ratio, weighted_sum


def off_policy_weights(
    batch: Batch, *, weight: str, cap: float, mask: str, low: float, high: float
) -> tuple[Array | float, Metrics]:
    """Truncated importance weights, 0 where a ratio is out of bounds -> [B, T], or 1.

    Args:
      weight: level of the ratio w that weighs the policy gradient, cut off at `cap` (0: not at
        all): `none`, `token`, `sequence` or `sequence_mean`. Truncated importance sampling:
        Espeholt et al. 2018, arXiv 1802.01561, eq. 1; for language models Yao et al. 2025, "Your
        efficient RL framework secretly brings you off-policy RL training".
      mask: level of the ratio that has to be within [low, high] for a token to count. With
        `sequence_mean`, the geometric mean, whole sequences stay or go.

    Raises:
      ValueError: no proximal log-probs, an unknown level.
    """
    if weight == "none" and mask == "none":
        return 1.0, {}
    if batch.proximal_logp_BT is None or batch.behaviour_logp_BT is None:
        raise ValueError(
            "off_policy_weight and off_policy_mask need proximal_logp_BT and behaviour_logp_BT"
        )
    here = batch.weight_BT != 0
    ratio = lambda level: jnp.exp(  # noqa: E731
        log_ratio(batch.proximal_logp_BT, batch.behaviour_logp_BT, here, level)
    )
    share = lambda x: weighted_sum(x.astype(jnp.float32), batch.weight_BT)  # noqa: E731
    weights, metrics = jnp.ones_like(batch.weight_BT), {}
    if weight != "none":
        weights = ratio(weight)
        if cap:
            metrics["off_policy_truncated"] = share(weights > cap)
            weights = jnp.minimum(weights, cap)
    if mask != "none":
        compared = ratio(mask)
        out = (compared < low) | (compared > high)
        metrics["off_policy_masked"] = share(out)
        weights = jnp.where(out, 0.0, weights)
    return weights, {**metrics, "off_policy_weight": share(weights)}

"""KTO: single responses, each desirable or not, against the drift of the policy as a whole.

  L = lambda_D (1 - sigmoid(beta (d - z)))   of a desirable response,   d = log(pi / pi_ref)(y | x)
  L = lambda_U (1 - sigmoid(beta (z - d)))   of an undesirable one

Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7 and 8. z, the KL divergence from the reference, is
estimated by `drift` from prompts with responses to other prompts, without a gradient, before the
update; all microbatches see the same z. The sign of `batch.advantage_BT` is the label.
"""

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses.common import weighted_sum
from posttrain_jax.losses.pairwise import hits, totals

REQUIRES = ("reference_logp_BT", "advantage_BT")


def drift(logp_BT: Array, batch: Batch) -> Array:
    """z: the mean of log(pi / pi_ref) over mismatched responses, at least 0.

    Args:
      logp_BT: under the policy, as `batch.reference_logp_BT` is under the reference.
      batch: each token has its response's weight; weights of responses sum to 1.
    """
    assert batch.reference_logp_BT is not None
    return jnp.maximum(0.0, weighted_sum(logp_BT - batch.reference_logp_BT, batch.weight_BT))


def loss(
    out: PolicyOut,
    batch: Batch,
    *,
    kl: Array | float,
    sequences: int = 1,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Array, Metrics]:
    """The weighted sum over responses.

    The metrics of the two sides are sums over their responses: `means` makes them means.

    Args:
      kl: z, from `drift`.
      sequences: a row has at most.
      beta: how strongly the policy is held to the reference.
      desirable_weight, undesirable_weight: lambda_D and lambda_U.

    Raises:
      ValueError: a batch without reference log-probs or labels.
    """
    if batch.reference_logp_BT is None or batch.advantage_BT is None:
        raise ValueError(f"the kto loss needs {REQUIRES} in the batch")
    hit_BMT = hits(batch, sequences)
    ratio_BM = totals(out.logp_BT - batch.reference_logp_BT, hit_BMT)
    sign_BM = jnp.sign(totals(batch.advantage_BT, hit_BMT))
    weight_BM = jnp.max(jnp.where(hit_BMT, batch.weight_BT[:, None], 0.0), axis=2)
    share_BM = jnp.where(sign_BM > 0, desirable_weight, undesirable_weight)
    loss_BM = share_BM * jax.nn.sigmoid(-sign_BM * beta * (ratio_BM - jax.lax.stop_gradient(kl)))
    value = weighted_sum(loss_BM, weight_BM)
    metrics = {"loss": value}
    for name, side_BM in (("chosen", sign_BM > 0), ("rejected", sign_BM < 0)):
        part_BM = weight_BM * side_BM
        metrics |= {
            f"{name}_share": jnp.sum(part_BM),
            f"{name}_reward": weighted_sum(beta * ratio_BM, part_BM),
            f"{name}_logp": weighted_sum(totals(out.logp_BT, hit_BMT), part_BM),
            f"{name}_tokens": weighted_sum(jnp.sum(hit_BMT, axis=2), part_BM),
        }
    return value, metrics


def means(metrics: Metrics) -> Metrics:
    """Metrics of a whole batch, with each side's as means over its responses."""
    found = dict(metrics)
    for name in ("chosen", "rejected"):
        share = jnp.maximum(1e-9, found[f"{name}_share"])
        for what in ("reward", "logp", "tokens"):
            found[f"{name}_{what}"] /= share
    return {**found, "margin": found["chosen_reward"] - found["rejected_reward"]}

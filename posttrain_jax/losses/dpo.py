"""Direct preference optimisation over pairs of a chosen and a rejected response.

  L = -log sigmoid(beta (d_chosen - d_rejected)),   d = sum_t log pi(y_t) - log pi_ref(y_t)

Rafailov et al. 2023, arXiv 2305.18290, eq. 7. The first half of a batch's rows are the chosen
responses, the second half the rejected ones, in the same order; so each microbatch
(train_state.accumulate) is made of whole pairs too. A token's weight is its pair's weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses.common import weighted_sum

REQUIRES = ("reference_logp_BT",)


def loss(
    out: PolicyOut,
    batch: Batch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    length_normalised: bool = False,
    nll_coef: float = 0.0,
) -> tuple[Array, Metrics]:
    """The weighted sum over pairs.

    Args:
      beta: how strongly the policy is held to the reference.
      label_smoothing: the share of pairs taken to be labelled the wrong way round (conservative
        DPO; Mitchell 2023, ericmitchell.ai/cdpo.pdf, eq. 3).
      length_normalised: each d is a mean over the response's tokens (Tülu 3, arXiv 2411.15124,
        eq. 6, after SimPO).
      nll_coef: times the chosen response's mean negative log-likelihood is added (Llama 3,
        arXiv 2407.21783, section 4.1.4, after Pang et al. 2024, arXiv 2404.19733, eq. 1).

    Raises:
      ValueError: a batch without reference log-probs, or with an odd number of rows.
    """
    if batch.reference_logp_BT is None:
        raise ValueError(f"the dpo loss needs {REQUIRES} in the batch")
    if batch.weight_BT.shape[0] % 2:
        raise ValueError(f"{batch.weight_BT.shape[0]} rows are not pairs (batch_size)")
    mask = batch.weight_BT != 0
    tokens_B = jnp.maximum(1, jnp.sum(mask, axis=1))
    delta_B = jnp.sum(jnp.where(mask, out.logp_BT - batch.reference_logp_BT, 0.0), axis=1)
    if length_normalised:
        delta_B /= tokens_B
    chosen, rejected = jnp.split(beta * delta_B, 2)
    weight, _ = jnp.split(jnp.max(batch.weight_BT, axis=1), 2)
    margin = chosen - rejected
    value = weighted_sum(
        -(1 - label_smoothing) * jax.nn.log_sigmoid(margin)
        - label_smoothing * jax.nn.log_sigmoid(-margin),
        weight,
    )
    metrics = {
        "pair_accuracy": weighted_sum((margin > 0).astype(jnp.float32), weight),
        "margin": weighted_sum(margin, weight),
        "chosen_reward": weighted_sum(chosen, weight),
        "rejected_reward": weighted_sum(rejected, weight),
    }
    if nll_coef:
        mean_B = jnp.sum(jnp.where(mask, out.logp_BT, 0.0), axis=1) / tokens_B
        nll = weighted_sum(-jnp.split(mean_B, 2)[0], weight)
        value, metrics = value + nll_coef * nll, {**metrics, "chosen_nll": nll}
    return value, {**metrics, "loss": value}

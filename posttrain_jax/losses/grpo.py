"""The policy-gradient loss with all the switches that published recipes set (advantages come in).

  L = -E_t[ w min(r A, clip(r, 1 - low, 1 + high) A) - beta KL_t + entropy_coef H_t ]

DeepSeekMath, arXiv 2402.03300, eq. 3 (ratio a token); DeepSeek-R1, arXiv 2501.12948v1, eq. 1-2
(ratio and KL a sequence: `importance_level="sequence"` with `seq_mean_token_mean` weights gives
each sequence's term once); GSPO, arXiv 2507.18071, eq. 5-7 (`sequence_mean`). E_t is the weighted
sum of losses/common.py; docs/policy_gradient.md names each recipe's options.

Rows of other sorts mix in: the batch may have weights of a negative log-likelihood, and a teacher;
rows that are only such have weights of 0 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses import distill
from posttrain_jax.losses._off_policy import off_policy_weights
from posttrain_jax.losses.common import (
    LOG_RATIO_BOUND,
    clipped_surrogate,
    kl_estimate,
    log_ratio,
    weighted_sum,
)

REQUIRES = ("advantage_BT", "behaviour_logp_BT")


def loss(
    out: PolicyOut, batch: Batch, *, surrogate: str = "clipped", importance_level: str = "token",
    clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 0.0,
    kl_coef: float | Array = 0.0, kl_estimator: str = "k3", kl_log_bound: float = LOG_RATIO_BOUND,
    kl_bound: float = 0.0, entropy_coef: float | Array = 0.0, off_policy_weight: str = "none",
    off_policy_cap: float = 2.0, off_policy_mask: str = "none", off_policy_low: float = 0.5,
    off_policy_high: float = 2.0, distill_options: Mapping[str, Any] | None = None,
) -> tuple[Array, Metrics]:  # fmt: skip
    """Policy gradient, KL penalty and entropy bonus, and what else the batch has weights for.

    The ratio is that to `batch.proximal_logp_BT`, or without it to the behaviour's.

    Args:
      surrogate, importance_level, clip_low, clip_high, dual_clip: of `policy_gain`.
      kl_coef: needs `batch.reference_logp_BT` when not 0. The divergence is a sequence's where the
        ratio is (`importance_level="sequence"`), else a token's.
      kl_estimator, kl_log_bound, kl_bound: of `common.kl_estimate`.
      off_policy_...: of `off_policy_weights`; they act on the policy gradient only.
      distill_options: of losses/distill.py, where the batch has a teacher.

    `kl_coef` and `entropy_coef` may be traced: controls of the update.

    Raises:
      ValueError: a batch that lacks what is asked for, an unknown surrogate, level or estimator.
    """
    weight = batch.weight_BT
    gain_BT, metrics = policy_gain(
        out, batch, surrogate, importance_level, clip_low, clip_high, dual_clip
    )
    correction, more = off_policy_weights(
        batch, weight=off_policy_weight, cap=off_policy_cap, mask=off_policy_mask,
        low=off_policy_low, high=off_policy_high,
    )  # fmt: skip
    entropy = weighted_sum(out.entropy_BT, weight)
    objective = weighted_sum(correction * gain_BT, weight) + entropy_coef * entropy
    metrics |= {**more, "entropy": entropy}
    if not isinstance(kl_coef, int | float) or kl_coef != 0:
        if batch.reference_logp_BT is None:
            raise ValueError(f"kl_coef={kl_coef} needs reference_logp_BT in the batch")
        level = "sequence" if importance_level == "sequence" else "token"
        gap_BT = log_ratio(out.logp_BT, batch.reference_logp_BT, weight != 0, level, kl_log_bound)
        kl = weighted_sum(kl_estimate(gap_BT, kl_estimator, kl_log_bound, kl_bound), weight)
        objective, metrics = objective - kl_coef * kl, {**metrics, "kl": kl}
    others, more = other_rows(out, batch, distill_options or {})
    value = others - objective
    return value, {**more, **metrics, "loss": value}


def policy_gain(
    out: PolicyOut, batch: Batch, surrogate: str, importance_level: str, clip_low: float,
    clip_high: float, dual_clip: float,
) -> tuple[Array, Metrics]:  # fmt: skip
    """What the update makes larger at each token, without weights -> [B, T].

    Args:
      surrogate: `clipped`: PPO's, the smaller of r A and clip(r) A. `cispo`: stop_gradient(clip(r))
        A log pi, so that clipped tokens keep a gradient (MiniMax-M1, arXiv 2506.13585, eq. 4-5;
        TRL's epsilon_high is 1 + clip_high, and its missing lower bound clip_low = 1).
      importance_level: `token`, `sequence` or `sequence_mean`, see `common.log_ratio`.
      dual_clip: where A < 0, r counts as no more than this (Ye et al. 2020, arXiv 1912.09729;
        TRL's delta, which it takes for A > 0 too: the same if above 1 + clip_high); 0: no bound.

    Raises:
      ValueError: a batch without advantages or log-probs, an unknown surrogate or level.
    """
    if batch.advantage_BT is None or batch.behaviour_logp_BT is None:
        raise ValueError(f"the grpo loss needs {REQUIRES} in the batch")
    mask, advantage_BT = batch.weight_BT != 0, batch.advantage_BT
    proximal = batch.proximal_logp_BT
    proximal = batch.behaviour_logp_BT if proximal is None else proximal
    ratio_BT = jnp.exp(log_ratio(out.logp_BT, proximal, mask, importance_level))
    if surrogate == "clipped":
        gain_BT, clipped_BT = clipped_surrogate(
            ratio_BT, advantage_BT, clip_low, clip_high, dual_clip
        )
    elif surrogate == "cispo":
        held_BT = jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
        clipped_BT = held_BT != ratio_BT
        logp_BT = jnp.where(mask, out.logp_BT, 0.0)
        gain_BT = jax.lax.stop_gradient(held_BT) * advantage_BT * logp_BT
    else:
        raise ValueError(f"surrogate {surrogate!r}: expected 'clipped' or 'cispo'")
    gap_BT = jnp.where(mask, jnp.abs(out.logp_BT - batch.behaviour_logp_BT), 0.0)
    return gain_BT, {
        "ratio": weighted_sum(ratio_BT, batch.weight_BT),
        "clip_fraction": weighted_sum(clipped_BT.astype(jnp.float32), batch.weight_BT),
        "max/logprob_gap": jnp.max(gap_BT),
    }


def other_rows(
    out: PolicyOut, batch: Batch, distill_options: Mapping[str, Any]
) -> tuple[Array | float, Metrics]:
    """The losses that mix in: negative log-likelihood, distillation; 0 where there are none."""
    value, metrics = 0.0, {}
    if batch.nll_weight_BT is not None:
        nll = weighted_sum(-out.logp_BT, batch.nll_weight_BT)
        value, metrics = nll, {"nll": nll}
    if batch.teacher is not None:
        distilled, found = distill.loss(out, batch, **distill_options)
        value, metrics = value + distilled, {**metrics, **found, "distill": distilled}
    return value, metrics

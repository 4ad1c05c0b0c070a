"""Pieces that losses share: aggregation weights, likelihood ratios, clipping, KL estimators."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

LOG_RATIO_BOUND = 40.0
"""Log-ratios are clamped to +-this before exp (open-instruct's bound; exp(40) fits float32)."""

AGGREGATIONS = (
    "token_mean_global",
    "token_mean_local",
    "seq_mean_token_mean",
    "seq_sum",
    "constant",
)


def aggregation_weights(
    mask_BT: jax.Array, mode: str, *, microbatches: int = 1, constant: float | None = None
) -> jax.Array:
    """Per-token weights that turn a sum into the mean that a recipe prints.

    Args:
      mask_BT: 1 on the tokens of the loss.
      mode: `token_mean_global`: over all tokens of the batch (DAPO, arXiv 2503.14476, eq. 8).
        `token_mean_local`: mean over the tokens of each microbatch, then over microbatches (TRL's
        bnpo). `seq_mean_token_mean`: mean within each sequence, then over sequences (GRPO,
        arXiv 2402.03300, eq. 3). `seq_sum`: sum within each sequence, mean over sequences.
        `constant`: sum over `constant` times the number of sequences (Dr. GRPO, arXiv 2503.20783).
      microbatches: into how many parts the update splits the batch: row i is in part
        i % microbatches, as in train_state.py.
      constant: tokens a sequence for `constant` mode, usually the length limit.

    Returns:
      float32 [B, T]; sums to 1 for the three means over a batch in which every sequence has a
      masked-in token. Sequences with no such token still count in the number of sequences.

    Raises:
      ValueError: an unknown mode, or `constant` mode without a constant.
    """
    mask = jnp.asarray(mask_BT, jnp.float32)
    rows = mask.shape[0]
    if mode == "token_mean_global":
        return mask / jnp.maximum(1.0, jnp.sum(mask))
    if mode == "token_mean_local":
        parts = mask.reshape(-1, microbatches, mask.shape[1])
        counts = jnp.maximum(1.0, jnp.sum(parts, axis=(0, 2), keepdims=True))
        return (parts / counts / microbatches).reshape(mask.shape)
    if mode == "seq_mean_token_mean":
        return mask / jnp.maximum(1.0, jnp.sum(mask, axis=1, keepdims=True)) / rows
    if mode == "seq_sum":
        return mask / rows
    if mode == "constant":
        if not constant:
            raise ValueError("aggregation='constant' needs aggregation_constant, tokens a sequence")
        return mask / (constant * rows)
    raise ValueError(f"aggregation {mode!r}: expected one of {AGGREGATIONS}")


def log_ratio(logp_BT, behaviour_logp_BT, mask_BT, level: str):
    """log(pi / pi_behaviour) of each token, or of its whole sequence at every token.

    Args:
      level: `token`; or `sequence`, the ratio pi(o|q) / pi_old(o|q) that DeepSeek-R1 prints
        (arXiv 2501.12948v1, eq. 1). One sequence a row.

    Raises:
      ValueError: an unknown level.
    """
    chex.assert_equal_shape([logp_BT, behaviour_logp_BT, mask_BT])
    delta = jnp.where(mask_BT, logp_BT - behaviour_logp_BT, 0.0)
    if level == "sequence":
        delta = jnp.broadcast_to(jnp.sum(delta, axis=1, keepdims=True), delta.shape)
    elif level != "token":
        raise ValueError(f"importance_level {level!r}: expected 'token' or 'sequence'")
    return jnp.clip(delta, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def clipped_surrogate(ratio, advantage, clip_low: float, clip_high: float):
    """PPO's pessimistic min(r A, clip(r, 1 - low, 1 + high) A), and where the clip binds.

    Schulman et al. 2017, arXiv 1707.06347, eq. 7; two bounds as in DAPO, arXiv 2503.14476, eq. 8.
    """
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return jnp.minimum(
        ratio * advantage, clipped * advantage
    ), clipped * advantage < ratio * advantage


def kl_estimate(log_ratio, estimator: str):
    """KL(pi || reference) from one sample, with log_ratio = log pi - log reference.

    k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman 2020, joschu.net/blog/kl-approx.html;
    k3 is R1's eq. 2). expm1 keeps k3 exact near zero.

    Raises:
      ValueError: an unknown estimator.
    """
    d = jnp.clip(log_ratio, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * jnp.square(d)
    if estimator == "k3":
        return jnp.expm1(-d) + d
    raise ValueError(f"kl estimator {estimator!r}: expected k1, k2 or k3")


def weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    """sum(weight * values), where a zero weight silences a non-finite value."""
    return jnp.sum(jnp.where(weight != 0, values * weight, 0.0))

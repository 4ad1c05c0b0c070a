"""Pieces that losses share: aggregation weights, likelihood ratios, clipping, KL estimators."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

LOG_RATIO_BOUND = 40.0
"""Log-ratios are clamped to +-this before exp (open-instruct's bound; exp(40) fits float32)."""

LEVELS = ("token", "sequence", "sequence_mean")

AGGREGATIONS = (
    "token_mean_global",
    "token_mean_local",
    "seq_mean_token_mean",
    "seq_sum",
    "constant",
)


def aggregation_weights(
    mask_BT: jax.Array, mode: str, *, microbatches: int = 1, together: int = 1,
    constant: float | None = None,
) -> jax.Array:  # fmt: skip
    """Per-token weights that turn a sum into the mean that a recipe prints.

    Args:
      mask_BT: 1 on the tokens of the loss.
      mode: `token_mean_global`: over all tokens of the batch (DAPO, arXiv 2503.14476, eq. 8).
        `token_mean_local`: mean over the tokens of each microbatch, then over microbatches (TRL's
        bnpo). `seq_mean_token_mean`: mean within each sequence, then over sequences (GRPO,
        arXiv 2402.03300, eq. 3). `seq_sum`: sum within each sequence, mean over sequences.
        `constant`: sum over `constant` times the number of sequences (Dr. GRPO, arXiv 2503.20783).
      microbatches: into how many parts the update splits the batch, with so many rows `together`,
        as `train_state.accumulate` does.
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
        parts = mask.reshape(-1, microbatches, together, mask.shape[1])
        counts = jnp.maximum(1.0, jnp.sum(parts, axis=(0, 2, 3), keepdims=True))
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


def log_ratio(logp_BT, behaviour_logp_BT, mask_BT, level: str, bound: float = LOG_RATIO_BOUND):
    """log(pi / pi_behaviour) of each token, or of its whole sequence at every token.

    Args:
      level: `token`. `sequence`: the ratio pi(o|q) / pi_old(o|q) that DeepSeek-R1 prints
        (arXiv 2501.12948v1, eq. 1). `sequence_mean`: its geometric mean over the tokens (GSPO,
        arXiv 2507.18071, eq. 7). One sequence a row.
      bound: the result is clamped to +-this.

    Raises:
      ValueError: an unknown level.
    """
    chex.assert_equal_shape([logp_BT, behaviour_logp_BT, mask_BT])
    delta = jnp.where(mask_BT, logp_BT - behaviour_logp_BT, 0.0)
    if level in ("sequence", "sequence_mean"):
        total = jnp.sum(delta, axis=1, keepdims=True)
        if level == "sequence_mean":
            total /= jnp.maximum(1, jnp.sum(mask_BT, axis=1, keepdims=True))
        delta = jnp.broadcast_to(total, delta.shape)
    elif level != "token":
        raise ValueError(f"importance_level {level!r}: expected one of {LEVELS}")
    return jnp.clip(delta, -bound, bound)


def clipped_surrogate(ratio, advantage, clip_low: float, clip_high: float, dual_clip: float = 0.0):
    """PPO's pessimistic min(r A, clip(r, 1 - low, 1 + high) A), and where a clip binds.

    Schulman et al. 2017, arXiv 1707.06347, eq. 7; two bounds as in DAPO, arXiv 2503.14476, eq. 8.

    Args:
      dual_clip: the smallest result where A < 0 is this times A (dual clip, Ye et al. 2020,
        arXiv 1912.09729); 0: none.
    """
    plain, held = ratio * advantage, jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantage
    gain, clipped = jnp.minimum(plain, held), held < plain
    if dual_clip:
        floor = jnp.where(advantage < 0, dual_clip * advantage, -jnp.inf)
        gain, clipped = jnp.maximum(gain, floor), clipped | (gain < floor)
    return gain, clipped


def kl_estimate(log_ratio, estimator: str, log_bound: float = LOG_RATIO_BOUND, bound: float = 0.0):
    """KL(pi || reference) from one sample, with log_ratio = log pi - log reference.

    k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman 2020, joschu.net/blog/kl-approx.html;
    k3 is R1's eq. 2). expm1 keeps k3 exact near zero.

    Args:
      log_bound: d is clamped to +-this (open-instruct: 40; verl's low_var_kl: 20).
      bound: the estimate is clamped to +-this (verl's low_var_kl: 10); 0: it is not.

    Raises:
      ValueError: an unknown estimator.
    """
    d = jnp.clip(log_ratio, -log_bound, log_bound)
    if estimator == "k1":
        kl = d
    elif estimator == "k2":
        kl = 0.5 * jnp.square(d)
    elif estimator == "k3":
        kl = jnp.expm1(-d) + d
    else:
        raise ValueError(f"kl estimator {estimator!r}: expected k1, k2 or k3")
    return jnp.clip(kl, -bound, bound) if bound else kl


def weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    """sum(weight * values), where a zero weight silences a non-finite value."""
    return jnp.sum(jnp.where(weight != 0, values * weight, 0.0))

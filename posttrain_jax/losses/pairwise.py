"""Pairs of responses in a batch: what the preference losses are made of.

Row by row, the sequences of a batch alternate between chosen and rejected (data/pairs.py): one a
row, or several told apart by `segments_BT`. Sums over a sequence are [B, M], M sequences a row at
most; in that order they are pairs [P, 2], the chosen one first, whichever of the two layouts it is.
A token's `weight_BT` is its pair's weight, 0 outside of the responses; a pair that has no weighted
token on one of its sides, as in rows of padding, weighs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses.common import weighted_sum


class Pairs(NamedTuple):
    """P pairs, here one of chosen and rejected responses each.

    Attributes:
      logp_P2: log-prob of each response's weighted tokens under the policy.
      ratio_P2: the same minus that under the reference, whose log-probs the batch has; else None.
      tokens_P2: how many tokens that are.
      weight_P: weights that sum to 1 over the batch.
    """

    logp_P2: Array
    ratio_P2: Array | None
    tokens_P2: Array
    weight_P: Array

    def mean(self, total_P2: Array) -> Array:
        """Totals over tokens as means over tokens."""
        return total_P2 / jnp.maximum(1, self.tokens_P2)


def hits(batch: Batch, sequences: int) -> Array:
    """Which tokens are of each of a row's sequences and have weight -> bool [B, M, T]."""
    number_M1 = jnp.arange(1, sequences + 1)[:, None]
    return (batch.segments_BT[:, None] == number_M1) & (batch.weight_BT != 0)[:, None]


def totals(values_BT: Array, hit_BMT: Array) -> Array:
    """The sum of each sequence's values -> [B, M]; what is not hit may be anything."""
    return jnp.sum(jnp.where(hit_BMT, values_BT[:, None], 0.0), axis=2)


def read(out: PolicyOut, batch: Batch, sequences: int) -> Pairs:
    """The pairs of a batch.

    Args:
      sequences: how many a row has at most, `Layout.sequences`.

    Raises:
      ValueError: rows that don't hold whole pairs.
    """
    if batch.weight_BT.shape[0] * sequences % 2:
        raise ValueError(
            f"{batch.weight_BT.shape[0]} rows of {sequences} sequences are not pairs: the sides "
            "of a pair lie in one row, or in two rows one after the other"
        )
    hit_BMT = hits(batch, sequences)
    by_pair = lambda x_BM: x_BM.reshape(-1, 2)  # noqa: E731
    ratio_P2 = None
    if batch.reference_logp_BT is not None:
        ratio_P2 = by_pair(totals(out.logp_BT - batch.reference_logp_BT, hit_BMT))
    weight_BM = jnp.max(jnp.where(hit_BMT, batch.weight_BT[:, None], 0.0), axis=2)
    return Pairs(
        by_pair(totals(out.logp_BT, hit_BMT)),
        ratio_P2,
        by_pair(jnp.sum(hit_BMT, axis=2)),
        jnp.min(by_pair(weight_BM), axis=1),
    )


def ratios(pairs: Pairs, loss: str) -> Array:
    """log(pi / pi_reference) of each response.

    Raises:
      ValueError: the batch has no log-probs of a reference.
    """
    if pairs.ratio_P2 is None:
        raise ValueError(f"the {loss} loss needs reference_logp_BT in the batch")
    return pairs.ratio_P2


def logistic(margin_P: Array, label_smoothing: float = 0.0) -> Array:
    """-log sigmoid(margin), with a share of pairs taken to be labelled the wrong way round.

    Conservative DPO: Mitchell 2023, ericmitchell.ai/cdpo.pdf, eq. 3.
    """
    right, wrong = jax.nn.log_sigmoid(margin_P), jax.nn.log_sigmoid(-margin_P)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def total(
    loss_P: Array, reward_P2: Array, pairs: Pairs, out: PolicyOut, batch: Batch
) -> tuple[Array, Metrics]:
    """The weighted sum over pairs plus that of `batch.nll_weight_BT`, and the metrics.

    Args:
      loss_P: of each pair.
      reward_P2: the implicit reward of each response, which the loss compares.
    """
    mean = lambda x: weighted_sum(x, pairs.weight_P)  # noqa: E731
    value = mean(loss_P)
    margin_P = reward_P2[:, 0] - reward_P2[:, 1]
    metrics = {"pair_accuracy": mean((margin_P > 0).astype(loss_P.dtype)), "margin": mean(margin_P)}
    for side, name in enumerate(("chosen", "rejected")):
        metrics |= {
            f"{name}_reward": mean(reward_P2[:, side]),
            f"{name}_logp": mean(pairs.logp_P2[:, side]),
            f"{name}_tokens": mean(pairs.tokens_P2[:, side]),
        }
    if batch.nll_weight_BT is not None:
        nll = weighted_sum(-out.logp_BT, batch.nll_weight_BT)
        value, metrics = value + nll, {**metrics, "nll": nll}
    return value, {**metrics, "loss": value}

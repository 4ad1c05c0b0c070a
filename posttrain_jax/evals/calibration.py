"""Calibration: whether what is said with probability p is right in a share p of the cases; no jax.

Guo et al. 2017, arXiv 1706.04599, section 2: the reliability curve over bins of equal width, and
the expected calibration error, sum_bins n_bin / n |accuracy - confidence| (eq. 3). Of a verdict
with two outcomes the confidence is that of the likelier one, so it lies between a half and one; of
a pair of responses it is sigmoid(|s_chosen - s_rejected|).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from posttrain_jax.metrics import mean_stderr

BINS = 5
LOWEST = 0.5


class Bin(NamedTuple):
    """The cases whose confidence lies in (low, high], the first bin's low included."""

    low: float
    high: float
    cases: int
    confidence: float
    right: dict[str, float]


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> list[Bin]:
    """The bins between a half and one that have cases, from the lowest.

    Raises:
      ValueError: a confidence outside of a half to one.
    """
    said, true = np.asarray(confidence, float), np.asarray(right, float)
    if len(said) and not (said.min() >= LOWEST and said.max() <= 1):
        raise ValueError(
            f"confidences of the likelier outcome lie in [0.5, 1], got {said.min():g} to "
            f"{said.max():g}"
        )
    edges = np.linspace(LOWEST, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, said, side="left") - 1, 0, bins - 1)
    return [
        Bin(
            float(edges[i]), float(edges[i + 1]), int(np.sum(number == i)),
            float(said[number == i].mean()), mean_stderr(true[number == i].tolist()),
        )
        for i in range(bins) if np.any(number == i)
    ]  # fmt: skip


def calibration_error(found: Sequence[Bin]) -> float:
    """The expected calibration error of a reliability curve."""
    total = sum(b.cases for b in found)
    return sum(b.cases * abs(b.right["mean"] - b.confidence) for b in found) / total


def calibration(confidence: ArrayLike, right: ArrayLike) -> dict[str, Any]:
    """The metrics `calibration_error`, `reliability/<i>` (the share that was right, with n) and
    `confidence/<i>` of each bin i that has cases."""
    found = reliability(confidence, right)
    if not found:
        return {}
    width = (1 - LOWEST) / BINS
    metrics: dict[str, Any] = {"calibration_error": calibration_error(found)}
    for each in found:
        number = round((each.low - LOWEST) / width)
        metrics[f"reliability/{number}"] = each.right
        metrics[f"confidence/{number}"] = {"mean": each.confidence, "stderr": 0.0, "n": each.cases}
    return metrics


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x) in float64, without overflow."""
    e = np.exp(-np.abs(np.asarray(x, float)))
    return np.where(np.asarray(x) >= 0, 1.0, e) / (1.0 + e)

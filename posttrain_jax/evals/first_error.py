"""Finding the first wrong step of a solution, as ProcessBench scores it; no jax.

Zheng et al. 2024, arXiv 2412.06559, section 3: on solutions with an error the share whose first
wrong step is found, on right ones the share that is passed as right, and F1, the harmonic mean of
the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain_jax.metrics import mean_stderr

NONE = -1


def first_error(values: Sequence[float], threshold: float = 0.5) -> int:
    """The first step whose label, or chance of being right, is below the threshold; -1: none."""
    return next((i for i, value in enumerate(values) if value < threshold), NONE)


def first_error_metrics(found: Sequence[int], gold: Sequence[int]) -> dict[str, Any]:
    """`first_error_f1`, and its parts `found_error` and `passed_right`, as far as there are both.

    Args:
      found, gold: the first wrong step of each solution, -1 for none.
    """
    pairs = list(zip(found, gold, strict=True))
    wrong = [float(f == g) for f, g in pairs if g != NONE]
    right = [float(f == g) for f, g in pairs if g == NONE]
    metrics: dict[str, Any] = {}
    if wrong:
        metrics["found_error"] = mean_stderr(wrong)
    if right:
        metrics["passed_right"] = mean_stderr(right)
    if wrong and right:
        a, b = sum(wrong) / len(wrong), sum(right) / len(right)
        metrics["first_error_f1"] = 2 * a * b / (a + b) if a + b else 0.0
    return metrics

"""The Pareto front of policies judged by two objectives, and the area under it. No jax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def non_dominated(points_P2: np.ndarray) -> np.ndarray:
    """Which points no other is better than -> bool [P]; more is better in both columns.

    A point is dominated by one that is at least as good in both and better in one; equal points
    don't dominate each other.
    """
    points = np.asarray(points_P2, np.float64)
    at_least = (points[:, None] >= points[None]).all(axis=2)
    better = (points[:, None] > points[None]).any(axis=2)
    return np.logical_not((at_least & better).any(axis=0))


def hypervolume(points_P2: np.ndarray, origin: Sequence[float] | np.ndarray) -> float:
    """The area that the points dominate above `origin` (Zitzler and Thiele 1999); more is better.

    Points below the origin in either objective add nothing.
    """
    above = np.maximum(np.asarray(points_P2, np.float64) - np.asarray(origin, np.float64), 0.0)
    area, height = 0.0, 0.0
    for width, tall in sorted(map(tuple, above), reverse=True):
        area += width * max(0.0, tall - height)
        height = max(height, tall)
    return float(area)

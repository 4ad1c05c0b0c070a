"""Bootstrap intervals of means over problems: percentiles of resampled means; no jax.

Efron 1979, "Bootstrap methods: another look at the jackknife"; the percentile interval of Efron and
Tibshirani 1993, section 13.3. What is drawn again is the problem with all its samples, since the
samples of a problem are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from posttrain_jax.metrics import mean_stderr

LEVEL = 0.95
RESAMPLES = 2000
_BLOCK = 1 << 22
"""Counts that are drawn at a time, which bounds the memory."""


def intervals(
    values_PM: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """The interval of each column's mean -> [M, 2], low and high.

    All columns share the resamples, so equal columns have equal intervals.

    Args:
      values_PM: M figures of each of P problems.
      level: the share of the resampled means that lies inside.

    Raises:
      ValueError: no problems, or not two dimensions.
    """
    values = np.asarray(values_PM, np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"expected figures [problems, M] of one problem or more: {values.shape}")
    problems = len(values)
    rng = np.random.default_rng([seed, problems])
    block, parts = max(1, _BLOCK // problems), []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        # How often each problem was drawn says as much as which ones, and makes it one product.
        drawn = rng.multinomial(problems, np.full(problems, 1.0 / problems), size=size)
        parts.append(drawn @ values / problems)
    tail = (1.0 - level) / 2
    return np.quantile(np.concatenate(parts), [tail, 1.0 - tail], axis=0).T


def with_intervals(columns: Mapping[str, Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """Each column's {"mean", "stderr", "n", "low", "high"}; a column has a figure a problem.

    Raises:
      ValueError: no problems, or columns of different lengths.
    """
    if not columns:
        return {}
    limits = intervals(np.column_stack([np.asarray(v) for v in columns.values()]), seed=seed)
    return {
        name: {**mean_stderr(values), "low": float(low), "high": float(high)}
        for (name, values), (low, high) in zip(columns.items(), limits, strict=True)
    }


def by_domain(columns: Mapping[str, Sequence[float]], domains: Sequence[str]) -> dict[str, Any]:
    """`with_intervals` over all problems, and over those of each domain as `<name>/<domain>`.

    Args:
      columns: a figure a problem.
      domains: what each problem is about.
    """
    found = with_intervals(columns)
    names = np.asarray(domains)
    for domain in sorted(set(domains)):
        rows = np.flatnonzero(names == domain)
        part = {name: np.asarray(values)[rows].tolist() for name, values in columns.items()}
        found |= {f"{name}/{domain}": v for name, v in with_intervals(part).items()}
    return found

"""What the curves of a stage show: which metrics share a panel, smoothing, thinning, the scale.

Smoothing is local linear regression with tricube weights (Cleveland 1979, "Robust locally weighted
regression", section 2, without the robustness step): it does not lag behind the data, and a
straight line stays exactly what it is. Curves longer than `POINTS` are thinned by keeping the
lowest and the highest value of each stretch, so that a spike stays visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain_jax.report.records import Stage
from posttrain_jax.report.vocabulary import GAP_LIMIT, term

POINTS = 160
_HIDDEN = ("step", "seconds")
_NO_COURSE = (
    "evaluate", "generate", "reject", "pairs", "dataset", "export", "pretrained", "step_labels",
    "rerank", "search", "pareto",
)  # fmt: skip
_ORDER = (
    "accuracy", "reward", "length", "language", "loss", "kl", "entropy", "logprob_gap",
    "clip_fraction", "all_equal_groups", "truncated", "masked", "tokens_per_second", "grad_norm",
    "learning_rate",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One line: the raw values by step, thinned, and their smoothed course."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    smooth_steps: tuple[float, ...]
    smooth: tuple[float, ...]
    first: float
    last: float


@dataclass(frozen=True)
class Panel:
    """One small chart. `name` is the metric that gives unit and meaning; `limit` a marked line."""

    name: str
    title: str
    series: tuple[Series, ...]
    low: float
    high: float
    log: bool = False
    limit: float | None = None
    span: int = 1


def trains(stage: Stage) -> bool:
    """True where the steps of a stage are a course worth drawing: it makes no data or figures."""
    return bool(stage.steps) and stage.kind not in _NO_COURSE


def panels(stage: Stage) -> list[Panel]:
    """The panels of a stage, usual metrics first; the parts of the reward share one panel.

    A metric that never changed gets none: see `constants`.
    """
    still = {name for name, _ in constants(stage)}
    names = {key for row in stage.steps for key in row} - still
    shown = [n for n in names if n not in _HIDDEN and not n.startswith(("seconds_", "reward/"))]
    shown.sort(key=_rank)
    made = [_panel(stage, name, term(name).label, [name]) for name in shown]
    parts = sorted(n for n in names if n.startswith("reward/"))
    if parts:
        after = 1 + max((i for i, n in enumerate(shown) if n in ("accuracy", "reward")), default=-1)
        made.insert(after, _panel(stage, parts[0], "reward parts", parts))
    return made


def constants(stage: Stage) -> list[tuple[str, float]]:
    """Metrics with the same value in all steps (or with one step only), with that value."""
    values: dict[str, set[float]] = {}
    for row in stage.steps:
        for key, value in row.items():
            values.setdefault(key, set()).add(value)
    names = [n for n in values if n not in _HIDDEN and not n.startswith("seconds_")]
    return [(n, next(iter(values[n]))) for n in sorted(names, key=_rank) if len(values[n]) == 1]


def smoothed(
    steps: Sequence[float], values: Sequence[float], span: int, at: Sequence[int]
) -> list[float]:
    """The smooth curve at the indices `at`: a line fitted to the `span` values around each.

    A fitted value never leaves the range of the values it was fitted to; span 1 changes nothing.
    """
    x, y, half = np.asarray(steps, float), np.asarray(values, float), span // 2
    windows = ((i, slice(max(0, i - half), i + half + 1)) for i in at)
    return [_local_line(x[near] - x[i], y[near]) for i, near in windows]


def thinned(
    steps: Sequence[float], values: Sequence[float], points: int = POINTS
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """At most `points` of the curve: the lowest and highest value of each equal stretch."""
    count = len(values)
    if count <= points:
        return tuple(steps), tuple(values)
    stretches = points // 2
    keep: set[int] = set()
    for i in range(stretches):
        stretch = range(i * count // stretches, (i + 1) * count // stretches)
        keep |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    kept = sorted(keep)
    return tuple(steps[i] for i in kept), tuple(values[i] for i in kept)


def smoothing_span(count: int) -> int:
    """How many steps the smooth line is fitted to: odd, about a sixth of the curve; 1 if short."""
    return 1 if count < 8 else max(7, count // 6 | 1)


def _local_line(x: np.ndarray, y: np.ndarray) -> float:
    """The value at 0 of the line fitted to (x, y) with tricube weights."""
    reach = max(x[-1], -x[0]) * 1.0001 or 1.0
    weights = (1 - (np.abs(x) / reach) ** 3) ** 3
    weights /= weights.sum()
    mean_x, mean_y = weights @ x, weights @ y
    spread = weights @ (x - mean_x) ** 2
    slope = weights @ ((x - mean_x) * (y - mean_y)) / spread if spread > 0 else 0.0
    return float(np.clip(mean_y - slope * mean_x, y.min(), y.max()))


def _panel(stage: Stage, name: str, title: str, keys: Sequence[str]) -> Panel:
    lines = [_series(stage, key) for key in keys]
    values = [v for line in lines for v in line.values]
    log = name == "logprob_gap" and min(values) > 0
    limit = GAP_LIMIT if name == "logprob_gap" else None
    low, high = _bounds(name, title, values)
    span = smoothing_span(max(sum(key in row for row in stage.steps) for key in keys))
    return Panel(name, title, tuple(lines), low, high, log, limit, span)


def _series(stage: Stage, key: str) -> Series:
    rows = [row for row in stage.steps if key in row]
    steps, values = [row["step"] for row in rows], [row[key] for row in rows]
    last = len(values) - 1
    picked = sorted({*range(0, len(values), 1 + last // POINTS), last})
    smooth = smoothed(steps, values, smoothing_span(len(values)), picked)
    thin_steps, thin_values = thinned(steps, values)
    return Series(
        label=term(key).label,
        steps=thin_steps,
        values=thin_values,
        smooth_steps=tuple(steps[i] for i in picked),
        smooth=tuple(smooth),
        first=smooth[0],
        last=smooth[-1],
    )


def _bounds(name: str, title: str, values: Sequence[float]) -> tuple[float, float]:
    """The y range: 0 to 1 for shares that use it, from 0 for what can't be negative."""
    low, high = min(values), max(values)
    if name == "logprob_gap":
        return (low / 1.5 if low > 0 else 0.0), max(high, GAP_LIMIT) * 1.5
    if low >= 0 and high <= 1 and (name in ("accuracy", "language") or title == "reward parts"):
        return 0.0, 1.0
    if low >= 0 and (high == 0 or low < 0.7 * high):
        return 0.0, high * 1.05 if high else 1.0
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _rank(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER)), name

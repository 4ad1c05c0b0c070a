"""Policies by two objectives: a scatter chart of each `pareto` stage, a line for each series.

Policies on the front are filled dots, dominated ones rings; a bar is one standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from posttrain_jax.report.charts import ticks
from posttrain_jax.report.records import Metric, Run, Stage
from posttrain_jax.report.vocabulary import plain, show, spoken, term, with_unit

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 26, 40
MARGIN = 0.08
"""Of the axes, beyond the outermost points."""


@dataclass(frozen=True)
class Point:
    """A policy: its figures by the two objectives, and whether it is on the front."""

    role: str
    first: Metric
    second: Metric
    on_front: bool


@dataclass(frozen=True)
class Front:
    """What a stage compared.

    Attributes:
      names: the metrics that are the objectives, without a minus.
      areas: name of each line, and the area that it dominates as printed.
      points: every policy once.
    """

    stage: Stage
    names: tuple[str, str]
    areas: tuple[tuple[str, str], ...]
    points: tuple[Point, ...]
    chart: Markup


def fronts(run: Run) -> list[Front]:
    """The finished `pareto` stages whose settings the run folder has."""
    configs = run.config.get("stages", {})
    done = [s for s in run.stages if s.kind == "pareto" and s.metrics and s.name in configs]
    return [_front(stage, configs[stage.name]) for stage in done]


def chart(
    objectives: tuple[str, str], series: list[tuple[str, tuple[Point, ...]]], label: str,
    doubling: bool = False,
) -> Markup:  # fmt: skip
    """The second objective over the first.

    Args:
      objectives: the metrics of the axes, with a minus where less is better.
      series: points to be joined, by name.
      label: what the chart is of, for a screen reader.
      doubling: the first axis is logarithmic; its values are above 0.
    """
    names = objectives[0].removeprefix("-"), objectives[1].removeprefix("-")
    points = [p for _, members in series for p in members]
    across, x = (_doubling_axis if doubling else _axis)(
        [p.first for p in points], LEFT, WIDTH - RIGHT
    )
    upward, y = _axis([p.second for p in points], HEIGHT - BOTTOM, TOP)
    parts = []
    for value in upward:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/><text class="tick" x="{LEFT - 6}" y="{y(value) + 3.5:.1f}" '
            f'text-anchor="end">{_mark(names[1], value)}</text>'
        )
    for value in across:
        parts.append(
            f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 15}" '
            f'text-anchor="middle">{_mark(names[0], value)}</text>'
        )
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(_title(objectives[0]))}</text>'
        f'<text class="tick" x="{LEFT}" y="12">{escape(_title(objectives[1]))}</text>'
    )
    for index, (_, members) in enumerate(series):
        joined = " ".join(f"{x(p.first.mean):.1f},{y(p.second.mean):.1f}" for p in members)
        parts.append(f'<polyline class="joined s{index % 7}" points="{joined}"/>')
    for index, (name, members) in enumerate(series):
        parts += [_dot(name, point, names, index % 7, x, y) for point in members]
    return Markup(
        f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _front(stage: Stage, config: Mapping[str, Any]) -> Front:
    objectives = config["objectives"][0], config["objectives"][1]
    first, second = (name.removeprefix("-") for name in objectives)
    inputs = [i.role for i in stage.inputs]
    groups = {k: tuple(v) for k, v in (config.get("series") or {"policies": inputs}).items()}
    points = {
        role: Point(
            role, stage.metrics[f"first/{role}"], stage.metrics[f"second/{role}"],
            stage.metrics[f"on_front/{role}"].mean == 1,
        )
        for members in groups.values() for role in members
    }  # fmt: skip
    series = [(name, tuple(points[role] for role in members)) for name, members in groups.items()]
    areas = tuple((name, plain(stage.metrics[f"hypervolume/{name}"].mean)) for name in groups)
    label = f"{stage.name}: {_title(objectives[1])} over {_title(objectives[0])}; " + "; ".join(
        f"{p.role} {with_unit(first, p.first.mean)} and {with_unit(second, p.second.mean)}"
        for p in points.values()
    )
    drawn = chart(objectives, series, label)
    return Front(stage, (first, second), areas, tuple(points.values()), drawn)


def _axis(metrics: list[Metric], start: float, end: float) -> tuple[list[float], Callable]:
    """The ticks of an axis that has all the points, and where a value is on the page."""
    low = min(m.mean - (m.stderr or 0.0) for m in metrics)
    high = max(m.mean + (m.stderr or 0.0) for m in metrics)
    room = MARGIN * (high - low) or 1.0
    low, high = low - room, high + room
    place = lambda value: start + (value - low) / (high - low) * (end - start)  # noqa: E731
    return ticks(low, high), place


def _doubling_axis(metrics: list[Metric], start: float, end: float) -> tuple[list[float], Callable]:
    """As `_axis`, with ticks at the lowest value and its doublings, at most eight of them."""
    lowest, highest = min(m.mean for m in metrics), max(m.mean for m in metrics)
    span = math.log2(highest / lowest) if highest > lowest else 1.0
    room = MARGIN * span
    unit = (end - start) / (span + 2 * room)
    place = lambda value: start + unit * (room + math.log2(max(value, lowest / 2) / lowest))  # noqa: E731
    every = math.ceil((span + 1) / 8)
    return [lowest * 2.0**i for i in range(0, math.floor(span + 1e-9) + 1, every)], place


def _dot(series: str, point: Point, names: tuple[str, str], index: int, x, y) -> str:
    (a, e), (b, f) = ((m.mean, m.stderr or 0.0) for m in (point.first, point.second))
    said = f"{spoken(point.role)} ({spoken(series)}): " + ", ".join(
        f"{term(n).label} {show(n, value)} ± {show(n, error)} {term(n).unit}".rstrip()
        for n, value, error in zip(names, (a, b), (e, f), strict=True)
    )
    bars = "".join(
        f'<polyline class="raw s{index}" points="{x(u):.1f},{y(v):.1f} {x(w):.1f},{y(z):.1f}"/>'
        for u, v, w, z in ((a - e, b, a + e, b), (a, b - f, a, b + f))
    )
    return (
        f'<g class="s{index}"><title>{escape(said)}</title>{bars}<circle '
        f'class="{"point" if point.on_front else "ring"}" cx="{x(a):.1f}" cy="{y(b):.1f}" '
        'r="4.5"/></g>'
    )


def _mark(name: str, value: float) -> str:
    return f"{100 * value:.4g}" if term(name).share else plain(value)


def _title(objective: str) -> str:
    entry = term(objective.removeprefix("-"))
    title = f"{entry.label}, {entry.unit}" if entry.unit else entry.label
    return f"{title} (less is better)" if objective.startswith("-") else title

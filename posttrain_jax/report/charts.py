"""Small inline SVG charts, coloured by the page's style sheet so that they follow light and dark.

No plotting library: a panel is a few kilobytes, its labels are real text, and a screen reader gets
one sentence for it. The values of the smooth line travel in `data-` attributes for the read-out
under the pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from posttrain_jax.report.curves import Panel, Series
from posttrain_jax.report.tables import Row
from posttrain_jax.report.vocabulary import plain, show, term, with_unit

WIDTH, HEIGHT = 280, 152
LEFT, RIGHT, TOP, BOTTOM = 48, 6, 8, 22
Scale = Callable[[float], float]


def panel_svg(panel: Panel) -> Markup:
    """One panel: faint raw values, the smooth line over them, grid and labels in the unit."""
    first = min(s.steps[0] for s in panel.series)
    last = max(s.steps[-1] for s in panel.series)
    x = _linear(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT)
    y = _y_scale(panel)
    parts = [_grid(panel, y), _step_axis(first, last, x)]
    if panel.limit is not None and panel.low <= panel.limit <= panel.high:
        at = _f(y(panel.limit))
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
    for index, series in enumerate(panel.series):
        parts.append(_line(series.steps, series.values, x, y, f"raw s{index % 7}"))
    for index, series in enumerate(panel.series):
        parts.append(_line(series.smooth_steps, series.smooth, x, y, f"smooth s{index % 7}"))
    parts.append('<g class="cursor"></g>')
    label = escape(describe(panel))
    data = escape(json.dumps(_readout(panel, x, y), separators=(",", ":"), ensure_ascii=False))
    return Markup(
        f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" '
        f'data-curve="{data}">{"".join(parts)}</svg>'
    )


def describe(panel: Panel) -> str:
    """The panel in one sentence: where each line starts and ends."""
    courses = "; ".join(
        f"{s.label} from {with_unit(panel.name, s.first)} to {with_unit(panel.name, s.last)}"
        for s in panel.series
    )
    return f"{panel.title}: {courses}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5, 5 times a power of ten) inside [low, high], about `count`."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw * 0.999), 10 * power)
    start = math.ceil(low / step - 1e-9)
    values = [round(i * step, 12) for i in range(start, start + 3 * count)]
    return [v for v in values if v <= high + step * 1e-6]


def dot_track(row: Row, names: Sequence[str]) -> Markup:
    """One policy's line of the dot plot, 0 to 100 % over its whole width, in any width.

    `names` are one or two share metrics; a dot's bar is one standard error to each side.
    """
    marks = [f'<line class="grid" x1="{t}%" x2="{t}%" y1="0" y2="100%"/>' for t in (0, 25, 50, 75)]
    marks.append('<line class="grid" x1="100%" x2="100%" y1="0" y2="100%"/>')
    marks.append('<line class="track" x1="0" x2="100%" y1="50%" y2="50%"/>')
    marks += [_dot(row, name, index) for index, name in reversed(list(enumerate(names)))]
    said = ", ".join(
        f"{term(n).label} {with_unit(n, row.metrics[n].mean)}" for n in names if n in row.metrics
    )
    label = escape(f"{row.stage.name}: {said}")
    return Markup(f'<svg class="dots" role="img" aria-label="{label}">{"".join(marks)}</svg>')


def _dot(row: Row, name: str, index: int) -> str:
    metric = row.metrics.get(name)
    if metric is None:
        return ""
    middle, error = metric.mean, metric.stderr or 0.0
    low, high = 100 * max(0.0, middle - error), 100 * min(1.0, middle + error)
    title = f"{term(name).label} {show(name, middle)} ± {show(name, error)} %"
    return (
        f'<g class="dot d{index}"><title>{escape(title)}</title>'
        f'<line x1="{_f(low)}%" x2="{_f(high)}%" y1="50%" y2="50%"/>'
        f'<circle cx="{_f(100 * middle)}%" cy="50%" r="{6 - index}"/></g>'
    )


def _y_scale(panel: Panel) -> Scale:
    if not panel.log:
        return _linear(panel.low, panel.high, HEIGHT - BOTTOM, TOP)
    scale = _linear(math.log10(panel.low), math.log10(panel.high), HEIGHT - BOTTOM, TOP)
    return lambda value: scale(math.log10(max(value, panel.low)))


def _grid(panel: Panel, y: Scale) -> str:
    if panel.log:
        powers = range(math.ceil(math.log10(panel.low)), math.floor(math.log10(panel.high)) + 1)
        values = [10.0**p for p in powers] or [panel.low, panel.high]
    else:
        values = ticks(panel.low, panel.high)
    share = term(panel.name).share
    lines = []
    for value in values:
        at = y(value)
        text = f"{100 * value:.4g}" if share else plain(value)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_f(at)}" y2="{_f(at)}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{_f(at + 3.5)}" text-anchor="end">{text}</text>'
        )
    return "".join(lines)


def _step_axis(first: float, last: float, x: Scale) -> str:
    values = [first, last] if last > first else [first]
    anchors = ("start", "end") if last > first else ("middle",)
    texts = [
        f'<text class="tick" x="{_f(x(v))}" y="{HEIGHT - 6}" text-anchor="{a}">'
        f"{'step ' if i == 0 else ''}{v:.0f}</text>"
        for i, (v, a) in enumerate(zip(values, anchors, strict=True))
    ]
    return "".join(texts)


def _line(steps: Sequence[float], values: Sequence[float], x: Scale, y: Scale, css: str) -> str:
    points = " ".join(f"{_f(x(s))},{_f(y(v))}" for s, v in zip(steps, values, strict=True))
    if len(steps) == 1:
        at = points.split(",")
        return f'<circle class="{css} point" cx="{at[0]}" cy="{at[1]}" r="3"/>'
    return f'<polyline class="{css}" points="{points}"/>'


def _readout(panel: Panel, x: Scale, y: Scale) -> list[dict]:
    """What the script shows at the pointer: position, step and smoothed value of each point."""
    return [_points(panel, series, x, y) for series in panel.series]


def _points(panel: Panel, series: Series, x: Scale, y: Scale) -> dict:
    pairs = list(zip(series.smooth_steps, series.smooth, strict=True))
    return {
        "label": series.label,
        "unit": term(panel.name).unit,
        "x": [round(x(s)) for s, _ in pairs],
        "y": [round(y(v)) for _, v in pairs],
        "step": [round(s) for s, _ in pairs],
        "value": [show(panel.name, v) for _, v in pairs],
    }


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _f(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")

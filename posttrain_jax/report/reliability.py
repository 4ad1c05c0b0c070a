"""How far the reward models of a run can be trusted: reliability chart, accuracy by domain.

The figures are those of evals/calibration.py in the metrics of a stage: `reliability/<i>` is the
share that was right where the confidence lay in bin i, `confidence/<i>` the mean confidence there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from markupsafe import Markup, escape

from posttrain_jax.report.records import Metric, Run, Stage
from posttrain_jax.report.vocabulary import show, show_error, term, with_unit

WIDTH, HEIGHT = 280, 196
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 36
ACCURACIES = ("pair_accuracy", "label_accuracy", "step_accuracy")
SHOWN = (*ACCURACIES, "squared_error", "correlation")
KINDS = ("reward_model", "process_reward")


@dataclass(frozen=True)
class Trust:
    """What a stage measured of its model.

    Attributes:
      figures: name, value and what it means, as printed.
      domains: domain, accuracy and number of cases, as printed.
      chart: the reliability chart; empty where nothing was calibrated.
    """

    stage: Stage
    figures: tuple[tuple[str, str, str], ...]
    domains: tuple[tuple[str, str, str], ...]
    chart: Markup


def trusted(run: Run) -> list[Trust]:
    """The stages that measured how good their reward model or process model is."""
    measured = lambda stage: any(n.partition("/")[0] in SHOWN for n in stage.metrics)  # noqa: E731
    return [_trust(s) for s in run.stages if s.kind in KINDS and measured(s)]


def chart(points: list[tuple[Metric, Metric]], label: str) -> Markup:
    """Share that was right over confidence; the diagonal is a calibrated model.

    Args:
      points: confidence and share of each bin; a dot's area grows with the bin's cases, its bar is
        one standard error to each side.
      label: what the chart is of, for a screen reader.
    """
    # Pairs can be wrong more often than right, confidence starts at a half.
    low = min(0.5, *(share.mean for _, share in points))
    low = max(0.0, int(low * 4) / 4)
    x = lambda v: LEFT + (v - 0.5) / 0.5 * (WIDTH - RIGHT - LEFT)  # noqa: E731
    y = lambda v: HEIGHT - BOTTOM - (v - low) / (1 - low) * (HEIGHT - BOTTOM - TOP)  # noqa: E731
    parts = []
    for value in [v / 4 for v in range(round(4 * low), 5)]:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/><text class="tick" x="{LEFT - 6}" y="{y(value) + 3.5:.1f}" '
            f'text-anchor="end">{100 * value:g}</text>'
        )
    for value, anchor in ((0.5, "start"), (0.75, "middle"), (1.0, "end")):
        parts.append(
            f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 15}" '
            f'text-anchor="{anchor}">{100 * value:g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{x(0.75):.1f}" y="{HEIGHT - 4}" text-anchor="middle">'
        "confidence, %</text>"
        f'<line class="limit" x1="{x(0.5):.1f}" y1="{y(0.5):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>'
    )
    most = max(share.n or 1 for _, share in points)
    for (a, b), (c, d) in itertools.pairwise(points):
        parts.append(
            f'<polyline class="smooth s0" points="{x(a.mean):.1f},{y(b.mean):.1f} '
            f'{x(c.mean):.1f},{y(d.mean):.1f}"/>'
        )
    for confidence, share in points:
        error, at = share.stderr or 0.0, x(confidence.mean)
        top, bottom = y(min(1.0, share.mean + error)), y(max(low, share.mean - error))
        said = (
            f"{100 * share.mean:.0f} % right at {100 * confidence.mean:.0f} % confidence, "
            f"{share.n or 0:,} cases"
        )
        parts.append(
            f'<g class="s0"><title>{said}</title>'
            f'<polyline class="raw s0" points="{at:.1f},{top:.1f} {at:.1f},{bottom:.1f}"/>'
            f'<circle class="smooth s0 point" cx="{at:.1f}" cy="{y(share.mean):.1f}" '
            f'r="{2 + 3 * ((share.n or 1) / most) ** 0.5:.1f}"/></g>'
        )
    return Markup(
        f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _trust(stage: Stage) -> Trust:
    metrics = stage.metrics
    bins = sorted(n.partition("/")[2] for n in metrics if n.startswith("reliability/"))
    points = [
        (metrics[f"confidence/{i}"], metrics[f"reliability/{i}"])
        for i in bins if f"confidence/{i}" in metrics
    ]  # fmt: skip
    points.sort(key=lambda point: point[0].mean)
    whole = [n for n in (*ACCURACIES, "first_error_f1", "calibration_error") if n in metrics]
    figures = [
        (term(n).label, f"{with_unit(n, metrics[n].mean)} {_error(n, metrics[n])}".strip(),
         term(n).meaning) for n in whole
    ]  # fmt: skip
    domains = [
        (domain if base in ACCURACIES else f"{base} of {domain}",
         f"{show(name, m.mean)} {_error(name, m)}".strip(), f"{m.n or 0:,}")
        for name, m in metrics.items()
        for base, slash, domain in [name.partition("/")] if slash and base in SHOWN
    ]  # fmt: skip
    label = f"{stage.name}: reliability, " + "; ".join(
        f"{100 * s.mean:.0f} % right at {100 * c.mean:.0f} %" for c, s in points
    )
    drawn = chart(points, label) if points else Markup("")
    return Trust(stage, tuple(figures), tuple(domains), drawn)


def _error(name: str, metric: Metric) -> str:
    """The standard error; empty for a figure that is no mean."""
    return show_error(name, metric) if (metric.n or 0) > 1 else ""

"""Test-time compute: accuracy over generated tokens, of each method and in each bin of difficulty.

The figures are those of a `compute_curves` stage; its metrics are named there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from posttrain_jax.report.fronts import Point, chart
from posttrain_jax.report.records import Metric, Run, Stage
from posttrain_jax.report.vocabulary import plain, show, show_error, spoken

KIND, OPTIMAL = "compute_curves", "compute_optimal"
AXES = ("tokens", "accuracy")
Curve = tuple[str, tuple[Point, ...]]


@dataclass(frozen=True)
class Bin:
    """Problems of like difficulty.

    Attributes:
      name: as printed.
      about: number of problems and their pass rate, as printed.
      chosen: what was chosen at each budget; both, where the two folds differ.
    """

    name: str
    about: str
    chosen: tuple[str, ...]
    chart: Markup


@dataclass(frozen=True)
class Compute:
    """What a stage compared.

    Attributes:
      names: of the methods and the choice by bins, as the lines are coloured.
      budgets: as printed, with what the choice by bins comes to.
    """

    stage: Stage
    names: tuple[str, ...]
    chart: Markup
    budgets: tuple[tuple[str, str], ...]
    bins: tuple[Bin, ...]


def compute_curves(run: Run) -> list[Compute]:
    """The finished stages of the kind."""
    return [_compute(s) for s in run.stages if s.kind == KIND and _options(s.metrics)]


def _compute(stage: Stage) -> Compute:
    metrics = stage.metrics
    curves = _curves(metrics, "accuracy")
    said = "; ".join(
        f"{spoken(name)} from {_figure(points[0].second)} at {plain(points[0].first.mean)} to "
        f"{_figure(points[-1].second)} at {plain(points[-1].first.mean)} tokens"
        for name, points in curves
    )
    budgets = [o.partition("/")[2] for o in _options(metrics) if o.startswith(f"{OPTIMAL}/")]
    numbers = sorted(int(n.partition("/")[2]) for n in metrics if n.startswith("difficulty/"))
    drawn = chart(AXES, curves, f"{stage.name}: {said}", doubling=True)
    return Compute(
        stage, tuple(name for name, _ in curves), drawn,
        tuple((b, _figure(metrics[f"accuracy/{OPTIMAL}/{b}"])) for b in budgets),
        tuple(_bin(stage, number, numbers, budgets) for number in numbers),
    )  # fmt: skip


def _bin(stage: Stage, number: int, numbers: list[int], budgets: list[str]) -> Bin:
    rate = stage.metrics[f"difficulty/{number}"]
    ends = {numbers[0]: " (easiest)", numbers[-1]: " (hardest)"} if len(numbers) > 1 else {}
    name = f"bin {number}{ends.get(number, '')}"
    label = f"{stage.name}, {name}: accuracy over tokens by method"
    drawn = chart(AXES, _curves(stage.metrics, f"bin{number}"), label, doubling=True)
    about = f"{rate.n or 0:,} problems, pass rate {_figure(rate)}"
    chosen = tuple(_chosen(stage.metrics, f"chosen{number}/{budget}/") for budget in budgets)
    return Bin(name, about, chosen, drawn)


def _curves(metrics: Mapping[str, Metric], what: str) -> list[Curve]:
    """The points of each method in the order of their tokens; `what` is the prefix of the second
    axis. The tokens are those over all problems: a bin's are what an option costs in general."""
    found: dict[str, list[Point]] = {}
    for option in _options(metrics):
        method, _, label = option.partition("/")
        if f"{what}/{option}" in metrics:
            tokens, accuracy = metrics[f"tokens/{option}"], metrics[f"{what}/{option}"]
            found.setdefault(method, []).append(Point(label, tokens, accuracy, True))
    return [
        (name, tuple(points))
        for name, points in sorted(found.items(), key=lambda item: item[0] == OPTIMAL)
    ]


def _options(metrics: Mapping[str, Metric]) -> list[str]:
    """`<method>/<label>` of every figure that has both axes, in the order of their tokens."""
    options = [n.removeprefix("tokens/") for n in metrics if n.startswith("tokens/")]
    options = [option for option in options if f"accuracy/{option}" in metrics]
    return sorted(options, key=lambda option: metrics[f"tokens/{option}"].mean)


def _chosen(metrics: Mapping[str, Metric], prefix: str) -> str:
    names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    return " or ".join(spoken(name.replace("/", " ")) for name in names)


def _figure(metric: Metric) -> str:
    return f"{show('accuracy', metric.mean)} {show_error('accuracy', metric)} %".replace("  ", " ")

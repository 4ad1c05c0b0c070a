"""Every evaluation by domain: how often it is right, by number of samples and way to choose.

A table of each stage whose accuracies have intervals: lines are its domains (task or source),
columns its accuracies. They are those of evals/bootstrap.py: `<name>` and `<name>/<domain>`.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain_jax.report.records import Metric, Run, Stage
from posttrain_jax.report.vocabulary import Term, show, show_error, spoken, term

KINDS = ("evaluate", "rerank")
WHOLE = "all"


@dataclass(frozen=True)
class Domains:
    """The accuracies of a stage by domain.

    Attributes:
      columns: the metrics over all problems, in the stage's order.
      lines: a domain, its number of problems and its metrics, the first that of all problems.
    """

    stage: Stage
    columns: tuple[str, ...]
    lines: tuple[tuple[str, int, tuple[Metric | None, ...]], ...]


def by_domain(run: Run) -> list[Domains]:
    """The tables of the stages that have accuracies by domain."""
    return [made for stage in run.stages if (made := table_of(stage))]


def table_of(stage: Stage) -> Domains | None:
    """The table of a stage; None where its accuracies have no intervals."""
    if stage.kind not in KINDS or "pass@1" not in stage.metrics:
        return None
    if stage.metrics["pass@1"].low is None:
        return None
    names = [n.removeprefix("pass@1/") for n in stage.metrics if n.startswith("pass@1/")]
    columns = tuple(
        name for name, metric in stage.metrics.items()
        if metric.low is not None and not any(name.endswith(f"/{domain}") for domain in names)
    )  # fmt: skip
    found = stage.metrics
    lines = tuple(
        (name, found[f"pass@1{end}"].n or 0, tuple(found.get(column + end) for column in columns))
        for name, end in [(WHOLE, ""), *((name, f"/{name}") for name in names)]
    )
    return Domains(stage, columns, lines)


def heading(column: str) -> Term:
    """How a column is headed; of `best@8/outcome`, also by the scorer's name."""
    base, _, scorer = column.partition("/")
    entry = term(base)
    return entry._replace(label=f"{entry.label} {spoken(scorer)}") if scorer else entry


def interval(name: str, metric: Metric) -> str:
    """The 95 % interval as `[14.2, 19.9]` in the metric's unit; empty where there is none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"[{show(name, metric.low)}, {show(name, metric.high)}]"


def cell(name: str, metric: Metric | None) -> str:
    """A figure with error and interval, in text."""
    if metric is None:
        return "–"
    parts = show(name, metric.mean), show_error(name, metric), interval(name, metric)
    return " ".join(filter(None, parts))

"""The table of the report: every metric of every policy, base -> each stage -> distilled.

A row is a policy (a stage that leaves a model), in pipeline order. Its numbers come from the
`evaluate` stages whose `policy` input it is; a policy nobody evaluated keeps its row, empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain_jax.report.counters import is_counter
from posttrain_jax.report.records import Metric, Run, Stage
from posttrain_jax.report.vocabulary import column_order, show, term

POLICY_KINDS = ("pretrain", "pretrained", "sft", "preference", "kto", "rl", "distill", "merge")
SIDE_ROLES = (
    "teacher", "data", "reference", "heldout_reference", "reward", "reward_model", "prompts",
    "pairs",
)  # fmt: skip
KEY_METRICS = (
    "pass@1",
    "greedy",
    "accuracy",
    "pair_accuracy",
    "step_accuracy",
    "beam_best",
    "kept",
    "examples",
    "samples",
    "reward",
    "loss",
)


@dataclass(frozen=True)
class Row:
    """One policy: its stage, the root it was trained from, and its evaluated metrics."""

    stage: Stage
    root: str
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class Table:
    """Rows of policies over columns of metric names; a row may lack a column.

    `title` is the metric of a table by task; `by` says what its columns are.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    by: str = ""


def is_folded(stage: Stage) -> bool:
    """True for an `evaluate` stage: it is shown with the policy it evaluated."""
    return stage.kind == "evaluate" and stage.input("policy") is not None


def policy_rows(run: Run) -> tuple[Row, ...]:
    """The policies of a run in pipeline order, with what their evaluations measured."""
    evaluated = _evaluations(run)
    outside = [Stage(n, "outside", status="done") for n in evaluated if run.stage(n) is None]
    return tuple(
        Row(stage, root_of(run, stage), evaluated.get(stage.name, {}))
        for stage in (*outside, *run.stages)
        if stage.kind in POLICY_KINDS or stage.name in evaluated
    )


def policy_table(run: Run) -> Table:
    """Every metric of every policy, without the per-task figures.

    Of figures at several numbers of samples, only those at 1 and at the most.
    """
    rows = policy_rows(run)
    found = {name for row in rows for name in set(row.metrics) - between(row.metrics)}
    names = {name for name in found if "/" not in name and not is_counter(name)}
    return Table("All tasks", tuple(sorted(names, key=column_order)), rows)


def task_tables(run: Run) -> list[Table]:
    """One table a metric that was measured by task (`pass@1/arithmetic`), tasks as columns."""
    rows = policy_rows(run)
    names = {name for row in rows for name in row.metrics if "/" in name}
    bases = sorted({name.partition("/")[0] for name in names}, key=column_order)
    bases = [name for name in bases if name == "pass@1" or "@" not in name]  # see domains.py
    tables = []
    for base in bases:
        columns = tuple(sorted(n for n in names if n.partition("/")[0] == base))
        languages = {c.partition("/")[2] for c in columns} <= {"en", "zh"}
        tables.append(Table(base, columns, rows, "language" if languages else "task"))
    return tables


def between(names: Iterable[str]) -> set[str]:
    """Of figures at several numbers of samples, such as maj@2 and maj@8, those not at the most."""
    most: dict[tuple[str, str], int] = {}
    numbered = [match for name in names if (match := re.fullmatch(r"(\w+)@(\d+)(.*)", name))]
    for match in numbered:
        key = match[1], match[3]
        most[key] = max(int(match[2]), most.get(key, 0))
    return {m[0] for m in numbered if 1 < int(m[2]) < most[m[1], m[3]]}


def root_of(run: Run, stage: Stage) -> str:
    """The policy that training started from: the weights' input followed to its beginning."""
    seen = {stage.name}
    evaluated = _evaluations(run)
    while True:
        parents = (run.stage(i.stage) for i in stage.inputs if i.role not in SIDE_ROLES)
        policies = (p for p in parents if p and (p.kind in POLICY_KINDS or p.name in evaluated))
        parent = next(policies, None)
        if parent is None or parent.name in seen:
            return stage.name
        seen.add(parent.name)
        stage = parent


def gain(run: Run, row: Row, name: str) -> float | None:
    """How far `row` is above its root in metric `name`; None for roots and missing figures."""
    if row.root == row.stage.name or name not in row.metrics:
        return None
    root = next((r for r in policy_rows(run) if r.stage.name == row.root), None)
    if root is None or name not in root.metrics:
        return None
    return row.metrics[name].mean - root.metrics[name].mean


def all_metrics(run: Run) -> dict[str, dict[str, Metric]]:
    """By stage: its own metrics, and for a policy those of its evaluations, which win a name."""
    evaluated = _evaluations(run)
    return {s.name: {**s.metrics, **evaluated.get(s.name, {})} for s in run.stages}


def key_metric(run: Run, stage: Stage) -> tuple[str, Metric] | None:
    """The one number to show beside a stage: how good it is, else its last logged value."""
    metrics = all_metrics(run)[stage.name]
    if stage.kind == "export":
        return None
    for name in KEY_METRICS:
        if name in metrics:
            return name, metrics[name]
    last = stage.steps[-1] if stage.steps else {}
    for name in KEY_METRICS:
        if name in last:
            return name, Metric(last[name])
    return next(iter(metrics.items()), None)


def main_metric(table: Table) -> str | None:
    """The column that the headline is about: pass@1 where measured, else the first share."""
    if "pass@1" in table.columns:
        return "pass@1"
    return next((c for c in table.columns if term(c).share), next(iter(table.columns), None))


def headline(run: Run) -> str:
    """One sentence: from which base to which policy the main metric went."""
    table = policy_table(run)
    name = main_metric(table)
    rows = [r for r in table.rows if name in r.metrics]
    if name is None or not rows:
        return "No policy of this run has been evaluated yet."
    if len(rows) == 1:
        only = rows[0]
        return (
            f"{term(name).label} is {_value(name, only)} for {only.stage.name}, "
            "the only policy evaluated so far."
        )
    best = max(rows, key=lambda r: r.metrics[name].mean)
    start = next((r for r in rows if r.stage.name == best.root), rows[0])
    if best is start:
        return (
            f"{term(name).label} is highest at the start: {_value(name, best)} for "
            f"{best.stage.name}, of {len(rows)} evaluated policies."
        )
    return (
        f"{term(name).label} goes from {_value(name, start)} ({start.stage.name}) to "
        f"{_value(name, best)} ({best.stage.name}), the highest of {len(rows)} evaluated policies."
    )


def report_dict(run: Run) -> dict[str, Any]:
    """The contents of report.json: the same figures for programs."""
    metrics = all_metrics(run)
    return {
        "recipe": run.recipe,
        "preset": run.preset,
        "seed": run.seed,
        "seconds": run.seconds,
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "seconds": stage.seconds,
                "metrics": {name: _figures(m) for name, m in metrics[stage.name].items()},
            }
            for stage in run.stages
        ],
    }


def _figures(metric: Metric) -> dict[str, float | None]:
    figures: dict[str, float | None] = {"mean": metric.mean, "stderr": metric.stderr, "n": metric.n}
    interval = {} if metric.low is None else {"low": metric.low, "high": metric.high}
    return figures | interval


def _evaluations(run: Run) -> dict[str, dict[str, Metric]]:
    """Metrics by evaluated policy; a name measured twice keeps both, the second one qualified."""
    found: dict[str, dict[str, Metric]] = {}
    for stage in run.stages:
        policy = stage.input("policy")
        if stage.kind != "evaluate" or policy is None:
            continue
        metrics = found.setdefault(policy, {})
        for name, metric in stage.metrics.items():
            metrics[name if name not in metrics else f"{name} ({stage.name})"] = metric
    return found


def _value(name: str, row: Row) -> str:
    metric = row.metrics[name]
    error = "" if metric.stderr is None else f" ± {show(name, metric.stderr)}"
    return f"{show(name, metric.mean)}{error} {term(name).unit}".strip()

"""Renders report.md: the same tables as the page, for a terminal, a review or a README.

Model text stands in code fences longer than any run of backticks in it; in tables, the characters
that Markdown or HTML would read are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from posttrain_jax.report import counters, samples, timing
from posttrain_jax.report.compute import compute_curves
from posttrain_jax.report.curves import panels, trains
from posttrain_jax.report.domains import by_domain, cell, heading
from posttrain_jax.report.graph import pipeline
from posttrain_jax.report.records import Run, Sample, Stage
from posttrain_jax.report.tables import (
    Row,
    Table,
    headline,
    policy_table,
    task_tables,
)
from posttrain_jax.report.vocabulary import (
    duration,
    plain,
    show,
    show_error,
    spoken,
    term,
)

_BLOCKS = "▁▂▃▄▅▆▇█"
_KEPT = 3
"""Rollouts of each stage in report.md: the best, the middle one and the worst."""


def render_markdown(run: Run) -> str:
    """The whole report as Markdown."""
    parts = [
        *_heading(run),
        *_pipeline(run),
        *_results(run),
        *_curves(run),
        *_time(run),
        *_counters(run),
        *_rollouts(run),
        *_versions(run),
    ]
    return "\n".join(parts) + "\n"


def _heading(run: Run) -> list[str]:
    name = ":".join(filter(None, [run.recipe, run.preset]))
    done = sum(s.status == "done" for s in run.stages)
    facts = [
        f"seed {'not recorded' if run.seed is None else run.seed}",
        duration(run.seconds) if run.seconds is not None else "time not recorded",
        run.device or "device not recorded",
        f"{done} of {len(run.stages)} stages done",
    ]
    lines = [f"# {_safe(name)}", "", _safe(" · ".join(facts)), "", _safe(headline(run)), ""]
    for title, texts in (
        ("Worth knowing before reading the numbers", counters.warnings(run)),
        ("Missing or odd in the run folder", run.notices),
    ):
        if texts:
            lines += [f"**{title}**", "", *[f"- {_safe(t)}" for t in texts], ""]
    return lines


def _pipeline(run: Run) -> list[str]:
    boxes, edges = pipeline(run)
    if not boxes:
        return []
    number = {box.name: f"s{i}" for i, box in enumerate(boxes)}
    lines = ["## Pipeline", "", "```mermaid", "graph LR"]
    for box in boxes:
        text = "<br/>".join(filter(None, [_label(box.name), _label(box.figure), _label(box.time)]))
        lines.append(f'  {number[box.name]}["{text}"]')
    lines += [
        f"  {number[e.source]} -- {_label(e.role)} --> {number[e.target]}"
        for e in edges
        if e.source in number and e.target in number
    ]
    return [*lines, "```", ""]


def _results(run: Run) -> list[str]:
    table = policy_table(run)
    lines = ["## Results", ""]
    if not table.columns:
        return [*lines, "No evaluation has finished.", "", *_domains(run), *_compute(run)]
    lines += ["Mean ± standard error of every metric, by policy in pipeline order.", ""]
    lines += _metric_table(table)
    for tasks in task_tables(run):
        unit = term(tasks.title).unit
        lines += [
            f"### {_safe(term(tasks.title).label)} by {tasks.by}{f', {unit}' if unit else ''}",
            "",
        ]
        lines += _metric_table(tasks)
    return [*lines, *_domains(run), *_compute(run)]


def _domains(run: Run) -> list[str]:
    lines = []
    for table in by_domain(run):
        lines += [f"### {_safe(table.stage.name)} by domain, %", ""]
        rows = [
            [name, str(count), *map(cell, table.columns, metrics)]
            for name, count, metrics in table.lines
        ]
        heads = [heading(column).label for column in table.columns]
        lines += _grid(["domain", "problems", *heads], rows)
    return [*lines, "In brackets: 95 % bootstrap intervals over problems.", ""] if lines else []


def _compute(run: Run) -> list[str]:
    lines = []
    for item in compute_curves(run):
        lines += [f"### {_safe(item.stage.name)}: the choice by tokens a problem", ""]
        heads = ["tokens", *(f"{bin.name}: {bin.about}" for bin in item.bins), "accuracy"]
        rows = [
            [budget, *(bin.chosen[at] for bin in item.bins), figure]
            for at, (budget, figure) in enumerate(item.budgets)
        ]
        lines += _grid(heads, rows)
    return lines


def _metric_table(table: Table) -> list[str]:
    heads = [_head(c) for c in table.columns]
    rows = [
        [r.stage.name, *[_cell(r, c) for c in table.columns]]
        for r in table.rows
        if r.metrics or "/" not in table.columns[0]
    ]
    return _grid(["policy", *heads], rows)


def _head(name: str) -> str:
    entry = term(name)
    return f"{entry.label} ({entry.unit})" if entry.unit and "/" not in name else entry.label


def _cell(row: Row, name: str) -> str:
    metric = row.metrics.get(name)
    if metric is None:
        return "–"
    return f"{show(name, metric.mean)} {show_error(name, metric)}".strip()


def _curves(run: Run) -> list[str]:
    lines = []
    for stage in run.stages:
        rows = [
            [f"{p.title} {s.label}" if len(p.series) > 1 else p.title,
             show(p.name, s.first), show(p.name, s.last), term(p.name).unit, _spark(s.smooth)]
            for p in (panels(stage) if trains(stage) else [])
            for s in p.series
        ]  # fmt: skip
        if rows:
            lines += [f"### {_safe(stage.name)}: {len(stage.steps)} steps", ""]
            lines += _grid(["curve", "first", "last", "unit", "course (smoothed)"], rows)
    return ["## Curves", "", *lines] if lines else []


def _spark(values: Sequence[float], width: int = 24) -> str:
    """The course of a curve in one line of block characters, lowest to highest."""
    low, high = min(values), max(values)
    count = min(width, len(values))
    picked = [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((v - low) * scale)] for v in picked)


def _time(run: Run) -> list[str]:
    bars = timing.bars(run)
    if not bars:
        return []
    phases = timing.phases(bars)
    rows = []
    for bar in bars:
        parts = dict(bar.segments)
        cells = [duration(parts[p]) if p in parts else "" for p in phases]
        rate = "" if bar.rate is None else plain(bar.rate)
        rows.append([bar.name, duration(bar.seconds), *cells, rate])
    heads = ["stage", "total", *map(spoken, phases), "tokens / s (median)"]
    return ["## Time and throughput", "", *_grid(heads, rows)]


def _counters(run: Run) -> list[str]:
    rows = [[c.stage, c.label, c.overall, c.worst] for c in counters.counts(run)]
    if not rows:
        return []
    return ["## Counters", "", *_grid(["stage", "counter", "overall", "worst"], rows)]


def _rollouts(run: Run) -> list[str]:
    lines = []
    for stage in run.stages:
        for sample in samples.choose(stage, _KEPT):
            lines += _rollout(stage, sample)
    return ["## Rollouts", "", *lines] if lines else []


def _rollout(stage: Stage, sample: Sample) -> list[str]:
    parts = ", ".join(f"{name} {score:.4g}" for name, score in sample.rewards.items())
    reward = "no reward" if sample.reward is None else f"reward {sample.reward:.4g}"
    step = "" if sample.step is None else f", step {sample.step}"
    cut = ", cut off" if sample.finished is False else ""
    title = f"**{_safe(stage.name)}**{step}: {reward}{f' ({_safe(parts)})' if parts else ''}{cut}"
    return [title, "", *_fence(f"{sample.prompt}\n---\n{sample.response}"), ""]


def _fence(text: str) -> list[str]:
    text = samples.visible(text[: samples.LONGEST])
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return [f"{marks}text", text, marks]


def _versions(run: Run) -> list[str]:
    lines = []
    if run.versions:
        lines += ["## Versions", "", *_grid(["package", "version"], run.versions.items())]
    rows = [
        [
            s.name, s.kind, s.status + (", reused" if s.reused else ""), duration(s.seconds),
            s.id[:12] or "–", ", ".join(f"{i.role}: {i.stage}" for i in s.inputs) or "–",
        ]
        for s in run.stages
    ]  # fmt: skip
    if rows:
        heads = ["stage", "kind", "state", "time", "artifact", "made from"]
        lines += ["## Stages and lineage", "", *_grid(heads, rows)]
    return lines


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table: the first column to the left, figures as they are."""
    lines = [heads, ["---"] * len(heads), *rows]
    written = [
        "| " + " | ".join(cell if i == 1 else _safe(cell) for cell in line) + " |"
        for i, line in enumerate(lines)
    ]
    return [*written, ""]


def _safe(text: str) -> str:
    """Text from the run folder, with what Markdown or HTML would read made harmless."""
    text = samples.visible(" ".join(str(text).split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _label(text: str) -> str:
    return re.sub(r"[^\w .,%±/:+-]", " ", text)

"""Renders report.html: one file, no external resource, readable without scripts.

The template is page.html with the style sheets and script.html beside it, filled by jinja2 with
autoescape on. A content security policy in the page forbids every request and every script but our
own, named by its hash, so that even an escaping mistake could not run text that a model wrote.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from posttrain_jax.report import counters, samples, timing
from posttrain_jax.report.charts import describe, dot_track, panel_svg
from posttrain_jax.report.compute import compute_curves
from posttrain_jax.report.curves import constants, panels, trains
from posttrain_jax.report.domains import Domains, by_domain, heading, interval
from posttrain_jax.report.fronts import fronts
from posttrain_jax.report.graph import pipeline_svg
from posttrain_jax.report.records import Metric, Run, Stage
from posttrain_jax.report.reliability import trusted
from posttrain_jax.report.tables import (
    Row,
    Table,
    gain,
    headline,
    is_folded,
    main_metric,
    policy_table,
    task_tables,
)
from posttrain_jax.report.vocabulary import (
    Term,
    duration,
    plain,
    show,
    show_error,
    spoken,
    term,
    with_unit,
)

_FOLDER = Path(__file__).parent
_STYLES = ("theme.css", "style.css")


@dataclass(frozen=True)
class Cell:
    """One figure of the table; `fill` in [0, 1] is the length of its bar, None for no bar."""

    text: str
    error: str = ""
    hint: str = ""
    fill: float | None = None
    interval: str = ""


@dataclass(frozen=True)
class Line:
    """One row of a table as printed."""

    name: str
    kind: str
    state: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Grid:
    """A table as printed: column heads and lines."""

    title: str
    heads: tuple[Term, ...]
    lines: tuple[Line, ...]


def render_page(run: Run) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration, "plain": plain, "spoken": spoken, "shown": _shown,
    }  # fmt: skip
    script = (_FOLDER / "script.html").read_text("utf-8")
    body = script.partition("<script>")[2].rpartition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        style=Markup("".join((_FOLDER / f).read_text("utf-8") for f in _STYLES)),
        script=Markup(script),
        script_hash=digest,
        **_context(run),
    )


def _context(run: Run) -> dict[str, Any]:
    table = policy_table(run)
    bars = timing.bars(run)
    longest = max((max(b.seconds, sum(s for _, s in b.segments)) for b in bars), default=0.0)
    return {
        "run": run,
        "title": " : ".join(filter(None, [run.recipe.removesuffix(".py"), run.preset])),
        "headline": headline(run),
        "progress": _progress(run),
        "facts": _facts(run),
        "warnings": counters.warnings(run),
        "pipeline": pipeline_svg(run),
        "folded": sum(is_folded(s) for s in run.stages),
        "dots": _dots(run, table),
        "grid": _grid(table),
        "task_grids": [_grid(t) for t in task_tables(run)],
        "domains": [(d.stage, _domain_grid(d)) for d in by_domain(run)],
        "trust": trusted(run),
        "fronts": fronts(run),
        "compute": compute_curves(run),
        "curves": [_curves(s) for s in run.stages if trains(s)],
        "rollouts": [r for s in run.stages if s.samples for r in [_rollouts(s)]],
        "bars": bars,
        "longest": longest or 1.0,
        "phases": timing.phases(bars),
        "phase_class": _phase_class,
        "counts": _counts(run),
        "config": _config(run.config),
        "figures": {s.name: _figures(s) for s in run.stages},
    }


def _progress(run: Run) -> str:
    """A sentence on how far an unfinished run is; empty for a finished one."""
    done = sum(s.status == "done" for s in run.stages)
    if done == len(run.stages):
        return ""
    running = [s for s in run.stages if s.status == "running"]
    at = "".join(
        f" {s.name} is running" + (f" (step {s.steps[-1]['step']:.0f})." if s.steps else ".")
        for s in running
    )
    return f"This run is unfinished: {done} of {len(run.stages)} stages are done.{at}"


def _facts(run: Run) -> list[tuple[str, str]]:
    done = sum(s.status == "done" for s in run.stages)
    facts = [
        ("preset", run.preset or "not recorded"),
        ("seed", "not recorded" if run.seed is None else str(run.seed)),
        ("total time", duration(run.seconds)),
        ("stages", f"{done} of {len(run.stages)} done"),
        ("device", run.device or "not recorded"),
    ]
    return [*facts, ("folder", run.folder)]


def _dots(run: Run, table: Table) -> dict[str, Any] | None:
    """The dot plot of the main share metric (with the greedy one beside it), if there is one."""
    name = main_metric(table)
    if name is None or not term(name).share:
        return None
    rows = [r for r in table.rows if name in r.metrics]
    names = [name, "greedy"] if name == "pass@1" and "greedy" in table.columns else [name]
    lines = [(r.stage.name, dot_track(r, names), *_note(run, r, name)) for r in rows]
    return {"lines": lines, "labels": [term(n).label for n in names]}


def _note(run: Run, row: Row, name: str) -> tuple[str, str]:
    """A row's figure with its error, and its gain over the root in points."""
    metric = row.metrics[name]
    above = gain(run, row, name)
    points = "" if above is None else f"{100 * above:+.1f}".replace("-", "−")
    return f"{show(name, metric.mean)} {show_error(name, metric)} %".replace("  ", " "), points


def _shown(name: str, metric: Metric) -> str:
    """A metric with its unit and error."""
    return f"{with_unit(name, metric.mean)} {show_error(name, metric)}".strip()


def _grid(table: Table) -> Grid:
    by_task = all("/" in c for c in table.columns)
    rows = [r for r in table.rows if not by_task or set(table.columns) & set(r.metrics)]
    title = f"{term(table.title).label} by {table.by}" if by_task else table.title
    lines = tuple(
        Line(
            r.stage.name,
            r.stage.kind,
            _state(r),
            tuple(_cell(r, c) for c in table.columns),
        )
        for r in rows
    )
    return Grid(title, tuple(term(c) for c in table.columns), lines)


def _domain_grid(table: Domains) -> Grid:
    """An evaluation by domain, with intervals in place of bars."""
    lines = tuple(
        Line(name, f"n = {count:,}", "", tuple(
            Cell("–") if m is None else replace(
                _cell(Row(table.stage, "", {column: m}), column),
                fill=None, interval=interval(column, m),
            )
            for column, m in zip(table.columns, metrics, strict=True)
        ))
        for name, count, metrics in table.lines
    )  # fmt: skip
    return Grid(table.stage.name, tuple(heading(c) for c in table.columns), lines)


def _state(row: Row) -> str:
    if row.metrics:
        return ""
    return "not evaluated" if row.stage.status == "done" else row.stage.status


def _cell(row: Row, name: str) -> Cell:
    metric = row.metrics.get(name)
    if metric is None:
        return Cell("–")
    n = "" if metric.n is None else f"n = {metric.n:,}"
    fill = min(1.0, max(0.0, metric.mean)) if term(name).share else None
    return Cell(show(name, metric.mean), show_error(name, metric), n, fill)


def _curves(stage: Stage) -> dict[str, Any]:
    made = panels(stage)
    drawn = [
        {
            "panel": p,
            "meaning": term(p.name).meaning if len(p.series) == 1 else "mean score of each term",
            "unit": term(p.name).unit,
            "svg": panel_svg(p),
            "course": _course(p.name, p.series[0].first, p.series[0].last),
            "text": describe(p),
        }
        for p in made
    ]
    spans = {p.span for p in made if p.span > 1}
    still = [f"{term(n).label} {with_unit(n, v)}" for n, v in constants(stage)]
    return {"stage": stage, "panels": drawn, "span": max(spans, default=1), "still": still}


def _course(name: str, first: float, last: float) -> str:
    return f"{show(name, first)} → {show(name, last)}"


def _rollouts(stage: Stage) -> dict[str, Any]:
    chosen = samples.choose(stage)
    low, high = samples.reward_range(list(stage.samples))
    shown = [samples.prepare(s, low, high) for s in chosen]
    return {"stage": stage, "shown": shown, "of": len(stage.samples)}


def _figures(stage: Stage) -> str:
    """The stage's own metrics in one line, for the stage table."""
    if is_folded(stage):
        return "in Results"
    return " · ".join(
        f"{term(name).label} {show(name, m.mean)}{' ' + term(name).unit if term(name).unit else ''}"
        for name, m in stage.metrics.items()
        if "/" not in name
    )


def _phase_class(phase: str) -> str:
    if phase == timing.REST:
        return "p-rest"
    known = timing.PHASES
    return f"p{known.index(phase)}" if phase in known else f"p{len(known) + len(phase) % 2}"


def _counts(run: Run) -> list[tuple[str, list[counters.Count], list[str]]]:
    """By stage: the counters that need a row of their own, and the labels of those at zero."""
    found = counters.counts(run)
    groups = []
    for name in dict.fromkeys(c.stage for c in found):
        here = [c for c in found if c.stage == name]
        zero = [c.label for c in here if c.level == "none"]
        groups.append((name, [c for c in here if c.level != "none"], zero))
    return groups


def _config(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The config as (section, [(key, value)]): the top level first, then one section a stage."""
    nested = {k: v for k, v in config.items() if isinstance(v, Mapping) and k != "stages"}
    stages = config.get("stages")
    if isinstance(stages, Mapping):
        nested |= {f"stages.{k}": v for k, v in stages.items()}
    elif stages is not None:
        nested["stages"] = stages
    top = [(k, _value(v)) for k, v in config.items() if not isinstance(v, Mapping)]
    sections = [(name, _flat(value, "")) for name, value in nested.items()]
    return [("recipe", top), *sections] if top else sections


def _flat(value: Any, prefix: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value and prefix.count(".") < 12:
        dotted = f"{prefix}." if prefix else ""
        return [pair for k, v in value.items() for pair in _flat(v, f"{dotted}{k}")]
    return [(prefix or "value", _value(value))]


def _value(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(v, list | Mapping) for v in value):
        return ", ".join(map(str, value)) or "[]"
    return str(value)

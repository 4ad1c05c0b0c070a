"""An evaluation as it is printed to a terminal: its accuracies by domain, then the rest."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from posttrain_jax.report.domains import Domains, heading, interval, table_of
from posttrain_jax.report.records import Metric, Stage
from posttrain_jax.report.tables import between
from posttrain_jax.report.vocabulary import show, show_error, term

WIDTH = 160
"""Where the output is no terminal."""


def print_evaluation(stage: Stage) -> None:
    """Print a finished stage; of figures at several numbers of samples those at 1 and the most."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    table = table_of(stage)
    if table:
        console.print(_grid(table))
    said = table.columns if table else ()
    rest = {n: m for n, m in stage.metrics.items() if "/" not in n and n not in said}
    words = [
        f"{term(n).label} {show(n, m.mean)} {show_error(n, m) if m.stderr else ''} {term(n).unit}"
        for n, m in rest.items()
    ]
    console.print(", ".join(" ".join(word.split()) for word in words), highlight=False)


def _grid(table: Domains) -> Table:
    skipped = between(table.columns)
    kept = [(i, name) for i, name in enumerate(table.columns) if name not in skipped]
    grid = Table("domain", "problems", caption="%, ± standard error, [95 % interval]")
    for _, name in kept:
        grid.add_column(heading(name).label, justify="right")
    for domain, count, metrics in table.lines:
        grid.add_row(domain, f"{count:,}", *(_cell(name, metrics[i]) for i, name in kept))
    return grid


def _cell(name: str, metric: Metric | None) -> str:
    if metric is None:
        return "–"
    brackets = interval(name, metric).replace("[", "\\[")  # not rich's markup
    return f"{show(name, metric.mean)} {show_error(name, metric)}\n{brackets}"

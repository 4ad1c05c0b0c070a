"""Where the time of a run went: seconds by phase for every stage, and its throughput."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from posttrain_jax.report.records import Run, Stage
from posttrain_jax.report.tables import is_folded

PHASES = ("compile", "sample", "verify", "update", "eval", "data", "save")
REST = "other"


@dataclass(frozen=True)
class Bar:
    """One stage's time. `segments` are (phase, seconds), in one order for all stages.

    Attributes:
      rate: median tokens a second over the steps, the first (it compiles) left out; or None.
    """

    name: str
    seconds: float
    segments: tuple[tuple[str, float], ...]
    rate: float | None
    note: str


def bars(run: Run) -> list[Bar]:
    """A bar for every stage that took time; evaluations come last, as one bar together."""
    made = [_bar(s) for s in run.stages if s.seconds and not is_folded(s)]
    folded = [s for s in run.stages if s.seconds and is_folded(s)]
    if folded:
        phases: dict[str, float] = {}
        for stage in folded:
            for phase, seconds in _segments(stage):
                phases[phase] = phases.get(phase, 0.0) + seconds
        total = sum(s.seconds or 0.0 for s in folded)
        label = f"{len(folded)} evaluation{'s' if len(folded) > 1 else ''}"
        made.append(Bar(label, total, tuple(sorted(phases.items(), key=_rank)), None, ""))
    return made


def phases(made: list[Bar]) -> list[str]:
    """The phases that appear, in the order they are drawn."""
    return [p for p, _ in sorted({(p, 0.0) for bar in made for p, _ in bar.segments}, key=_rank)]


def _bar(stage: Stage) -> Bar:
    rates = [row["tokens_per_second"] for row in stage.steps if "tokens_per_second" in row]
    rate = median(rates[1:] or rates) if rates else None
    note = "reused" if stage.reused else ""
    return Bar(stage.name, stage.seconds or 0.0, tuple(_segments(stage)), rate, note)


def _segments(stage: Stage) -> list[tuple[str, float]]:
    """Phases in drawing order; what they leave of the stage's seconds is `other`."""
    total = stage.seconds or 0.0
    known = sorted(stage.phases.items(), key=_rank)
    rest = total - sum(seconds for _, seconds in known)
    return [*known, (REST, rest)] if rest > 0.01 * total else known


def _rank(segment: tuple[str, float]) -> tuple[int, str]:
    name = segment[0]
    if name == REST:
        return len(PHASES) + 1, name
    return PHASES.index(name) if name in PHASES else len(PHASES), name

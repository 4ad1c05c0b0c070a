"""A run folder as plain dataclasses: what reader.py fills and every page of the report prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A mean with its standard error over `n` items; None where the stage gave none.

    `low` and `high` are the ends of its 95 % interval.
    """

    mean: float
    stderr: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Input:
    """One arrow of the pipeline: the stage that fills `role`, and the artifact it came from."""

    role: str
    stage: str
    id: str = ""


@dataclass(frozen=True)
class Sample:
    """One rollout kept for reading, with the unweighted score of every reward term."""

    step: int | None
    prompt: str
    response: str
    reward: float | None
    rewards: Mapping[str, float] = field(default_factory=dict)
    example_id: str = ""
    finished: bool | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of a run. `steps` holds the finite scalars of metrics.jsonl, sorted by step."""

    name: str
    kind: str = "unknown"
    id: str = ""
    status: str = "pending"
    seconds: float | None = None
    reused: bool = False
    inputs: tuple[Input, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[Mapping[str, float], ...] = ()
    samples: tuple[Sample, ...] = ()
    code: str = ""
    tokenizer_hash: str = ""
    template_hash: str = ""

    def input(self, role: str) -> str | None:
        """The stage that fills `role`, or None."""
        return next((i.stage for i in self.inputs if i.role == role), None)


@dataclass(frozen=True)
class Run:
    """A run folder as read; `notices` says in sentences what was missing or odd."""

    folder: str
    recipe: str = "unknown recipe"
    preset: str = ""
    seed: int | str | None = None
    seconds: float | None = None
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    notices: tuple[str, ...] = ()

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, or None."""
        return next((s for s in self.stages if s.name == name), None)

"""The Pareto front of evaluated policies: which trade-offs between two objectives are worth having.

Inputs are evaluations, by roles that name the policies; `objectives` names two of their metrics,
with a minus where less is better. `series` groups the roles, in the order in which the report
joins them: a sweep of reward weights, and weight averages between its ends (rewarded soups, Rame et
al. 2023, arXiv 2306.04488). `hypervolume` is the area above `origin` that is dominated, of each
series and of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain_jax import artifacts
from posttrain_jax.api import Artifact
from posttrain_jax.evals.front import hypervolume, non_dominated

DEFAULTS = {"objectives": ..., "origin": ..., "series": {}}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Compare the evaluations."""
    signs, names = signed(config.objectives)
    series = grouped(config.series, inputs)
    points = {role: [figure(inputs[role], n, role) for n in names] for role in inputs}
    ours = {role: signs * [p["mean"] for p in both] for role, both in points.items()}
    origin = signs * np.asarray(config.origin, np.float64)
    best = dict(zip(ours, non_dominated(np.array(list(ours.values()))), strict=True))
    area = lambda roles: hypervolume(np.array([ours[r] for r in roles]), origin)  # noqa: E731
    metrics: dict[str, Any] = {"policies": len(points), "on_front": sum(map(int, best.values()))}
    metrics["hypervolume"] = area(points)
    metrics |= {f"hypervolume/{name}": area(roles) for name, roles in series.items()}
    for role, (first, second) in points.items():
        metrics |= {f"first/{role}": first, f"second/{role}": second}
        metrics[f"on_front/{role}"] = float(best[role])
    return artifacts.finish(workdir, metrics=metrics)


def signed(objectives: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """+1 or -1 of each objective, and its metric.

    Raises:
      ValueError: not two objectives.
    """
    if len(objectives) != 2:
        raise ValueError(f"objectives={tuple(objectives)}: expected two metrics of an evaluation")
    signs = [-1.0 if name.startswith("-") else 1.0 for name in objectives]
    return np.array(signs), [name.removeprefix("-") for name in objectives]


def grouped(series: Mapping[str, Sequence[str]], roles: Mapping[str, Any]) -> dict[str, list[str]]:
    """The roles of each series; without `series`, all in one.

    Raises:
      ValueError: a role that is no input.
    """
    found = {name: list(members) for name, members in series.items()} or {"policies": list(roles)}
    for name, members in found.items():
        if unknown := sorted(set(members) - set(roles)):
            raise ValueError(f"series.{name} names {unknown}; the inputs are {sorted(roles)}")
    return found


def figure(artifact: Artifact, name: str, role: str) -> Mapping[str, float]:
    """A metric of an evaluation, with its error.

    Raises:
      ValueError: it has no such metric.
    """
    if name not in artifact.metrics:
        raise ValueError(
            f"objectives: {name!r} is no metric of the input {role!r} (stage {artifact.stage!r}), "
            f"which has {sorted(n for n in artifact.metrics if '/' not in n)}"
        )
    return artifact.metrics[name]

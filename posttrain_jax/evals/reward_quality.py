"""How good a reward model's scores of graded responses are: accuracy by domain, calibration; no
jax.

A domain is an example's `domain`, else its `task`, else its `kind`. The pairs of a group are not
independent, so accuracies are means over groups of the mean over a group's pairs; the calibration
takes all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from posttrain_jax.data.graded import Graded
from posttrain_jax.evals.calibration import calibration, sigmoid
from posttrain_jax.metrics import mean_stderr

Quality = Callable[[Sequence[Graded], Sequence[np.ndarray], Sequence[str]], dict[str, Any]]
"""`(groups, their outputs [responses, O], names of the O objectives) -> metrics`."""


def domain(example: Mapping[str, Any]) -> str:
    """What an example is about."""
    return str(next((example[k] for k in ("domain", "task", "kind") if example.get(k)), "other"))


def ranks(groups: Sequence[Graded], outputs: Sequence[np.ndarray], _: Sequence[str]):
    """`pair_accuracy`, of each domain too, and the calibration of sigmoid(s_better - s_worse).

    A tie is wrong. Groups whose grades are all alike have no pair and don't count.
    """
    gaps = []
    for group, scores in zip(groups, outputs, strict=True):
        grade, score = np.array(group.grades)[:, 0], np.asarray(scores, float)[:, 0]
        better, worse = np.nonzero(grade[:, None] > grade[None])
        gaps.append(score[better] - score[worse])
    kept = [(domain(g.example), gap) for g, gap in zip(groups, gaps, strict=True) if len(gap)]
    if not kept:
        return {}
    accuracy = [(name, float(np.mean(gap > 0))) for name, gap in kept]
    every = np.concatenate([gap for _, gap in kept])
    return {**_by_domain("pair_accuracy", accuracy),
            **calibration(sigmoid(np.abs(every)), every > 0)}  # fmt: skip


def binary(groups: Sequence[Graded], outputs: Sequence[np.ndarray], _: Sequence[str]):
    """`label_accuracy`, of each domain too, and the calibration of sigmoid(s); groups of one."""
    scores = np.array([float(o[0, 0]) for o in outputs])
    labels = np.array([g.grades[0][0] for g in groups]) > 0.5
    right = (scores > 0) == labels
    names = [domain(g.example) for g in groups]
    return {**_by_domain("label_accuracy", list(zip(names, map(float, right), strict=True))),
            **calibration(sigmoid(np.abs(scores)), right)}  # fmt: skip


def ratings(groups: Sequence[Graded], outputs: Sequence[np.ndarray], objectives: Sequence[str]):
    """`squared_error/<objective>`, and the `correlation/<objective>` of outputs and ratings."""
    said = np.concatenate([np.asarray(o, float) for o in outputs])
    rated = np.concatenate([np.array(g.grades) for g in groups])
    metrics: dict[str, Any] = {}
    for number, name in enumerate(objectives):
        known = np.isfinite(rated[:, number])
        if not known.any():
            continue
        x, y = said[known, number], rated[known, number]
        metrics[f"squared_error/{name}"] = mean_stderr(((x - y) ** 2).tolist())
        if x.std() > 0 and y.std() > 0:
            metrics[f"correlation/{name}"] = float(np.corrcoef(x, y)[0, 1])
    return metrics


def _by_domain(name: str, values: Sequence[tuple[str, float]]) -> dict[str, Any]:
    found = {name: mean_stderr([value for _, value in values])}
    for each in sorted({d for d, _ in values}):
        found[f"{name}/{each}"] = mean_stderr([value for d, value in values if d == each])
    return found


QUALITY: Mapping[str, Quality] = {"ranks": ranks, "binary": binary, "ratings": ratings}
"""By the sort of labels that a loss takes, its `LABELS`."""

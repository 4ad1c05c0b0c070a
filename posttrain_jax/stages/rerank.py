"""How well scores choose among the samples of a problem: best-of-n and votes against a majority.

The samples are those of a `generate` artifact, graded by one of its scores (`correct`). `scorers`
are reward models, process reward models and judges, named as in the rewards of an RL stage; each
gives `best@k/<name>` (the sample with the highest score) and `weighted@k/<name>` (the answer with
the largest sum of scores, which have to be 0 to 1), beside pass@1, pass@k and maj@k for each k of
`sizes`: see evals/selection.py. Answers are the texts that `find_answer` finds. Each figure has a
bootstrap interval, and is there for each task or source too.

What is written is every sample with its scores: data for another stage.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, process
from posttrain_jax.api import Artifact
from posttrain_jax.data.examples import DATA
from posttrain_jax.data.source import JsonlSource
from posttrain_jax.evals.bootstrap import by_domain
from posttrain_jax.evals.selection import Samples, choice_columns
from posttrain_jax.evals.summary import domain
from posttrain_jax.files import write_text
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.policy import Text, open_mesh, open_text, stage_title
from posttrain_jax.rewards import make_terms
from posttrain_jax.rollout.judges import open_judges
from posttrain_jax.stages.generate import lines
from posttrain_jax.verifiers.formulas.answer_text import find_answer
from posttrain_jax.verifiers.judging.judge import Judge, ask

DEFAULTS = {
    "correct": "accuracy",
    "scorers": {},
    "sizes": (1, 2, 4, 8),
    "where": {},
}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Score inputs["samples"] and compare the ways to choose."""
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    rows = [dict(row) for row in JsonlSource(inputs["samples"].path / DATA)]
    wanted = config.where.to_dict()
    rows = [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
    problems = by_problem(rows, config.correct, tuple(config.sizes))
    with jax.set_mesh(mesh), phases("score"):
        judges = open_scorers(config.scorers.to_dict(), inputs, mesh, text)
        for name, judge in judges.items():
            scores, sound = ask(
                judge, name, rows, [row["response"] for row in rows], np.ones(len(rows), bool)
            )
            for row, score, ok in zip(rows, scores, sound, strict=True):
                row["scores"][name] = float(score) if ok else 0.0
                row["masked"] = bool(row["masked"]) or not ok
    metrics = compare(problems, config.correct, list(judges), config.sizes)
    with MetricLogger(workdir, 1, stage_title(workdir)) as log:
        log(1, {name: value["mean"] for name, value in metrics.items()})
    if process.index() == 0:
        write_text(workdir / DATA, lines(rows))
    failed = sum(row["masked"] for row in rows)
    metrics |= {"problems": len(problems), "masked": failed}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def by_problem(
    rows: Sequence[dict[str, Any]], correct: str, sizes: Sequence[int]
) -> list[list[dict[str, Any]]]:
    """The samples of each problem.

    Raises:
      ValueError: no samples, samples without the score, or problems with fewer than the largest
        size.
    """
    problems: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if correct not in row.get("scores", {}):
            raise ValueError(
                f"sample {row.get('id')!r} has the scores {sorted(row.get('scores', {}))}, not "
                f"correct={correct!r}"
            )
        problems.setdefault(row["index"], []).append(row)
    fewest = min((len(group) for group in problems.values()), default=0)
    if not sizes or fewest < max(sizes) or min(sizes) < 1:
        raise ValueError(f"sizes={tuple(sizes)}: expected 1 to {fewest}, the samples of a problem")
    return list(problems.values())


def open_scorers(
    scorers: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Artifact], mesh: Mesh, text: Text
) -> dict[str, Judge]:
    """The models and judges that `scorers` names.

    Raises:
      ValueError: one of them is a verifier; otherwise as `make_terms` and `open_judges`.
    """
    terms = make_terms(scorers)
    if terms.pool:
        raise ValueError(f"scorers {sorted(terms.pool)}: expected reward models and judges")
    return open_judges(terms.terms, inputs, mesh, text)


def compare(
    problems: Sequence[Sequence[Mapping[str, Any]]], correct: str, scorers: Sequence[str],
    sizes: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """All metrics with their errors and intervals, of each domain too; n counts problems.

    A sample that a verifier or scorer failed on is wrong, and has the score 0.
    """
    samples = (samples_of(group, correct, scorers) for group in problems)
    columns = choice_columns(samples, sizes, scorers)
    return by_domain(columns, [domain(group[0]) for group in problems])


def samples_of(rows: Sequence[Mapping[str, Any]], correct: str, scorers: Sequence[str]) -> Samples:
    """The rows of one problem, graded by the score `correct`."""
    return Samples(
        [row["answer_number"] if "answer_number" in row else answer_number(row["response"])
         for row in rows],
        [row["scores"][correct] * (not row["masked"]) for row in rows],
        {name: [row["scores"][name] for row in rows] for name in scorers},
    )  # fmt: skip


def answer_number(response: str) -> int:
    """A number that is equal for equal answers; 0 where there is none."""
    found = find_answer(response)
    return (zlib.crc32(found.text.strip().encode()) & 0x7FFFFFFF) or 1 if found else 0

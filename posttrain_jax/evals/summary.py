"""The metrics of an evaluation from its graded samples; no jax.

pass@1 is the mean over k samples, its standard error the one over problems (samples of a problem
are not independent). Language consistency counts the samples that have words in their chain of
thought; `thought` is their share. Chat and safety problems are shares of their own. A metric
`x/<name>` speaks of the problems of one task or source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain_jax.evals.bootstrap import by_domain
from posttrain_jax.evals.selection import Samples, choice_columns, powers_of_two
from posttrain_jax.metrics import mean_stderr


class Graded(NamedTuple):
    """Graded samples of all problems: arrays [problems, samples].

    Attributes:
      answer: a number that is equal for equal answers; 0 where there is none.
      failed: 1 where a verifier or scorer failed.
      kl: log pi(y) - log pi_ref(y), in nats.
    """

    correct: np.ndarray
    format: np.ndarray
    language: np.ndarray
    length: np.ndarray
    finished: np.ndarray
    answer: np.ndarray
    refused: np.ndarray
    thought: np.ndarray
    failed: np.ndarray
    kl: np.ndarray


def domain(example: Mapping[str, Any]) -> str:
    """The task or source that an example counts for."""
    return str(example.get("task") or example.get("source") or "other")


def summarise(
    examples: Sequence[Mapping[str, Any]], greedy: Graded, sampled: Graded,
    scores: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All metrics as {"mean", "stderr", "n"}, some with an interval; n counts problems.

    Args:
      scores: [problems, samples] of each scorer.
    """
    kind = np.array([e.get("kind", "reasoning") for e in examples])
    metrics: dict[str, Any] = {}
    reasoning = np.flatnonzero(kind == "reasoning")
    if len(reasoning):
        names = [domain(examples[i]) for i in reasoning.tolist()]
        columns = accuracy_columns(greedy, sampled, scores or {}, reasoning)
        metrics |= by_domain(columns, names) | other_metrics(sampled, reasoning)
        languages = np.array([e.get("language", "") for e in examples])
        for name in sorted(set(languages[reasoning])):
            chosen = np.flatnonzero((languages == name) & (kind == "reasoning"))
            metrics |= consistency(f"language/{name}", sampled, chosen)
    harmful = np.array([bool(e.get("harmful")) for e in examples])
    for name, chosen, value in (
        ("refuse_harmful", (kind == "safety") & harmful, greedy.refused[:, 0]),
        ("answer_harmless", (kind == "safety") & ~harmful, 1 - greedy.refused[:, 0]),
        ("helpful", kind == "helpful", greedy.correct[:, 0]),
    ):
        if chosen.any():
            metrics[name] = mean_stderr(value[chosen].tolist())
    return metrics


def accuracy_columns(
    greedy: Graded, sampled: Graded, scores: Mapping[str, np.ndarray], chosen: np.ndarray
) -> dict[str, Sequence[float]]:
    """`greedy` and the columns of `choice_columns`, for powers of two up to the samples.

    A sample that a verifier or scorer failed on is wrong.
    """
    right = sampled.correct * (1 - sampled.failed)
    problems = (
        Samples(
            sampled.answer[i].astype(int).tolist(), right[i].tolist(),
            {name: table[i].tolist() for name, table in scores.items()},
        )
        for i in chosen
    )  # fmt: skip
    sizes = powers_of_two(sampled.correct.shape[1])
    columns = choice_columns(problems, sizes, list(scores))
    first = {"pass@1": columns.pop("pass@1"), "greedy": greedy.correct[chosen, 0].tolist()}
    return {**first, **columns}


def other_metrics(sampled: Graded, chosen: np.ndarray) -> dict[str, Any]:
    """Of the reasoning problems' samples, what is not their accuracy."""
    return {
        "length": mean_stderr(sampled.length[chosen].mean(axis=1)),
        "format": mean_stderr(sampled.format[chosen].mean(axis=1)),
        "thought": mean_stderr(sampled.thought[chosen].mean(axis=1)),
        **consistency("language", sampled, chosen),
        "finished": mean_stderr(sampled.finished[chosen].mean(axis=1)),
    }


def consistency(name: str, graded: Graded, chosen: np.ndarray) -> dict[str, Any]:
    """Language consistency of the samples that have words in their chain of thought."""
    spoke = graded.thought[chosen] > 0
    rows = spoke.any(axis=1)
    if not rows.any():
        return {}
    total = np.where(spoke, graded.language[chosen], 0.0).sum(axis=1)[rows]
    return {name: mean_stderr((total / spoke.sum(axis=1)[rows]).tolist())}

"""Samples of finished artifacts by problem, and those of several artifacts side by side; no jax."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.api import Artifact
from posttrain_jax.data.examples import DATA
from posttrain_jax.data.source import JsonlSource

Rows = Sequence[Mapping[str, Any]]
Problems = dict[tuple[str, int], Rows]
"""The samples of each problem, in their order; a problem is its id and how often that came before
(procedural tasks may repeat themselves)."""


def read_problems(artifact: Artifact, role: str, wanted: Mapping[str, Any]) -> Problems:
    """The samples of an artifact by problem.

    Raises:
      ValueError: no rows, or rows that are no samples.
    """
    rows = [dict(row) for row in JsonlSource(artifact.path / DATA)]
    rows = [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
    if not rows or any(key not in rows[0] for key in ("index", "sample", "scores", "length")):
        raise ValueError(
            f"input {role!r} (stage {artifact.stage!r}): expected samples with index, sample, "
            f"length and scores, got {sorted(rows[0]) if rows else 'none'}; see `where`"
        )
    rows.sort(key=lambda row: (row["index"], row["sample"]))
    seen: Counter[str] = Counter()
    found: Problems = {}
    for _, members in itertools.groupby(rows, key=lambda row: row["index"]):
        group = list(members)
        name = str(group[0]["id"])
        found[name, seen[name]] = group
        seen[name] += 1
    return found


def aligned(read: Mapping[str, Problems]) -> dict[str, Problems]:
    """The same, every input's problems in one order.

    Raises:
      ValueError: an input has other problems than the first.
    """
    first, *_ = read
    for role, problems in read.items():
        if differing := sorted(set(problems) ^ set(read[first])):
            raise ValueError(
                f"the inputs {first!r} and {role!r} have {len(read[first])} and {len(problems)} "
                f"problems, and only one of them has {differing[0][0]!r}: give their stages the "
                "same data and seed"
            )
    return {role: {key: problems[key] for key in read[first]} for role, problems in read.items()}


def split(problems: Problems, role: str, count: int, scored_too: bool) -> tuple[Problems, Problems]:
    """The samples that tell the difficulty, and those that are left to be scored.

    Args:
      count: how many of each problem are the first; 0 means all, or half where the input is scored.

    Raises:
      ValueError: too few samples for both.
    """
    fewest = min(len(rows) for rows in problems.values())
    first = count or (fewest // 2 if scored_too else fewest)
    if not 1 <= first <= fewest - scored_too:
        raise ValueError(
            f"difficulty.samples={count}: {role!r} has {fewest} samples a problem"
            + (", of which some must be left to be scored" if scored_too else "")
        )
    told = {key: rows[:first] for key, rows in problems.items()}
    return told, {key: rows[first:] for key, rows in problems.items()} if scored_too else problems


def scores_of(rows: Rows, name: str, role: str) -> list[float]:
    """A score of each row; 0 where a verifier failed."""
    for row in rows:
        if name not in row["scores"]:
            raise ValueError(
                f"a sample of {role!r} has the scores {sorted(row['scores'])}, not {name!r}: see "
                "`correct` and `score`"
            )
    return [row["scores"][name] * (not row["masked"]) for row in rows]

"""What a search found, by beams or in trees, as rows of data: solutions, and steps with labels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from posttrain_jax.data.steps import split_steps
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.process_reward import aggregate
from posttrain_jax.rollout.beams import Beam, Found
from posttrain_jax.rollout.tree_paths import Labelled, Trace, best_traces, labelled, widest_pairs
from posttrain_jax.rollout.tree_search import Walk
from posttrain_jax.verifiers.pool import Pool

Row = dict[str, Any]


class Searched(NamedTuple):
    """What a search gave for a batch of problems.

    Attributes:
      solutions: of each problem, as many of all.
      about: what the rows of a problem say besides.
      rounds: how many calls of the sampler for steps it took.
      steps: rows of labelled steps; `index` is the place of the problem in the batch.
    """

    solutions: Sequence[Sequence[Beam | Trace]]
    about: Sequence[Mapping[str, int]]
    rounds: int
    steps: Sequence[Row] = ()


class Reading(NamedTuple):
    """How solutions become text and scores.

    Attributes:
      separators: of steps.
      how: one of `process_reward.AGGREGATES`; empty where there is no process model.
    """

    tokenizer: Tokenizer
    separators: tuple[str, ...]
    how: str


def from_beams(found: Sequence[Found], rounds: int) -> Searched:
    """The beams of each problem."""
    about = [{"tokens_sampled": mine.sampled} for mine in found]
    return Searched([mine.beams for mine in found], about, rounds)


def from_trees(
    walks: Sequence[Walk], rounds: int, traces: int, likely: bool, steps: Sequence[Row]
) -> Searched:
    """The best solutions of each tree; see `best_traces`."""
    about = [
        {
            "tokens_sampled": walk.sampled, "nodes": len(walk.nodes) - 1,
            "iterations": walk.iterations,
        }
        for walk in walks
    ]  # fmt: skip
    best = [best_traces(walk.nodes, traces, likely) for walk in walks]
    return Searched(best, about, rounds, steps)


def solution_rows(
    reading: Reading, pool: Pool, examples: Sequence[Mapping[str, Any]], searched: Searched,
    first: int,
) -> list[Row]:  # fmt: skip
    """The solutions as samples, graded; `first` is the number of the first prompt."""
    tokenizer = reading.tokenizer
    flat = [(i, n, it) for i, mine in enumerate(searched.solutions) for n, it in enumerate(mine)]
    said = [tokenizer.decode(it.tokens) for _, _, it in flat]
    right, sound = pool(said, [examples[i] for i, _, _ in flat])
    return [
        {
            **examples[i], "response": response, "index": first + i, "sample": n,
            "length": len(it.tokens) + it.finished, "finished": it.finished, "masked": not ok,
            "forged": any(m in response for m in tokenizer.markers), **searched.about[i],
            "chances": it.chances, "steps": split_steps(response, reading.separators),
            "scores": {"correct": float(score[0]), **_scores(reading, it)},
        }
        for (i, n, it), response, score, ok in zip(flat, said, right, sound, strict=True)
    ]  # fmt: skip


def _scores(reading: Reading, it: Beam | Trace) -> dict[str, float]:
    """The process model's score of a solution, and what a tree says of it.

    `posterior` is prior times process: how likely the policy says it and it is right.
    """
    scores = {}
    if reading.how:
        scores["process"] = aggregate(it.chances, reading.how) if it.chances else 0.0
    if isinstance(it, Trace):
        scores |= {"value": it.value, "prior": it.prior}
        if reading.how:
            scores["posterior"] = it.prior * scores["process"]
    return scores


def step_rows(
    tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]], walks: Sequence[Walk], most: int
) -> list[Row]:
    """Pairs of sibling steps as stages/step_labels.py writes its labels, two rows a pair.

    `step_shares` are the shares of right ones among the judged ends behind each step,
    `step_labels` whether there is a right one; `better` tells the rows of a pair apart. Pairs in
    which a turn marker was said are left out.

    Args:
      most: pairs of a problem, those farthest apart.
    """
    rows = []
    for index, (example, walk) in enumerate(zip(examples, walks, strict=True)):
        pairs = ([labelled(walk.nodes, n, tokenizer) for n in p] for p in widest_pairs(walk.nodes))
        clean = (pair for pair in pairs if not any(_forged(tokenizer, side) for side in pair))
        for number, pair in enumerate(itertools.islice(clean, most)):
            rows += [
                {
                    **example, "index": index, "sample": 2 * number + place, "better": place == 0,
                    "steps": side.steps, "step_labels": [float(s > 0) for s in side.shares],
                    "step_shares": side.shares,
                }
                for place, side in enumerate(pair)
            ]  # fmt: skip
    return rows


def _forged(tokenizer: Tokenizer, said: Labelled) -> bool:
    return any(marker in "".join(said.steps) for marker in tokenizer.markers)

"""One answer from n samples of a problem: best-of-n, votes, and what a random choice would give.

All figures for k of n samples are means over the subsets of k samples, so that nothing depends on
the order in which they were drawn. No jax.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from posttrain_jax.evals.accuracy import majority

SUBSETS = 256
"""The most subsets that a vote is averaged over; all of them where there are fewer."""


def best_of(scores: Sequence[float], correct: Sequence[float], k: int) -> float:
    """The chance that the sample of k with the highest score is right, ties broken at random.

    Over all subsets at once: with samples in order of their scores, the one at place i (from 0) is
    the best of a subset of k with probability C(i, k - 1) / C(n, k).

    Raises:
      ValueError: k is larger than the number of samples.
    """
    n = _check(len(scores), k)
    order = sorted(range(n), key=lambda i: scores[i])
    total, place = 0.0, 0
    for _, tied in itertools.groupby(order, key=lambda i: scores[i]):
        members = list(tied)
        mass = sum(math.comb(place + j, k - 1) for j in range(len(members)))
        total += mass * float(np.mean([correct[i] for i in members]))
        place += len(members)
    return total / math.comb(n, k)


def weighted_vote(
    answers: Sequence[int], scores: Sequence[float], correct: Sequence[float]
) -> float:
    """Whether the answer with the largest sum of scores is right.

    Best-of-n weighted: Li et al. 2023, arXiv 2206.02336; Snell et al. 2024, arXiv 2408.03314,
    section 5.1. Scores are at least 0. Ties count as the mean over the tied answers; an answer is
    right by the share of its samples that are; samples without an answer (0) don't vote.
    """
    groups: dict[int, list[int]] = {}
    for i, answer in enumerate(answers):
        if answer:
            groups.setdefault(int(answer), []).append(i)
    if not groups:
        return 0.0
    sums = {a: math.fsum(scores[i] for i in members) for a, members in groups.items()}
    most = max(sums.values())
    leaders = [a for a, value in sums.items() if math.isclose(value, most, rel_tol=1e-9)]
    return float(np.mean([np.mean([correct[i] for i in groups[a]]) for a in leaders]))


def over_subsets(vote: Callable[[Sequence[int]], float], n: int, k: int, seed: int = 0) -> float:
    """The mean of a vote over the subsets of k of n samples: all, or `SUBSETS` random ones.

    Args:
      vote: from the numbers of the samples to whether the answer that they elect is right.

    Raises:
      ValueError: k is larger than n.
    """
    _check(n, k)
    if math.comb(n, k) <= SUBSETS:
        chosen = list(itertools.combinations(range(n), k))
    else:
        rng = random.Random(f"{seed}/{n}/{k}")
        chosen = [tuple(rng.sample(range(n), k)) for _ in range(SUBSETS)]
    return math.fsum(vote(subset) for subset in chosen) / len(chosen)


def majority_of(answers: Sequence[int], correct: Sequence[float], k: int) -> float:
    """The majority vote of k samples (`evals.accuracy.majority`), over subsets."""
    return over_subsets(
        lambda rows: majority([answers[i] for i in rows], [correct[i] for i in rows]),
        len(answers), k,
    )  # fmt: skip


def weighted_of(
    answers: Sequence[int], scores: Sequence[float], correct: Sequence[float], k: int
) -> float:
    """`weighted_vote` of k samples, over subsets."""
    return over_subsets(
        lambda rows: weighted_vote(
            [answers[i] for i in rows], [scores[i] for i in rows], [correct[i] for i in rows]
        ),
        len(answers), k,
    )  # fmt: skip


def _check(n: int, k: int) -> int:
    if not 1 <= k <= n:
        raise ValueError(f"k={k} of {n} samples: expected 1 to {n}")
    return n

"""One answer from n samples of a problem: best-of-n, votes, and what a random choice would give.

All figures for k of n samples are means over the subsets of k samples, so that nothing depends on
the order in which they were drawn. No jax.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from posttrain_jax.evals.accuracy import pass_at_k

SUBSETS = 256
"""The most subsets that a vote is averaged over; all of them where there are fewer."""


class Samples(NamedTuple):
    """The samples of one problem.

    Attributes:
      answers: numbers that are equal where the answers are; 0 where there is none.
      right: 1 where the answer is right.
      scores: what each scorer gave them.
    """

    answers: Sequence[int]
    right: Sequence[float]
    scores: Mapping[str, Sequence[float]] = {}


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
    everyone = np.ones((1, len(answers)), bool)
    return float(elect(answers, scores, correct, everyone)[0])


def elect(
    answers: Sequence[int], weights: ArrayLike, correct: ArrayLike, voters_SN: np.ndarray
) -> np.ndarray:
    """`weighted_vote` of several sets of samples -> [S].

    Args:
      voters_SN: which of the N samples each of S sets holds.
    """
    _, number = np.unique(np.asarray(answers, np.int64), return_inverse=True)
    named_NU = np.eye(number.max(initial=-1) + 1)[number] * (np.asarray(answers) != 0)[:, None]
    weight, right = np.asarray(weights, float)[:, None], np.asarray(correct, float)[:, None]
    sets = voters_SN.astype(float)
    votes_SU = sets @ named_NU
    sums_SU = np.where(votes_SU > 0, sets @ (named_NU * weight), -np.inf)
    most_S = sums_SU.max(axis=1, initial=-np.inf, keepdims=True)
    # Sums of the same scores in another order differ in their last digits.
    leads_SU = (votes_SU > 0) & (sums_SU >= most_S - 1e-9 * np.abs(most_S))
    share_SU = sets @ (named_NU * right) / np.maximum(votes_SU, 1)
    return (leads_SU * share_SU).sum(axis=1) / np.maximum(leads_SU.sum(axis=1), 1)


@lru_cache(maxsize=64)
def subsets(n: int, k: int, seed: int = 0) -> np.ndarray:
    """Subsets of k of n samples, all or `SUBSETS` random ones -> bool [S, n].

    Raises:
      ValueError: k is larger than n.
    """
    _check(n, k)
    if math.comb(n, k) <= SUBSETS:
        rows = np.array(list(itertools.combinations(range(n), k)))
    else:
        keys = np.random.default_rng([seed, n, k]).random((SUBSETS, n))
        rows = np.argsort(keys, axis=1)[:, :k]
    chosen = np.zeros((len(rows), n), bool)
    np.put_along_axis(chosen, rows, True, axis=1)
    chosen.setflags(write=False)  # every caller gets the same one
    return chosen


def majority_of(answers: Sequence[int], correct: Sequence[float], k: int) -> float:
    """The majority vote of k samples (`evals.accuracy.majority`), over subsets."""
    return weighted_of(answers, np.ones(len(answers)), correct, k)


def weighted_of(
    answers: Sequence[int], scores: ArrayLike, correct: Sequence[float], k: int
) -> float:
    """`weighted_vote` of k samples, over subsets."""
    return float(elect(answers, scores, correct, subsets(len(answers), k)).mean())


def any_of(correct: Sequence[float], k: int) -> float:
    """pass@k (`evals.accuracy.pass_at_k`); a sample counts as right from a half on."""
    return pass_at_k(len(correct), sum(c >= 0.5 for c in correct), k)


CHOICES: Mapping[str, Callable[[Samples, str, int], float]] = {
    "mean": lambda samples, scorer, k: float(np.mean(samples.right)),
    "any": lambda samples, scorer, k: any_of(samples.right, k),
    "majority": lambda samples, scorer, k: majority_of(samples.answers, samples.right, k),
    "best": lambda samples, scorer, k: best_of(samples.scores[scorer], samples.right, k),
    "weighted": lambda samples, scorer, k: weighted_of(
        samples.answers, samples.scores[scorer], samples.right, k
    ),
}
"""How one of k samples is chosen: `(samples, scorer, k) -> the chance that it is right`."""
SCORED = ("best", "weighted")
"""Those that need a scorer."""
NAMES = {"any": "pass", "majority": "maj", "best": "best", "weighted": "weighted"}
"""In the names of metrics, `<name>@k`."""


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... below `most`, and `most` itself."""
    return (*(1 << i for i in range(most.bit_length()) if 1 << i < most), most)


def choice_columns(
    problems: Iterable[Samples], sizes: Sequence[int], scorers: Sequence[str] = ()
) -> dict[str, list[float]]:
    """pass@1, and for each size k over 1 pass@k, maj@k, and `best@k/<scorer>` and
    `weighted@k/<scorer>` of each scorer: a figure a problem.

    Raises:
      ValueError: a size that is larger than the number of a problem's samples.
    """
    wanted = [
        (f"{NAMES[how]}@{k}{scorer and '/'}{scorer}", how, scorer, k)
        for how in NAMES
        for scorer in (scorers if how in SCORED else ("",))
        for k in sorted(sizes) if k > 1
    ]  # fmt: skip
    columns: dict[str, list[float]] = {"pass@1": []} | {name: [] for name, *_ in wanted}
    for samples in problems:
        columns["pass@1"].append(float(np.mean(samples.right)))
        for name, how, scorer, k in wanted:
            columns[name].append(CHOICES[how](samples, scorer, k))
    return columns


def _check(n: int, k: int) -> int:
    if not 1 <= k <= n:
        raise ValueError(f"k={k} of {n} samples: expected 1 to {n}")
    return n

"""pass@1, pass@k and maj@k from k graded samples a problem; no jax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased chance that one of k samples is right: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, arXiv 2107.03374, eq. 1.

    Raises:
      ValueError: k is larger than the number of samples.
    """
    if k > samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, got {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority(answers: Sequence[int], correct: Sequence[float]) -> float:
    """Whether the most frequent answer is right; a tie counts as the share of right ones in it.

    Wang et al. 2022, arXiv 2203.11171. Samples without an answer (0) don't vote.

    Args:
      answers: the answers, as numbers that are equal where the answers are.
      correct: 1 where the answer is right.
    """
    votes: dict[int, list[float]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer:
            votes.setdefault(int(answer), []).append(float(right))
    if not votes:
        return 0.0
    most = max(len(v) for v in votes.values())
    leaders = [float(np.mean(v)) for v in votes.values() if len(v) == most]
    return float(np.mean(leaders))

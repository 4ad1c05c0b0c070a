"""How hard problems are for a policy: bins by its pass rate, and two folds of each bin; no jax.

Snell et al. 2024, arXiv 2408.03314, section 3.2: five quantiles of the pass@1 that is estimated
from samples of the base policy (their "oracle" difficulty), or of a verifier's mean score ("model
predicted").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

BINS = 5


def difficulty_bins(rate_P: ArrayLike, bins: int = BINS) -> np.ndarray:
    """The bin of each problem -> int [P], 0 the easiest.

    Bins are quantiles of the rank. Problems of one rate share a bin, that of their middle rank: few
    samples make many ties, and to tell those apart would be noise. So bins may differ in size, and
    one may be empty.

    Args:
      rate_P: the share of its samples that is right, or any figure that is higher for easier ones.

    Raises:
      ValueError: fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: expected 1 or more")
    rate = np.asarray(rate_P, float)
    ranked = np.sort(rate)
    below = np.searchsorted(ranked, rate, side="left")
    up_to = np.searchsorted(ranked, rate, side="right")
    easier = len(rate) - (below + up_to) / 2  # the middle rank, counted from the easiest
    return np.minimum(easier * bins // max(len(rate), 1), bins - 1).astype(int)


def two_folds(bins_P: ArrayLike, seed: int = 0) -> np.ndarray:
    """0 or 1 for each problem, at random, as evenly as can be within every bin -> int [P]."""
    bins = np.asarray(bins_P)
    order = np.random.default_rng(seed).permutation(len(bins))
    fold = np.zeros(len(bins), int)
    for number in np.unique(bins):
        members = order[bins[order] == number]
        fold[members[1::2]] = 1
    return fold

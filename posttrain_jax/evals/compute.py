"""Where to spend test-time compute: the best option of a budget in each bin of difficulty; no jax.

Snell et al. 2024, arXiv 2408.03314, eq. 1 and section 3.2: of the ways to spend a budget the one
with the highest accuracy in a bin is chosen on one half of the bin's problems and scored on the
other, both ways round. Their budget is a number of generations; here it is the mean of the tokens
that an option generates for a problem, so that sampling, search and long thoughts can be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Option(NamedTuple):
    """A way to spend compute on P problems: a method at one size.

    Attributes:
      right_P: the chance that its answer is right.
      tokens_P: the tokens that it generates.
    """

    name: str
    right_P: np.ndarray
    tokens_P: np.ndarray

    @property
    def cost(self) -> float:
        """Mean tokens a problem."""
        return float(self.tokens_P.mean())


class Optimal(NamedTuple):
    """What the choice by bins comes to at one budget.

    Attributes:
      right_P, tokens_P: of the option that the other fold chose. The tokens may be under the
        budget (a cheaper option is as good) and over it (a bin's problems are longer than most).
      chosen: the names that the two folds of each bin chose, and how often.
    """

    budget: float
    right_P: np.ndarray
    tokens_P: np.ndarray
    chosen: dict[int, Counter[str]]


def compute_optimal(
    options: Sequence[Option], bins_P: np.ndarray, folds_P: np.ndarray, budget: float
) -> Optimal:
    """Choose in every bin among the options whose cost is at most `budget`; see the module.

    Where none is, the cheapest of all is taken. Of equally good ones the cheaper is chosen; so it
    is where the other fold of a bin has no problems.
    """
    cheapest = min(option.cost for option in options)
    limit = max(budget, cheapest) * (1 + 1e-9)
    affordable = sorted((o for o in options if o.cost <= limit), key=lambda o: o.cost)
    right, tokens = np.zeros(len(bins_P)), np.zeros(len(bins_P))
    chosen: dict[int, Counter[str]] = {}
    for number in np.unique(bins_P).tolist():
        inside = bins_P == number
        for fold in np.unique(folds_P[inside]).tolist():
            learnt = inside & (folds_P != fold)
            mean = [float(o.right_P[learnt].mean()) if learnt.any() else 0.0 for o in affordable]
            best = affordable[int(np.argmax(np.round(mean, 12)))]  # the first: the cheapest
            scored = inside & (folds_P == fold)
            right[scored], tokens[scored] = best.right_P[scored], best.tokens_P[scored]
            chosen.setdefault(number, Counter())[best.name] += 1
    return Optimal(budget, right, tokens, chosen)


def doubling_budgets(options: Sequence[Option]) -> tuple[float, ...]:
    """From the cheapest option's cost in doublings, as far as the dearest one's."""
    costs = [option.cost for option in options]
    budget, found = min(costs), []
    while budget < max(costs) * (1 - 1e-9):
        found.append(budget)
        budget *= 2
    return (*found, max(costs))

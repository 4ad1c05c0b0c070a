"""Reward assembly: named terms from verifiers and reward models, gated by step and by kind.

A term of a recipe is {"verifier": name, <options>} or {"reward_model": input role}, with `weight`,
`start_step` (counted in updates; before it the term is off) and `kinds` (the kinds of example it
scores; empty: all). The reward is the weighted sum of the terms that apply. A term that does not
apply to a sample is 0 and stays out of that term's mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

OWN = ("verifier", "reward_model", "weight", "start_step", "kinds", "transform")


class Term(NamedTuple):
    """One reward term, apart from how its verifier works.

    Attributes:
      reward_model: the input role of its model; empty for a verifier.
      transform: of a reward model's score: `sigmoid` or `none`.
    """

    name: str
    weight: float
    start_step: int
    kinds: tuple[str, ...]
    reward_model: str
    transform: str


class Terms(NamedTuple):
    """All terms, those of verifiers first, and what the verifier pool is to be built from."""

    terms: tuple[Term, ...]
    pool: dict[str, dict[str, Any]]


def make_terms(rewards: Mapping[str, Mapping[str, Any]]) -> Terms:
    """Read a recipe's `rewards`.

    Raises:
      ValueError: a term with both or neither of verifier and reward_model, a bad transform, or
        kinds that aren't a list.
    """
    verified, modelled, pool = [], [], {}
    for name in sorted(rewards):
        settings = dict(rewards[name])
        if ("verifier" in settings) == ("reward_model" in settings):
            raise ValueError(
                f"rewards.{name} needs one of verifier and reward_model; got {sorted(settings)}"
            )
        transform = settings.get("transform", "sigmoid")
        if transform not in ("sigmoid", "none"):
            raise ValueError(f"rewards.{name}.transform={transform!r}: expected sigmoid or none")
        if isinstance(kinds := settings.get("kinds", ()), str):
            raise ValueError(f"rewards.{name}.kinds={kinds!r}: expected a list, as in ({kinds!r},)")
        term = Term(
            name,
            float(settings.get("weight", 1.0)),
            int(settings.get("start_step", 0)),
            tuple(kinds),
            settings.get("reward_model", ""),
            transform,
        )
        if term.reward_model:
            modelled.append(term)
        else:
            verified.append(term)
            options = {k: v for k, v in settings.items() if k not in OWN}
            pool[name] = {"verifier": settings["verifier"], **options}
    return Terms((*verified, *modelled), pool)


def applies(terms: Sequence[Term], examples: Sequence[Mapping[str, Any]], step: int) -> np.ndarray:
    """Whether each term scores each example at this step -> bool [examples, terms]."""
    kinds = [example.get("kind", "reasoning") for example in examples]
    return np.array(
        [
            [step >= t.start_step and (not t.kinds or kind in t.kinds) for t in terms]
            for kind in kinds
        ],
        bool,
    ).reshape(len(examples), len(terms))

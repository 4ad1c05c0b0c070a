"""Reward assembly: named terms from verifiers, reward models and judges, by step and by kind.

A term of a recipe is {"verifier": name, <options>}, {"reward_model": input role} or {"judge":
{...}}, with `weight`, `start_step` (counted in updates; before it the term is off), `kinds` (the
kinds of example it scores; empty: all) and `offset`. The reward is the sum of weight (score +
offset) over the terms that apply. A term that does not apply to a sample is 0 and stays out of that
term's mean.

Qwen2.5-Math's shaping, sigmoid(0.5 r_m) + (r_v - 1) (arXiv 2409.12122, eq. 3), is two terms:
  {"reward_model": role, "transform": "sigmoid", "scale": 0.5}, {"verifier": name, "offset": -1.0}

A judge names its form of question (verifiers/judging/forms) and where its model is, on the mesh or
at a URL, and may set the options of `make_judge`:
  {"form": "correctness", "votes": 3, "mesh": {"input": role, "prompt_length": 1024}}
  {"form": "rubric", "rubric": "criteria", "span": "answer",
   "endpoint": {"url": "http://localhost:8000/v1", "served_model": name}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SORTS = ("verifier", "reward_model", "judge")
TRANSFORMS = ("sigmoid", "none", "product", "min", "last")
"""Of a score; the last three of a process reward model's steps, which has one of its own too."""
OWN = (*SORTS, "weight", "start_step", "kinds", "transform", "scale", "offset")


class Term(NamedTuple):
    """One reward term, apart from how its verifier works.

    Attributes:
      reward_model: the input role of its reward model; empty where it has none.
      transform: of a reward model's score: `sigmoid` or `none`.
      judge: the settings of its judge; empty where it has none.
      scale: what a reward model's score is multiplied by before the transform.
      offset: added to the score where it becomes part of the reward, not in the metrics.
    """

    name: str
    weight: float
    start_step: int
    kinds: tuple[str, ...]
    reward_model: str
    transform: str
    judge: Mapping[str, Any]
    scale: float = 1.0
    offset: float = 0.0


class Terms(NamedTuple):
    """All terms, those of verifiers first, and what the verifier pool is to be built from."""

    terms: tuple[Term, ...]
    pool: dict[str, dict[str, Any]]


def make_terms(rewards: Mapping[str, Mapping[str, Any]]) -> Terms:
    """Read a recipe's `rewards`.

    Raises:
      ValueError: a term without exactly one of verifier, reward_model and judge, a judge without
        a form or a place, a bad transform, a scale of no reward model, or kinds that aren't a list.
    """
    verified, modelled, pool = [], [], {}
    for name in sorted(rewards):
        settings = dict(rewards[name])
        if sum(sort in settings for sort in SORTS) != 1:
            raise ValueError(
                f"rewards.{name} needs one of verifier, reward_model and judge; got "
                f"{sorted(settings)}"
            )
        judge = settings.get("judge", {})
        if "judge" in settings and (
            "form" not in judge or ("mesh" in judge) == ("endpoint" in judge)
        ):
            raise ValueError(
                f"rewards.{name}.judge needs form and one of mesh and endpoint; got {sorted(judge)}"
            )
        transform = settings.get("transform", "sigmoid")
        if transform not in TRANSFORMS:
            raise ValueError(
                f"rewards.{name}.transform={transform!r}: expected one of {', '.join(TRANSFORMS)}"
            )
        if isinstance(kinds := settings.get("kinds", ()), str):
            raise ValueError(f"rewards.{name}.kinds={kinds!r}: expected a list, as in ({kinds!r},)")
        if "scale" in settings and "reward_model" not in settings:
            raise ValueError(f"rewards.{name}.scale is of reward models; others have weight")
        term = Term(
            name,
            float(settings.get("weight", 1.0)),
            int(settings.get("start_step", 0)),
            tuple(kinds),
            settings.get("reward_model", ""),
            transform,
            judge,
            float(settings.get("scale", 1.0)),
            float(settings.get("offset", 0.0)),
        )
        if term.reward_model or term.judge:
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

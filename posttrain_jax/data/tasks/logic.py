"""Follow the ball: four cups A..D are swapped in pairs. `The ball is in A #1 AB #2 BC. Where?`"""

import random
from collections.abc import Mapping
from typing import Any

from posttrain_jax.data import chains

KIND = "reasoning"
MOVES = chains.CUP_MOVES
TEMPLATES = {"en": "The ball is in{chain}. Where?", "zh": "球在{chain}，在哪？"}


def make_prompt(rng: random.Random, language: str, chain: chains.Chain) -> str:
    """The problem in words (there is one wording a language)."""
    return TEMPLATES[language].replace("{chain}", chains.labelled(chain))


def make_example(
    rng: random.Random,
    language: str,
    *,
    split: str | None = None,
    steps: tuple[int, int] = (2, chains.MAX_STEPS),
    style: str = "full",
) -> dict[str, Any]:
    """A puzzle with `steps[0]`..`steps[1]` swaps; `style` is that of the worked solution."""
    chain = chains.make_chain(rng, MOVES, steps, split)
    prompt = make_prompt(rng, language, chain)
    return chains.chain_example("logic", language, prompt, chain, style)


def check(answer: str, example: Mapping[str, Any]) -> bool:
    """Whether `answer` names the cup with the ball, and nothing else."""
    return answer.strip() == example["answer"]

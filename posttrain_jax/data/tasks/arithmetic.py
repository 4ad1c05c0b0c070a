"""Chained sums: `What is 3 #1 +5 #2 -2?`; every total stays within 0..20."""

import random
from collections.abc import Mapping
from typing import Any

from posttrain_jax.data import chains

KIND = "reasoning"
MOVES = chains.NUMBER_MOVES
TEMPLATES = {
    "en": ("What is{chain}?", "Compute{chain}."),
    "zh": ("请问{chain} 是多少？", "计算{chain}。"),
}


def make_prompt(rng: random.Random, language: str, chain: chains.Chain) -> str:
    """The problem in words."""
    templates = TEMPLATES[language]
    template = templates[int(rng.random() * len(templates))]
    return template.replace("{chain}", chains.labelled(chain))


def make_example(
    rng: random.Random,
    language: str,
    *,
    split: str | None = None,
    steps: tuple[int, int] = (2, chains.MAX_STEPS),
    style: str = "full",
) -> dict[str, Any]:
    """A sum with `steps[0]`..`steps[1]` operations; `style` is that of the worked solution."""
    chain = chains.make_chain(rng, MOVES, steps, split)
    prompt = make_prompt(rng, language, chain)
    return chains.chain_example("arithmetic", language, prompt, chain, style)


def check(answer: str, example: Mapping[str, Any]) -> bool:
    """Whether `answer` is the right total, and nothing else."""
    return answer.strip() == example["answer"]

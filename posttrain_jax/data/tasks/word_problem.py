"""The same sums as a small story: `Tom has 3 apples #1 +5 #2 -2. How many?`"""

import random
from collections.abc import Mapping
from typing import Any

from posttrain_jax.data import chains

KIND = "reasoning"
MOVES = chains.NUMBER_MOVES
NAMES = {"en": ("Tom", "Mia", "Sam", "Anna"), "zh": ("小明", "小红", "小华", "小丽")}
ITEMS = {
    "en": (" apples", " pears", " plums", " eggs"),
    "zh": ("苹果", "梨子", "桃子", "鸡蛋"),
}


def make_prompt(rng: random.Random, language: str, chain: chains.Chain) -> str:
    """The problem in words."""
    name = NAMES[language][int(rng.random() * 4)]
    item = ITEMS[language][int(rng.random() * 4)]
    start, rest = chain.states[0], chains.labelled(chain)[len(chain.states[0]) :]
    if language == "zh":
        return f"{name}有{start} 个{item}{rest}，还有几个？"
    return f"{name} has{start}{item}{rest}. How many?"


def make_example(
    rng: random.Random,
    language: str,
    *,
    split: str | None = None,
    steps: tuple[int, int] = (2, chains.MAX_STEPS),
    style: str = "full",
) -> dict[str, Any]:
    """A story with `steps[0]`..`steps[1]` operations; `style` is that of the worked solution."""
    chain = chains.make_chain(rng, MOVES, steps, split)
    prompt = make_prompt(rng, language, chain)
    return chains.chain_example("word_problem", language, prompt, chain, style)


def check(answer: str, example: Mapping[str, Any]) -> bool:
    """Whether `answer` is the right count, and nothing else."""
    return answer.strip() == example["answer"]

"""Products that are too large for the head: `What is 347 * 586?`, worked out by a program.

The worked solution calls the interpreter and holds what it said, as Qwen2.5-Math's integrated
solutions do (arXiv 2409.12122, section 3.1.2).
"""

import random
from collections.abc import Mapping
from typing import Any

from posttrain_jax.data import chains

KIND = "reasoning"
RESULT = ("\n```output\n", "\n```\n")
"""What an interpreter's result stands between."""
TEMPLATES = {
    "en": ("What is {product}?", "Compute {product}."),
    "zh": ("{product} 是多少？", "计算 {product}。"),
}


def make_example(
    rng: random.Random,
    language: str,
    *,
    split: str | None = None,
    largest: int = 999,
) -> dict[str, Any]:
    """The product of two numbers of 12 to `largest`.

    Raises:
      ValueError: an unknown split.
    """
    if split not in (None, "train", "heldout"):
        raise ValueError(f"split must be 'train', 'heldout' or None, got {split!r}")
    while True:
        product = f"{rng.randint(12, largest)}*{rng.randint(12, largest)}"
        if split is None or chains.is_held_out(product) == (split == "heldout"):
            break
    templates = TEMPLATES[language]
    prompt = templates[int(rng.random() * len(templates))].replace("{product}", product)
    a, b = product.split("*")
    answer = str(int(a) * int(b))
    result = answer.join(RESULT)
    return {
        "id": chains.example_id("calculation", language, prompt),
        "task": "calculation",
        "language": language,
        "kind": "reasoning",
        "prompt": prompt,
        "answer": answer,
        "solution": chains.tagged(f"```python\nprint({product})\n```{result}", answer),
    }


def check(answer: str, example: Mapping[str, Any]) -> bool:
    """Whether `answer` is the product, and nothing else."""
    return answer.strip() == example["answer"]

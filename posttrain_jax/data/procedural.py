"""Examples of the procedural tasks, by weight, with disjoint training and held-out splits.

Reasoning problems are split by a hash of the problem itself, chat and safety by sentence template
and combination of words: no held-out prompt can be drawn for training, whatever the seed.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax import registry

SPLITS = ("train", "heldout")
FRESH_TRIES = 30


def allot(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """Split `count` in proportion to the weights, by largest remainder (sums to `count`).

    Raises:
      ValueError: no weight is positive, or one is negative.
    """
    total = sum(weights.values())
    if total <= 0 or min(weights.values()) < 0:
        raise ValueError(f"task weights must be >= 0 with a positive sum, got {dict(weights)}")
    exact = {name: count * weight / total for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def examples(
    tasks: Mapping[str, float],
    *,
    split: str,
    count: int,
    seed: int,
    languages: Sequence[str] = ("en", "zh"),
    **options: Any,
) -> list[dict[str, Any]]:
    """`count` examples, mixed by weight, languages in turn, in a shuffled order.

    Prompts are distinct as far as the task has enough of them: a repeat is accepted only after
    FRESH_TRIES draws (held-out chat has 60 prompts in all).

    Args:
      tasks: weight of each task; a task is a file of `posttrain_jax/data/tasks/`.
      split: `train` or `heldout`.
      seed: the same arguments give the same examples; each task has its own stream, so one
        task's examples don't depend on the other weights.
      options: passed to every task that takes them (`steps`, `style`, `fault`).

    Raises:
      ValueError: unknown task or split, or an option that none of the tasks takes.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}: change `split`")
    modules = {name: registry.load("data/tasks", name) for name in tasks}
    accepted = {name: _keywords(module.make_example) for name, module in modules.items()}
    unknown = set(options) - set().union(*accepted.values())
    if unknown:
        raise ValueError(
            f"no task of {sorted(tasks)} takes the option(s) {sorted(unknown)}; "
            f"they take {sorted(set().union(*accepted.values()) - {'split'})}"
        )
    result = []
    for name, share in allot(tasks, count).items():
        rng = random.Random(f"{seed}/{split}/{name}")
        chosen = {key: value for key, value in options.items() if key in accepted[name]}
        seen: set[str] = set()
        for i in range(share):
            language = languages[i % len(languages)]
            example = modules[name].make_example(rng, language, split=split, **chosen)
            for _ in range(FRESH_TRIES):
                if example["id"] not in seen:
                    break
                example = modules[name].make_example(rng, language, split=split, **chosen)
            seen.add(example["id"])
            result.append(example)
    random.Random(f"{seed}/{split}/order").shuffle(result)
    return result


def _keywords(function: Any) -> set[str]:
    """The names of a generator's keyword-only options."""
    code = function.__code__
    first = code.co_argcount
    return set(code.co_varnames[first : first + code.co_kwonlyargcount])

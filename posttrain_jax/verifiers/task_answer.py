"""Accuracy on our procedural tasks: the task that made a problem checks its answer.

`example["task"]` names `posttrain_jax/data/tasks/<task>.py`, whose `check(answer, example)` gets
the text between the answer tags. An example without a task goes to `math_answer`.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

from posttrain_jax import registry
from posttrain_jax.api import Verdict
from posttrain_jax.verifiers import math_answer, tags


@lru_cache(maxsize=256)
def _task(name: str) -> ModuleType:
    return registry.load("data/tasks", name)


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    answer_tag: str = "answer",
    think_tag: str = "think",
    units: bool = True,
    tolerance: float = 0.0,
    literal: bool = False,
    use_sympy: bool = True,
) -> Verdict:
    """1 where the task's `check` accepts the tagged answer, 0 otherwise or without an answer.

    The answer is the last complete pair of answer tags after the chain of thought; an untagged
    answer is none, as in R1, where the format is what makes an answer checkable.

    Args:
      response: the completion.
      example: with a task, what its `check` needs; without one, what `math_answer` needs.
      answer_tag, think_tag: the names of the tags.
      units, tolerance, literal, use_sympy: as in `math_answer.score`, for examples without a task.

    Raises:
      ValueError: there is no such task.
      TypeError: `check` returned something that isn't a bool.
    """
    name = example.get("task")
    if name is None:
        return math_answer.score(
            response,
            example,
            units=units,
            tolerance=tolerance,
            literal=literal,
            use_sympy=use_sympy,
            answer_tag=answer_tag,
            think_tag=think_tag,
        )
    answer = tags.inside(tags.after_chain(response, think_tag), answer_tag)
    if not answer:
        return Verdict(0.0, "fail", "no answer between tags")
    right = _task(name).check(answer, example)
    if not isinstance(right, bool):
        raise TypeError(
            f"posttrain_jax/data/tasks/{name}.py: check() returned {type(right).__name__}, "
            "expected bool"
        )
    return Verdict(float(right), "pass" if right else "fail", answer)

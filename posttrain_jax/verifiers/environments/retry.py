"""A user who says whether the answer is right, and asks for another one where it is not.

Two attempts are the form in which self-correction is trained (SCoRe, Kumar et al. 2024, arXiv
2409.12917, section 3), there without saying whether the first was right: `tells=False`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_jax.verifiers.environments import Speaker
from posttrain_jax.verifiers.terms import prepare

WRONG = "That is not right. Try again."
AGAIN = "There might be a mistake above. Check it, and say the answer again."


def start(
    example: Mapping[str, Any],
    *,
    verifier: str = "task_answer",
    verifier_options: Mapping[str, Any] | None = None,
    attempts: int = 2,
    tells: bool = True,
) -> Speaker:
    """A user for one problem.

    Args:
      verifier: says with a score of at least 0.5 that an answer is right.
      attempts: turns of the policy, at most.
      tells: asks again only where the answer is wrong; else always, without saying.

    Raises:
      ValueError: fewer than one attempt, an unknown verifier.
    """
    if attempts < 1:
        raise ValueError(f"attempts={attempts}: expected at least 1")
    options = dict(verifier_options or {})
    score, left = prepare(verifier, options).score, [attempts]

    def reply(said: str) -> str | None:
        left[0] -= 1
        if left[0] <= 0 or (tells and score(said, example, **options).score >= 0.5):
            return None
        return WRONG if tells else AGAIN

    return reply

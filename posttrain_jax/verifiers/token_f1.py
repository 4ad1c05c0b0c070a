"""Overlap of words with a short reference: the F1 of question answering.

Source: the F1 of SQuAD (arXiv 1606.05250, section 6.1), the best over several references, as in
open-instruct's F1 verifier; the score is the F1 itself.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers import exact_answer, tags
from posttrain_jax.verifiers.formulas.reference import raw_references


def token_f1(got: str, gold: str) -> float:
    """2 P R / (P + R) over the bags of words of two normalised texts; 1 where both are empty."""
    a, b = Counter(got.split()), Counter(gold.split())
    if not a or not b:
        return float(a == b)
    return 2 * (a & b).total() / (a.total() + b.total())


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    answer_tag: str = "answer",
    think_tag: str = "think",
) -> Verdict:
    """The largest F1 between the answer and one of the references, in [0, 1].

    The answer is the last tagged one after the chain of thought, else all the text after it.

    Args:
      response: the completion.
      example: `gold` (or `answer`): a text, or a list of them.
      answer_tag, think_tag: the names of the tags.

    Raises:
      KeyError, TypeError, ValueError: as `reference.raw_references`.
    """
    golds = [exact_answer.normalise(text) for text in raw_references(example)]
    got = exact_answer.normalise(tags.answer(response, answer_tag, think_tag))
    best = max(token_f1(got, gold) for gold in golds) if got else 0.0
    return Verdict(best, "pass" if best > 0 else "fail", got[:200])

"""Accuracy on mathematics: the final answer of a response against `example["answer"]`.

First the same spelling, then exact literal numbers ("0.5" is "1/2", "1,000" is "1000"), then
equality of parsed expressions (`formulas`), for which sympy may be needed. Sympy can
hang, so it only runs in a worker of `pool.Pool`, which kills a worker past its deadline.

Source: R1's "accuracy reward" (arXiv 2501.12948, section 2.2.2) leaves the rules open; these are
ours, close to those of math-verify and of hendrycks/math, and stricter: 0.33 isn't 1/3.
"""

import re
import sys
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers.formulas import symbolic
from posttrain_jax.verifiers.formulas.answer_text import boxed, find_answer
from posttrain_jax.verifiers.formulas.equality import Scalars, equal, stated
from posttrain_jax.verifiers.formulas.expression import Node, Unreadable
from posttrain_jax.verifiers.formulas.grammar import parse
from posttrain_jax.verifiers.formulas.numerals import LONGEST, Number, canonical, read_number

PRELOAD = ("sympy",)
"""What a worker imports before its first item, so that no item's deadline pays for it."""

_BROKEN = (ArithmeticError, AttributeError, MemoryError, NotImplementedError, RecursionError)
_BROKEN += (TypeError, ValueError)


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    units: bool = True,
    tolerance: float = 0.0,
    literal: bool = False,
    use_sympy: bool = True,
    answer_tag: str = "answer",
    think_tag: str = "think",
) -> Verdict:
    """1 where the final answer equals `example["answer"]`, 0 otherwise.

    Args:
      response: the completion.
      example: `answer` is the reference: a number, a formula or a short text.
      units: a unit or currency on one side only is ignored; two different units are unequal.
      tolerance: relative difference allowed between two constants.
      literal: where the reference is a number, the answer must be one too: 3+5 isn't 8. Without it
        a policy can be paid for copying the sum from the prompt.
      use_sympy: False compares only what needs no sympy; the rest is unequal.
      answer_tag, think_tag: the names of the tags.

    Raises:
      RuntimeError: sympy is needed and this process isn't a worker of a pool.
      KeyError: the example has no answer.
    """
    gold = _reference(example["answer"])
    found = find_answer(response, answer_tag=answer_tag, think_tag=think_tag)
    if found is None or not found.text:
        return Verdict(0.0, "fail", "no answer found")
    if found.text == gold:
        return Verdict(1.0, "pass", found.text)
    right, note = _same(gold, found.text, units, tolerance, literal, use_sympy)
    detail = found.text[:200] + (f" ({note})" if note else "")
    return Verdict(float(right), "pass" if right else "fail", detail)


def _reference(answer: Any) -> str:
    text = str(answer).strip()
    inner = boxed(text)
    return text if inner is None else inner[1]


def _same(
    gold: str, got: str, units: bool, tolerance: float, literal: bool, use_sympy: bool
) -> tuple[bool, str]:
    """Whether two answers are equal, and why that couldn't be decided, if so."""
    if max(len(gold), len(got)) > LONGEST:
        return False, f"longer than {LONGEST} characters"
    a, b = canonical(gold), canonical(got)
    if a and _spelling(a) == _spelling(b):
        return True, ""
    x, y = read_number(a, units=units), read_number(b, units=units)
    if x is not None and y is not None:
        return _same_number(x, y, tolerance), ""
    try:
        node = parse(b)
        if literal and x is not None and not _is_literal(stated(node)):
            return False, "not a literal number"
        return equal(parse(a), node, _scalars(a, b, tolerance, use_sympy)), ""
    except Unreadable as error:
        return False, str(error)
    except _BROKEN as error:
        # The model's text drove sympy into an error of its own: a wrong answer, not a broken host.
        return False, f"sympy: {type(error).__name__}"


def _spelling(text: str) -> str:
    r"""A text without spaces, \text and the brackets of a choice; words in lower case."""
    text = text.replace(r"\text", "")
    if text.startswith("{") and text.endswith("}") and text.count("{") == 1:
        text = text[1:-1]
    if len(text) == 3 and text[0] + text[2] == "()" and text[1].isalpha():
        text = text[1]
    words = text.split()
    if all(word.isalpha() for word in words) and (len(words) > 1 or len(text) > 2):
        return " ".join(words).casefold()
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _same_number(gold: Number, got: Number, tolerance: float) -> bool:
    """Equal values; a percent sign that one side lacks may be a unit or a hundredth."""
    if gold.unit and got.unit and gold.unit != got.unit:
        return False
    a, b = gold.value, got.value
    if gold.percent == got.percent:
        choices = [b]
    elif gold.percent:
        choices = [b, b * 100]
    else:
        choices = [b / 100] + ([b] if abs(a) >= 1 else [])
    return any(abs(a - c) <= Fraction(tolerance) * abs(a) for c in choices)


def _is_literal(node: Node) -> bool:
    """Whether a node is a number as one writes it down: 8, -8 or 1/2."""
    if node[0] == "neg":
        node = node[1]
    parts = node[1:] if node[0] == "div" else (node,)
    return all(part[0] == "num" for part in parts)


def _scalars(gold: str, got: str, tolerance: float, use_sympy: bool) -> Scalars:
    """The comparisons of `symbolic`, which reach sympy only where that is allowed."""

    def same(a: Node, b: Node) -> bool:
        if a == b:
            return True
        if symbolic.rational(a) is None or symbolic.rational(b) is None:
            if not use_sympy:
                return False
            _require_worker(gold, got)
        return symbolic.same_value(a, b, tolerance=tolerance)

    def proportional(a: Node, b: Node, positive: bool) -> bool:
        if not use_sympy:
            return False
        _require_worker(gold, got)
        return symbolic.proportional(a, b, positive)

    return Scalars(same, proportional)


def _require_worker(gold: str, got: str) -> None:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.name != "posttrain_jax.verifiers.worker":
        raise _NotAWorker(
            f"comparing {got[:60]!r} with {gold[:60]!r} needs sympy, which may hang: score through "
            "posttrain_jax.verifiers.pool.Pool, or pass use_sympy=False"
        )


class _NotAWorker(RuntimeError):
    pass

"""Worked one-step solutions: the operation on two numbers of a word problem that gives its answer.

No language model is asked: the numbers stand in the text, the answer is known, and one of four
operations joins them. Problems where none or two of them do so have no worked solution here.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import permutations

_NUMBER = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?![\d,])|(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)")
_OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}


def worked_equation(problem: str, answer: str) -> str | None:
    """`"7 + 2 = 9"`, or None where no or more than one operation explains the answer.

    a + b and b + a count as one; numbers are written as in the problem.
    """
    numbers = [n.replace(",", "") for n in _NUMBER.findall(problem)]
    try:
        wanted = Fraction(answer.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
    found: dict[tuple, str] = {}
    for a, b in permutations(numbers, 2):
        for sign, operation in _OPERATIONS.items():
            if operation(Fraction(a), Fraction(b)) == wanted:
                pair = tuple(sorted((a, b))) if sign in "+*" else (a, b)
                found.setdefault((sign, pair), f"{a} {sign} {b} = {answer}")
    return next(iter(found.values())) if len(found) == 1 else None

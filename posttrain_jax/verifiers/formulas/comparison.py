"""The symbolic comparison of two answers, as the one function that a jailed process runs.

Sympy may hang or eat all memory on the right text (towers of powers, factorials of factorials), so
`compare` is for processes with limits enforced from outside. Importing this module imports sympy
and the second parser; `warm` makes them import what they import late.
"""

from functools import partial
from typing import Any

import mpmath
import sympy.core.random
from sympy.core.cache import clear_cache

from posttrain_jax.verifiers.formulas import second_parser, symbolic
from posttrain_jax.verifiers.formulas.decision import Rules, beyond_grammar, same_answer
from posttrain_jax.verifiers.formulas.equality import Scalars
from posttrain_jax.verifiers.formulas.expression import Unreadable

_BITS = 53
_BROKEN = (ArithmeticError, AttributeError, LookupError, MemoryError, NotImplementedError)
_BROKEN += (RecursionError, TypeError, ValueError)


def compare(pairs: list[tuple[str, str]], rules: dict[str, Any]) -> list[Any]:
    """Whether one of the pairs of reference and answer is equal, and a note on the last one if not.

    The same whatever was compared before in the same process.

    Args:
      pairs: texts, extracted but otherwise as they were written.
      rules: the fields of `decision.Rules`.
    """
    _forget()
    note = ""
    for gold, got in pairs:
        same, note = _same(gold, got, Rules(**rules))
        if same:
            return [True, ""]
    return [False, note]


def _forget() -> None:
    """Have nothing left of earlier calls in this process that could change, or speed, this one."""
    clear_cache()
    sympy.core.random.seed(0)
    mpmath.mp.prec = _BITS


def _same(gold: str, got: str, rules: Rules) -> tuple[bool, str]:
    value = partial(symbolic.same_value, tolerance=rules.tolerance, precision=rules.precision)
    try:
        same, note = same_answer(gold, got, rules, Scalars(value, symbolic.proportional))
        if same or note or r"\cup" not in gold + got:
            return same, note
    except Unreadable as error:
        if not beyond_grammar(gold) and not beyond_grammar(got):
            return False, str(error)
    except _BROKEN as error:
        # The model's text drove sympy into an error of its own: a wrong answer, not a broken host.
        return False, f"sympy: {type(error).__name__}"
    return second_parser.same(gold, got)


def warm() -> None:
    """Compare a few typical answers, so that a process forked later finds everything imported."""
    pairs = [
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt 3}"),
        (r"\sin^2 x + \log_2 8", r"\tan x"),
        (r"2x+4y=3", r"y = -\frac{x}{2}+\frac34"),
        (r"\begin{pmatrix}1&x\end{pmatrix}", r"\begin{pmatrix}1&x-1\end{pmatrix}"),
        (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"),
        (r"\sum_{k=0}^{n} k", r"\int_0^n x dx"),
    ]
    for pair in pairs:
        compare([pair], {})

"""What a case of the hostile suite is."""

from collections.abc import Mapping
from textwrap import dedent
from typing import Any, NamedTuple

SECRET = 271828
"""What hostile programs would have to return: nothing that they are given leads to it."""
LIMITS = {"cpu_s": 0.4, "wall_s": 8.0, "mem_mb": 256, "out_kb": 64}
WRONG = (0.0, ("fail",))
SLOW = (0.0, ("timeout",))
EITHER = (0.0, ("fail", "timeout"))
RIGHT = (1.0, ("pass",))


class Case(NamedTuple):
    """A response to judge.

    Attributes:
      name: unique in the suite.
      response: what the model wrote.
      example: what it is judged by.
      expected: the right score, and the statuses that are right.
      verifier: which verifier judges it.
      options: of the verifier.
      tier: the lowest tier of isolation at which it comes out right.
    """

    name: str
    response: str
    example: Mapping[str, Any]
    expected: tuple[float, tuple[str, ...]]
    verifier: str = "code"
    options: Mapping[str, Any] = {}
    tier: int = 1


def program(name, source, tests, expected, limits=None):
    """A case of the code verifier: the response is the program itself."""
    example = {"tests": tests, "limits": LIMITS | (limits or {})}
    return Case(name, dedent(source).lstrip("\n"), example, expected, options={"extract": False})


def call(name, source, expected, *, want: Any = SECRET, args=(2,), limits=None):
    """A program whose `f(*args)` should return `want`."""
    cases = [{"args": list(args), "expected": want}]
    return program(name, source, {"type": "call", "fn": "f", "cases": cases}, expected, limits)


def stdio(name, source, expected, *, pairs=(("", str(SECRET)),), limits=None):
    """A program that should print the second of each pair, given the first; three times over, so
    that it runs on all in one process before it gets one for each."""
    cases = [{"input": given, "output": wanted} for given, wanted in pairs] * 3
    limits = {"out_kb": 3 * LIMITS["out_kb"]} | (limits or {})
    return program(name, source, {"type": "stdio", "cases": cases}, expected, limits)


def asserts(name, source, test, expected, limits=None):
    """A program judged by a test's source."""
    return program(name, source, {"type": "asserts", "test": dedent(test)}, expected, limits)

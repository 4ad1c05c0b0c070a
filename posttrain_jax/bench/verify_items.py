"""Items for the benchmark of the verifiers: made here, each with the verdict that is right.

An item is (verifier, options, response, example, right): `right` is True where it must pass. No two
items of a kind are equal, so that no cache can answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

FENCE = "```"
CODE_LIMITS = {"cpu_s": 2.0, "mem_mb": 512}


class Item(NamedTuple):
    """One thing to verify, and whether it must pass."""

    verifier: str
    response: str
    example: dict[str, Any]
    right: bool


def _total(x: int, y: int, shift: int) -> int:
    return sum((k * y + shift) % 7 for k in range(x))


def _program(shift: int) -> str:
    return (
        f"def total(x, y):\n    found = 0\n    for k in range(x):\n"
        f"        found += (k * y + {shift}) % 7\n    return found\n"
    )


def _fenced(program: str) -> str:
    return f"Here it is.\n{FENCE}python\n{program}{FENCE}\n"


def call(number: int, rng: random.Random) -> Item:
    """A function with five cases; every fourth one is wrong in one case."""
    right = number % 4 != 3
    inputs = [(rng.randrange(50), rng.randrange(50)) for _ in range(5)]
    cases = [{"args": list(xy), "expected": _total(*xy, number)} for xy in inputs]
    cases[3]["expected"] += not right
    tests = {"type": "call", "fn": "total", "cases": cases}
    example = {"tests": tests, "limits": CODE_LIMITS}
    return Item("code", _fenced(_program(number)), example, right)


def stdio(number: int, rng: random.Random) -> Item:
    """A program with five inputs; every fourth one is wrong in one case."""
    return _stdio(number, rng, right=number % 4 != 3)


def stdio_right(number: int, rng: random.Random) -> Item:
    """A program with five inputs; all are right."""
    return _stdio(number, rng, right=True)


def _stdio(number: int, rng: random.Random, *, right: bool) -> Item:
    program = _program(number) + "x, y = map(int, input().split())\nprint(total(x, y))\n"
    inputs = [(rng.randrange(50), rng.randrange(50)) for _ in range(5)]
    cases = [{"input": f"{x} {y}\n", "output": f"{_total(x, y, number)}\n"} for x, y in inputs]
    if not right:
        cases[3]["output"] = "-1\n"
    example = {"tests": {"type": "stdio", "cases": cases}, "limits": CODE_LIMITS}
    return Item("code", _fenced(program), example, right)


def math_fast(number: int, rng: random.Random) -> Item:
    """A number to compare with a number."""
    gold = rng.randrange(10_000) / 4
    said = gold if number % 3 else gold + 1
    form = rng.choice(["{}", "{:,}", "${}$", r"\frac{{{}}}{{1}}"]).format(said)
    response = f"We add {number} things.\nThe answer is \\boxed{{{form}}}."
    return Item("math_answer", response, {"gold": str(gold)}, bool(number % 3))


def math_symbolic(number: int, rng: random.Random) -> Item:
    """Formulas of roots and powers."""
    a, b = rng.randrange(2, 90), rng.randrange(2, 90)
    n = number + 2
    gold = rf"\frac{{{a}\sqrt{{{n}}}}}{{{b}}} + x^2"
    right = bool(number % 3)
    said = rf"x \cdot x + {a if right else a + 1}\frac{{\sqrt{{{n}}}}}{{{b}}}"
    return Item("math_answer", rf"So it is \boxed{{{said}}}.", {"gold": gold}, right)


def math_jailed(number: int, rng: random.Random) -> Item:
    """Formulas with functions that only sympy compares, in the jail."""
    a, n = rng.randrange(2, 90), number + 2
    right = bool(number % 3)
    said = rf"{a}\arctan(1) + {n if right else n + 1}"
    return Item(
        "math_answer", rf"\boxed{{{said}}}", {"gold": rf"\frac{{{a}\pi}}{{4}} + {n}"}, right
    )


TEXT = "the river bends slowly towards a quiet village where people mend old nets and sing"


def ifeval(number: int, rng: random.Random) -> Item:
    """Two constraints on a text of some 120 words; every fourth text breaks one."""
    right = number % 4 != 3
    lines = [" ".join(rng.choices(TEXT.split(), k=12)).capitalize() + "." for _ in range(9)]
    text = "\n".join([f"<<Number {number}>>", *lines, "* one", "* two" if right else "two"])
    choice = (
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}),
        ("detectable_format:title", {}),
        ("keywords:forbidden_words", {"forbidden_words": ["boat", "storm"]}),
        ("length_constraints:number_words", {"relation": "at least", "num_words": 80}),
        ("punctuation:no_comma", {}),
    )
    chosen = [choice[0], *rng.sample(choice[1:], 1)]
    example = {
        "instruction_id_list": [name for name, _ in chosen],
        "kwargs": [kwargs for _, kwargs in chosen],
    }
    return Item("ifeval", text, example, right)


HOSTILE = (
    "def total(x, y):\n    while True:\n        pass\n",
    "import os\ndef total(x, y):\n    while True:\n        os.fork()\n",
    "def total(x, y):\n    return bytearray(1 << 40)\n",
    "import os\ndef total(x, y):\n    os._exit(0)\n",
    "import os\ndef total(x, y):\n    os.kill(os.getppid(), 9)\n    return 0\n",
    "class Any:\n    def __eq__(self, other):\n        return True\n"
    "def total(x, y):\n    return Any()\n",
    "def total(x, y):\n    print('x' * 10**9)\n    return 0\n",
    "import sys\nsys.setrecursionlimit(10**9)\ndef total(x, y):\n    return total(x, y)\n",
    "def total(x, y):\n    return 9 ** 9 ** 9 ** 9\n",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
    "def total(x, y):\n    return -1\n",
)


def hostile(number: int, rng: random.Random) -> Item:
    """A program that hangs, bombs, kills, floods or cheats; none is right."""
    made = call(number * 4, rng)
    program = f"# {number}\n{HOSTILE[number % len(HOSTILE)]}"
    example = {**made.example, "limits": {"cpu_s": 0.3, "wall_s": 1.0, "mem_mb": 256}}
    return Item("code", _fenced(program), example, False)


KINDS: dict[str, Callable[[int, random.Random], Item]] = {
    "code, five calls": call,
    "code, five inputs": stdio,
    "code, five inputs, all right": stdio_right,
    "math, fast": math_fast,
    "math, symbolic": math_symbolic,
    "math, by sympy": math_jailed,
    "ifeval": ifeval,
}


def make(kind: str, count: int, seed: int = 0) -> list[Item]:
    """Items of one kind."""
    rng = random.Random(f"{kind}/{seed}")
    return [KINDS[kind](seed * 1_000_003 + number, rng) for number in range(count)]


def mixed(count: int, hostile_share: float, seed: int = 0) -> list[Item]:
    """All kinds in turn, and hostile programs among them."""
    rng = random.Random(f"mixed/{seed}")
    kinds = list(KINDS.values())
    return [
        (hostile if rng.random() < hostile_share else kinds[number % len(kinds)])(number, rng)
        for number in range(count)
    ]

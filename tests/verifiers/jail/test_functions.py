"""Calls of trusted functions that share a guest: `eval` stands in for one."""

import random
import time
from pathlib import Path

import pytest

from posttrain_jax.verifiers import math_answer
from posttrain_jax.verifiers.formulas.decision import Rules
from posttrain_jax.verifiers.jail import Jail, Limits, Result, functions

LIMITS = Limits(cpu_s=0.6, wall_s=3.0, mem_mb=256, out_kb=4)
PID = "__import__('os').getpid()"
BURN = "next(t for t in iter(__import__('time').process_time, None) if t > {})"


def call(jail, expression, limits=LIMITS):
    return jail.run({"mode": "function", "target": "builtins:eval", "args": [expression]}, limits)


def pid(jail):
    outcome = call(jail, PID)
    assert outcome.status == "ok", outcome
    return outcome.results[0].value


@pytest.fixture(autouse=True)
def fresh(jail):
    """No guest left by the test before."""
    call(jail, "1", LIMITS._replace(out_kb=5))


def test_a_guest_serves_so_many_calls(any_jail):
    call(any_jail, "1", LIMITS._replace(out_kb=5))
    pids = [pid(any_jail) for _ in range(2 * functions.CALLS + 1)]
    assert [pids.count(one) for one in dict.fromkeys(pids)] == [functions.CALLS] * 2 + [1]


def test_another_module_or_other_limits_take_another_guest(jail):
    first = pid(jail)
    assert call(jail, PID, LIMITS._replace(mem_mb=300)).results[0].value != first
    job = {"mode": "function", "target": "math:factorial", "args": [5]}
    assert jail.run(job, LIMITS).results == [Result(120)]


@pytest.mark.parametrize(
    "expression, status, error",
    [
        ("__import__('time').sleep(60)", "timeout", None),
        ("[1 for _ in iter(int, 1)]", "timeout", None),
        ("__import__('os')._exit(0)", "died", None),
        ("__import__('os').abort()", "died", None),
        ("'x' * 10**6", "output", None),
        ("__import__('os').write(3, b'junk' * 4)", "died", None),
        ("bytearray(1 << 40)", "memory", "MemoryError"),
        ("1 / 0", "ok", "ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_costs_its_own_call_only(jail, expression, status, error):
    before = pid(jail)
    limits = LIMITS._replace(wall_s=0.7)
    outcome = call(jail, expression, limits if "sleep" in expression else LIMITS)
    assert outcome.status == status
    if error:
        assert (outcome.results[0].error or "").startswith(error)
    assert (pid(jail) == before) == (status == "ok")


def test_each_call_has_the_cpu_time_to_itself(jail):
    for turn in range(1, 4):  # 0.35 s each; a guest's clock goes on from call to call
        assert call(jail, BURN.format(0.35 * turn)).status == "ok"
    assert call(jail, BURN.format(0.35 * 3 + 0.8)).status == "timeout"


def test_a_call_that_took_much_memory_is_the_last_of_its_guest(jail):
    before = pid(jail)
    assert call(jail, "len(b'x' * (8 << 20))").results == [Result(8 << 20)]
    assert pid(jail) == before
    assert call(jail, "len(b'x' * (64 << 20))").results == [Result(64 << 20)]
    assert pid(jail) != before
    for _ in range(4):  # each as much as there is, were the one before still there
        kept = "globals().setdefault('kept', []).append(b'x' * (200 << 20))"
        assert call(jail, kept).results == [Result(None)]


def test_a_guest_that_died_between_calls_is_replaced(jail):
    first = pid(jail)
    timer = "__import__('signal').setitimer(0, 0.05)"  # nobody catches it
    assert call(jail, timer).status == "ok"
    time.sleep(0.4)
    assert pid(jail) != first


def test_random_numbers_start_anew(jail):
    drawn = {call(jail, "__import__('random').random()").results[0].value for _ in range(3)}
    assert len(drawn) == 1


def test_nothing_is_left_open(tier):
    with Jail() as jail:
        pid(jail)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(5):
            pid(jail)
            call(jail, "__import__('os')._exit(0)", LIMITS._replace(out_kb=4 + number % 2))
            pid(jail)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


PAIRS = [
    (r"\frac{7\pi}{4}+5", r"7\arctan(1)+5"),
    (r"\frac{7\pi}{4}+5", r"7\arctan(1)+6"),
    (r"\frac{n(n+1)}{2}", r"\sum_{k=0}^{n} k"),
    (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} 2k"),
    ("2i", r"\sqrt{-4}"),
    (r"\frac{1}{3}", r"\int_0^1 x^2 dx"),
    (r"\frac{1}{3}", r"\int_0^1 x^3 dx"),
    ("0", r"\lim_{x \to \infty} \frac{1}{x}"),
    (r"(-\infty,0)\cup(0,\infty)", r"\mathbb{R}\setminus\{0\}"),
    (r"(-\infty,0)\cup(0,\infty)", r"\mathbb{R}\setminus\{1\}"),
    (r"\arcsin x", r"\frac{\pi}{2}-\arccos x"),
    ("8", r"e^{e^{e^{e^{10}}}}+\arctan x"),
    ("8", r"\sum_{n=1}^{10^{12}} \frac{1}{n^{3}+7}"),
    ("8", r"\int_0^1 e^{x^{17}} \sin(x^{13}) \log(1+x^{11}) dx"),
    ("8", r"\int" * 50 + "x"),
    ("n!", r"\prod_{k=1}^n k"),
]


def test_answers_do_not_depend_on_what_the_guest_compared_before(tier, monkeypatch):
    limits = Limits(cpu_s=1.0, wall_s=30.0)
    jobs = [
        {
            "mode": "function",
            "target": "posttrain_jax.verifiers.formulas.comparison:compare",
            "args": [[pair], Rules()._asdict()],
        }
        for pair in PAIRS
    ]
    with Jail(math_answer.JAIL) as jail:

        def judged(order):
            found = {number: jail.run(jobs[number], limits) for number in order}
            return [found[number][:2] for number in range(len(jobs))]

        with monkeypatch.context() as alone:
            alone.setattr(functions, "CALLS", 1)
            expected = judged(range(len(jobs)))
        values = [results[0].value[0] for status, results in expected if status == "ok"]
        assert True in values and False in values
        for seed in range(3):
            order = random.Random(seed).sample(range(len(jobs)), len(jobs))
            assert judged(order) == expected

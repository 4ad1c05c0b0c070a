"""Programs, judged by their tests in a jail: calls, standard input and output, asserts.

The program runs in a process that never holds what is expected of it. It sends plain values or
text back, and this side compares. How far that went stands in the verdict's `trust`:

- `value`: call and stdio cases, and asserts that could be taken apart (`programs.asserts`).
- `proxy`: a test with loops and the like runs in a jailed process of its own and calls the program
  over a pipe.
- `inproc`: a test that gives the program live objects (a lambda, an instance) shares a process with
  it. Such a program could find out what is expected; with the other two it can't.

Sources: the example formats are those of HumanEval (arXiv 2107.03374), MBPP (2108.07732) and, for
call and stdio cases, APPS (2105.09938). Not covered: tests that need a network, several processes
or packages that the jail's Python hasn't got; special judges for problems with several right
outputs.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers.jail import Jail, Limits, Outcome, Result, shared
from posttrain_jax.verifiers.programs import asserts, cases, checks, together
from posttrain_jax.verifiers.programs.compare import PYTHON, RECORDS, same, same_output
from posttrain_jax.verifiers.programs.extract import join, program
from posttrain_jax.verifiers.programs.steps import Unreadable

JAIL = ()
"""What the jail imports before it forks: nothing but what it needs itself."""
CACHED = True
"""A verdict depends on nothing but the response, the example and the options."""

_NAMED = 3
_LEAST_CPU = 0.5
_OPAQUE_ARGUMENT = "Opaque: an argument of the test"


_Job = dict[str, Any]
"""The program and its files."""


class _Report(NamedTuple):
    """What came of a program: for every case None or why it failed, and how the process ended."""

    reasons: list[str | None]
    outcome: Outcome
    trust: str = "value"


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    extract: bool = True,
    partial: bool = False,
    tolerance: float | None = None,
    limits: Mapping[str, float] | None = None,
    think_tag: str = "think",
    answer_tag: str = "answer",
    allow_unsandboxed: bool = False,
) -> Verdict:
    """1 where the program in a response passes all its tests, 0 otherwise.

    The verdict's detail is JSON: `passed`, `of`, the first `failed` cases with their reasons, and
    how the process ended where that wasn't by itself.

    Args:
      response: the completion.
      example: the tests, in one of the forms that `programs.cases` lists.
      extract: find the program in the response (`programs.extract`); False takes all of it.
      partial: score the share of the cases (or asserts) that passed. A test that can't be taken
        apart is one case.
      tolerance: how far a float may be from the expected one, relative above 1, absolute below.
        None is 1e-9 for call cases, and none for stdio (the same text) and asserts (Python's
        `==`, see `programs.compare`). `example["tolerance"]` comes first.
      limits: `wall_s`, `cpu_s`, `mem_mb`, `out_kb` for the whole item; those in
        `example["limits"]` come first.
      think_tag, answer_tag: the names of the tags.
      allow_unsandboxed: run programs with the rights of this user where the host offers no
        isolation (tier T0).

    Raises:
      ValueError: the example or an option is wrong; the message names the field.
      RuntimeError: the host offers no isolation, or (`jail.Poisoned`) the item killed two zygotes.
    """
    tests = cases.read(example)
    bounds = _limits(limits, example)
    margin = _tolerance(example.get("tolerance", tolerance))
    text = response
    if extract:
        text = program(response, think_tag=think_tag, answer_tag=answer_tag)
    if not text.strip():
        return Verdict(0.0, "fail", json.dumps({"note": "no program in the response"}))
    jail = shared(JAIL, allow_unsandboxed=allow_unsandboxed)
    job = {"program": text, "files": cases.files(example)}
    if isinstance(tests, cases.Asserts):
        if tests.prompt and tests.entry_point:
            job["program"] = join(tests.prompt, text, tests.entry_point)
        report = _asserts(jail, job, tests, bounds, margin)
    elif isinstance(tests, cases.Calls):
        report = _calls(jail, job, tests.cases, bounds, margin)
    else:
        report = _stdio(jail, job, tests.cases, bounds, margin)
    return _verdict(report, partial)


def _limits(limits: Mapping[str, float] | None, example: Mapping[str, Any]) -> Limits:
    own = example.get("limits") or {}
    for name, given in (("limits", limits or {}), ("example['limits']", own)):
        if not isinstance(given, Mapping):
            raise ValueError(f"{name} is a {type(given).__name__}, expected {{name: number}}")
        if unknown := given.keys() - set(Limits._fields):
            known = ", ".join(Limits._fields)
            raise ValueError(
                f"{name}: no limit {sorted(map(str, unknown))[0]!r}; there are {known}"
            )
    # The jail checks the numbers.
    return Limits(**{**(limits or {}), **own})


def _tolerance(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value < math.inf):
        raise ValueError(f"tolerance is {value!r}, expected a number from 0 up, or None")
    return value


def _calls(
    jail: Jail, job: _Job, tests: list[cases.Call], limits: Limits, tolerance: float | None
) -> _Report:
    calls = [{"fn": c.fn, "args": c.args, "kwargs": c.kwargs} for c in tests]
    outcome = jail.run({"mode": "call", **job, "calls": calls}, limits)
    rules = RECORDS if tolerance is None else RECORDS._replace(tolerance=tolerance)

    def reason(case: cases.Call, result: Result) -> str | None:
        if same(case.expected, result.value, rules):
            return None
        return f"{checks.shown(result.value)}, expected {checks.shown(case.expected)}"

    return _Report(_each(tests, outcome, reason), outcome)


def _stdio(
    jail: Jail, job: _Job, tests: list[cases.Stdio], limits: Limits, tolerance: float | None
) -> _Report:
    if not job["files"] and together.passes(jail, job["program"], tests, limits, tolerance):
        return _Report([None] * len(tests), Outcome("ok", []))
    inputs = [case.input for case in tests]
    outcome = jail.run({"mode": "stdio", **job, "inputs": inputs}, limits)

    def reason(case: cases.Stdio, result: Result) -> str | None:
        if same_output(case.output, result.value, tolerance):
            return None
        return f"{checks.shown(result.value)}, expected {checks.shown(case.output)}"

    return _Report(_each(tests, outcome, reason), outcome)


def _each(
    tests: list[Any], outcome: Outcome, reason: Callable[[Any, Result], str | None]
) -> list[str | None]:
    """The reason of every case; those past the end of the results have none that is better."""
    reasons: list[str | None] = [f"not reached: {outcome.status}"] * len(tests)
    for i, (case, result) in enumerate(zip(tests, outcome.results, strict=False)):
        reasons[i] = result.error or reason(case, result)
    return reasons


def _asserts(
    jail: Jail, job: _Job, tests: cases.Asserts, limits: Limits, tolerance: float | None
) -> _Report:
    report = _Report([None], Outcome("ok", []))
    for source in tests.sources:
        try:
            plan = asserts.plan(source, tests.entry_point)
        except Unreadable:
            report = _whole_test(jail, job, source, tests.entry_point, limits)
        else:
            report = _in_parts(jail, job, plan, limits, tolerance)
        if any(report.reasons):
            break
    return report


def _in_parts(
    jail: Jail, job: _Job, plan: asserts.Plan, limits: Limits, tolerance: float | None
) -> _Report:
    """A test that was taken apart: its steps beside the program, the rest without it."""
    outcome = jail.run({"mode": "eval", **job, "expressions": list(plan.steps)}, limits)
    found: list[Result] = []
    if (source := checks.room_program(plan, outcome.results)) is not None:
        clean = {"mode": "eval", "program": source, "expressions": list(plan.room)}
        rest = jail.run(clean, _left(limits, outcome))
        if rest.status == "infra_error" or outcome.status == "ok":
            outcome = outcome._replace(status=rest.status, detail=rest.detail)
        found = rest.results
        checks.raise_own_errors(plan, found)
    rules = PYTHON if tolerance is None else PYTHON._replace(tolerance=tolerance)
    return _Report(checks.judge(plan, outcome.results, found, rules), outcome)


def _left(limits: Limits, outcome: Outcome) -> Limits:
    """What is left of an item's CPU time, for a second process."""
    return limits._replace(cpu_s=max(_LEAST_CPU, limits.cpu_s - outcome.cpu_s))


def _whole_test(
    jail: Jail, job: _Job, test: str, entry_point: str | None, limits: Limits
) -> _Report:
    """A test in one piece: against a proxy, or beside the program where objects can't cross."""
    whole = {**job, "test": test, "entry_point": entry_point or asserts.tested(test)}
    outcome, trust = jail.run({"mode": "check", **whole}, limits), "proxy"
    if outcome.results and (outcome.results[0].error or "").startswith(_OPAQUE_ARGUMENT):
        left = _left(limits, outcome)
        outcome, trust = jail.run({"mode": "check_inproc", **whole}, left), "inproc"
    reason: str | None = f"not reached: {outcome.status}"
    if outcome.results:
        result = outcome.results[0]
        reason = result.error or (None if result.value is True else "the test didn't pass")
    return _Report([reason], outcome, trust)


def _verdict(report: _Report, partial: bool) -> Verdict:
    reasons, outcome = report.reasons, report.outcome
    if outcome.status == "infra_error":
        return Verdict(0.0, "infra_error", outcome.detail, report.trust)
    passed = reasons.count(None)
    failed = [{"case": i, "why": why[:200]} for i, why in enumerate(reasons) if why is not None]
    detail: dict[str, Any] = {"passed": passed, "of": len(reasons)}
    if not failed:
        return Verdict(1.0, "pass", json.dumps(detail), report.trust)
    detail["failed"] = failed[:_NAMED]
    if outcome.status != "ok":
        detail["ended"] = f"{outcome.status}: {outcome.detail}"[:200]
    status = "timeout" if outcome.status == "timeout" else "fail"
    score = passed / len(reasons) if partial else 0.0
    return Verdict(score, status, json.dumps(detail), report.trust)

"""The modes of a job: what each takes, and how its processes' results become an `Outcome`.

| mode | takes | one `Result` |
|---|---|---|
| call | program, calls: [{"fn", "args", "kwargs"?}] | a call: what it returned |
| eval | program, expressions: [str] | an expression: its value |
| stdio | program, inputs: [str] | an input: the standard output |
| stdio_together | program, inputs: [str] | the same, all in one process (`together`) |
| check | program, test, entry_point | True, or why the test failed |
| check_inproc | program, test, entry_point | the same, test and program in one process |
| function | target: "package.module:function", args | what our own function returned |

All but "stdio_together" and "function" take files: {name: text}, which lie in the working folder.
"""

import os
import secrets
from collections.abc import Callable
from typing import Any

from posttrain_jax.verifiers.jail import functions, together
from posttrain_jax.verifiers.jail.connection import Connection, memory_file
from posttrain_jax.verifiers.jail.limits import Limits
from posttrain_jax.verifiers.jail.outcome import Outcome, Result
from posttrain_jax.verifiers.jail.values import Opaque, encode
from posttrain_jax.verifiers.jail.watch import Watch, ended_well, exit_name, outcome
from posttrain_jax.verifiers.jail.wire import dumps

Run = Callable[[Connection], Outcome]
_FIELDS = {
    "call": ("program", "calls"),
    "eval": ("program", "expressions"),
    "stdio": ("program", "inputs"),
    "stdio_together": ("program", "inputs"),
    "check": ("program", "test", "entry_point"),
    "check_inproc": ("program", "test", "entry_point"),
    "function": ("target", "args"),
}
_TYPES = {
    "program": str, "calls": list, "expressions": list, "inputs": list, "test": str,
    "entry_point": str, "target": str, "args": list,
}  # fmt: skip


def make(job: dict[str, Any], limits: Limits) -> Run:
    """The job as a function of a connection.

    Raises:
      ValueError, KeyError, TypeError: a field is missing, unknown or of the wrong type; the
        message names it.
    """
    mode = job.get("mode")
    if mode not in _FIELDS:
        raise ValueError(f"job: mode {mode!r}, expected one of {', '.join(_FIELDS)}")
    for name in _FIELDS[mode]:
        if name not in job:
            raise KeyError(f"job: mode {mode!r} needs {name!r}")
        if not isinstance(job[name], _TYPES[name]):
            kind = type(job[name]).__name__
            raise TypeError(f"job: {name!r} is a {kind}, expected {_TYPES[name].__name__}")
    if unknown := job.keys() - {"mode", "files", *_FIELDS[mode]}:
        raise ValueError(f"job: unknown fields {sorted(unknown)} for mode {mode!r}")
    return _MAKE[mode](job, _files(job.get("files") or {}), limits)


def _files(files: Any) -> dict[str, str]:
    for name, text in files.items():
        parts = name.split("/")
        if not isinstance(text, str) or name.startswith("/") or {"", ".", ".."} & {*parts}:
            raise ValueError(f"job: file {name!r}, expected a plain relative name and a text")
    return dict(files)


def _tagged(value: Any, what: str) -> Any:
    try:
        return encode(value)
    except Opaque as error:
        raise TypeError(f"job: {what}: {error}") from error


def _one(kind: str, body: dict[str, Any], expected: int, limits: Limits) -> Run:
    """A job of one process that reports so many results."""
    data = dumps(body)

    def run(connection: Connection) -> Outcome:
        file = memory_file(data)
        try:
            watch = connection.start(kind, limits, (file,))
        finally:
            os.close(file)
        connection.finish([watch], limits.wall)
        return outcome(watch, expected)

    return run


def _call(job: dict[str, Any], files: dict[str, str], limits: Limits) -> Run:
    calls = [
        [call["fn"], _tagged(list(call["args"]), "args"), _tagged(call.get("kwargs", {}), "kwargs")]
        for call in job["calls"]
    ]
    body = {"program": job["program"], "files": files, "calls": calls}
    return _one("call", body, len(calls), limits)


def _eval(job: dict[str, Any], files: dict[str, str], limits: Limits) -> Run:
    body = {"program": job["program"], "files": files, "expressions": job["expressions"]}
    return _one("eval", body, len(job["expressions"]), limits)


def _function(job: dict[str, Any], files: dict[str, str], limits: Limits) -> Run:
    module, colon, name = job["target"].partition(":")
    if not (module and colon and name):
        raise ValueError(f"job: target {job['target']!r}, expected 'package.module:function'")
    args = _tagged(job["args"], "args")
    return lambda connection: functions.call(connection, job["target"], args, limits)


def _stdio(job: dict[str, Any], files: dict[str, str], limits: Limits) -> Run:
    """A process an input, one after the other, within the limits of all together."""
    data, inputs = dumps({"program": job["program"], "files": files}), _encoded(job)

    def run(connection: Connection) -> Outcome:
        file = memory_file(data)
        results, left, used = [], limits, 0.0
        try:
            for text in inputs:
                watch = _start_stdio(connection, left, file, text)
                connection.finish([watch], left.wall)
                used += watch.cpu_s
                output = watch.text.decode("utf-8", "replace")
                if failure := watch.failure():
                    results.append(Result(output, failure[1]))
                    return Outcome(failure[0], results, failure[1], used)
                results.append(Result(output, _stdio_error(watch)))
                left = left._replace(
                    cpu_s=max(left.cpu_s - watch.cpu_s, 1e-3),
                    wall_s=max(left.wall - watch.wall_s, 1e-3),
                    out_kb=max(left.out_kb - len(watch.text) / 1024, 1e-3),
                )
        finally:
            os.close(file)
        return ended_well(results, used)

    return run


def _together(job: dict[str, Any], files: dict[str, str], limits: Limits) -> Run:
    if files:
        raise ValueError("job: mode 'stdio_together' takes no files: a program could change them")
    inputs = _encoded(job)
    return lambda connection: together.run(connection, job["program"], inputs, limits)


def _encoded(job: dict[str, Any]) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in job["inputs"]]


def _start_stdio(connection: Connection, limits: Limits, file: int, text: bytes) -> Watch:
    standard_input = memory_file(text)
    try:
        return connection.start("stdio", limits, (file, standard_input), output=True)
    finally:
        os.close(standard_input)


def _stdio_error(watch: Watch) -> str | None:
    """The uncaught exception, or the exit code that isn't 0, or the signal."""
    for row in watch.rows:
        if len(row) == 2 and row[0] == "e" and isinstance(row[1], str):
            return row[1]
    if watch.code:
        return f"{'Died' if watch.code < 0 else 'ExitCode'}: {exit_name(watch.code)}"
    return None


def _check(job: dict[str, Any], files: dict[str, str], limits: Limits) -> Run:
    program = dumps({"program": job["program"], "files": files})
    test = dumps({"test": job["test"], "entry_point": job["entry_point"]})

    def run(connection: Connection) -> Outcome:
        requests, replies = os.pipe(), os.pipe()
        memory = (memory_file(program), memory_file(test))
        try:
            asked = connection.start("program", limits, (memory[0], requests[0], replies[1]))
            asks = connection.start("test", limits, (memory[1], replies[0], requests[1]))
        finally:
            for fd in (*requests, *replies, *memory):
                os.close(fd)
        connection.finish([asks], limits.wall, beside=(asked,))
        verdict = _verdict(outcome(asks, 1), asked)
        return verdict._replace(cpu_s=asks.cpu_s + asked.cpu_s)

    return run


def _verdict(verdict: Outcome, asked: Watch) -> Outcome:
    """The test's outcome; where it isn't a pass because the program ended early, how that did."""
    passed = bool(verdict.results) and verdict.results[0] == Result(True)
    if passed or (asked.end or {}).get("killed") == "asked":
        return verdict
    failure = asked.failure()
    ended = any((result.error or "").startswith("Died: ") for result in verdict.results)
    if failure is None and (asked.code or ended):
        failure = ("died", f"the program ended: {exit_name(asked.code)}")
    return verdict._replace(status=failure[0], detail=failure[1]) if failure else verdict


def _inproc(job: dict[str, Any], files: dict[str, str], limits: Limits) -> Run:
    token = secrets.token_hex(16)
    program = dumps({"program": job["program"], "files": files})
    test = dumps({"test": job["test"], "entry_point": job["entry_point"], "token": token})

    def run(connection: Connection) -> Outcome:
        memory = (memory_file(program), memory_file(test))
        try:
            watch = connection.start("inproc", limits, memory)
        finally:
            for fd in memory:
                os.close(fd)
        connection.finish([watch], limits.wall)
        verdict = outcome(watch, 1)
        results = [
            Result(True) if r == Result(token) else Result(None, r.error or "Died: a forged result")
            for r in verdict.results
        ]
        return verdict._replace(results=results)

    return run


_MAKE: dict[str, Callable[[dict[str, Any], dict[str, str], Limits], Run]] = {
    "call": _call,
    "eval": _eval,
    "stdio": _stdio,
    "stdio_together": _together,
    "check": _check,
    "check_inproc": _inproc,
    "function": _function,
}

"""`posttrain verify`: a file of responses in, a file of verdicts out.

A row of the input is a JSON object with

  id         text or an integer, copied to the verdict
  verifier   a file of `posttrain_jax/verifiers/`, by name
  response   the text to judge
  example    what the verifier reads (references, tests); an object, {} where left out
  options    the keyword arguments of its `score`; an object, {} where left out
  limits     for verifiers with this option: as if it stood in `options`

and other fields are not looked at. A verdict is `{"id", "score", "status", "trust", "seconds",
"detail"}` (see `api.Verdict`), in the order of the input.

The whole input is checked before anything runs: a row that can't be judged is refused with its
number and field, so no work is lost to a slip further down. A field that only the verifier knows to
be missing from `example` gives that row the status `infra_error`, and its number and reason are
printed at the end. Verdicts are written as they come, so a run that was killed continues after the
last whole line when it is given again; the ids must agree. Memory doesn't grow with the file.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import inspect
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from posttrain_jax.files import FileError
from posttrain_jax.verifiers.terms import load_verifier

_IN_FLIGHT = 32
_MOST_PROBLEMS = 20
_TYPES = {"text": str, "an object": dict}


class Case(NamedTuple):
    """A row of the input; `row` is its line, counted from 1."""

    row: int
    id: str | int
    verifier: str
    response: str
    example: dict[str, Any]
    options: dict[str, Any]


class Tally:
    """What the verdicts of a file come to.

    Attributes:
      verifiers: those that rows name.
      statuses: verdicts by status.
      score: the sum of the scores that aren't an `infra_error`'s.
      problems: `(row, id, detail)` of the first rows that are.
    """

    def __init__(self) -> None:
        self.verifiers: set[str] = set()
        self.statuses = Counter[str]()
        self.score = 0.0
        self.problems: list[tuple[int, str | int, str]] = []

    def add(self, row: int, verdict: dict[str, Any]) -> None:
        """Count one verdict, as it is written."""
        self.statuses[verdict["status"]] += 1
        if verdict["status"] != "infra_error":
            self.score += verdict["score"]
        elif len(self.problems) < _MOST_PROBLEMS:
            self.problems.append((row, verdict["id"], verdict["detail"]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `posttrain verify`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--input", type=Path, required=True, help="rows to judge (JSONL)")
    parser.add_argument("--output", type=Path, required=True, help="their verdicts (JSONL)")
    parser.add_argument("--workers", type=int, default=cores or 1, help="processes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def main(args: argparse.Namespace) -> int:
    """`posttrain verify --input CASES --output VERDICTS`.

    Returns:
      0 once every row has a verdict, whatever it is.

    Raises:
      FileError: the input can't be read or has a bad row, or the output is of another input.
      ValueError: `workers` below 1.
    """
    if args.workers < 1:
        raise ValueError(f"--workers={args.workers}: expected at least 1")
    begun, tally = time.monotonic(), Tally()
    with _output(args.input, args.output) as file:
        rows, resumed = _check(args.input, file, args.output, tally)
        if resumed:
            print(f"{args.output}: continuing after row {resumed}", file=sys.stderr)
        if rows > resumed:
            _judge(args.input, file, args.workers, resumed, tally)
    seconds = time.monotonic() - begun
    summary = _summary(tally, resumed, seconds)
    _complain(tally)
    if args.json:
        print(json.dumps(summary))
    else:
        _print_table(summary)
    return 0


@contextlib.contextmanager
def _output(source: Path, path: Path) -> Iterator[BinaryIO]:
    """The output, open to read and append; gone again where nothing came to stand in it."""
    if not source.is_file():
        raise FileError(f"--input {source}: {'not a file' if source.exists() else 'no such file'}")
    new = not path.exists()
    if not new and (not path.is_file() or path.samefile(source)):
        raise FileError(f"--output {path}: expected a file of its own, to write verdicts to")
    with open(path, "a+b") as file:
        try:
            # A lock of the process, not of the descriptor: children don't keep it alive.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FileError(f"--output {path}: another process is writing it") from error
        try:
            yield file
        except FileError:
            if new:
                path.unlink()
            raise


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers."""
    return ((row, line) for row, line in enumerate(file, start=1) if not line.isspace())


def _check(source: Path, file: BinaryIO, path: Path, tally: Tally) -> tuple[int, int]:
    """Read the whole input, and the verdicts that are there; how many there are of each.

    A last line that wasn't written to its end is cut off.

    Raises:
      FileError: with the numbers and faults of the first bad rows, or of a foreign verdict.
    """
    file.seek(0)
    problems, count, done, end = [], 0, 0, 0
    with open(source, "rb") as rows:
        for row, line in _lines(rows):
            count += 1
            try:
                case = parse(row, line)
            except ValueError as error:
                problems.append(f"row {row}: {error}")
                if len(problems) == _MOST_PROBLEMS:
                    break
                continue
            tally.verifiers.add(case.verifier)
            written = file.readline() if not problems else b""
            if written.endswith(b"\n"):
                tally.add(row, _written(written, case, path, source))
                done, end = done + 1, end + len(written)
    if problems:
        raise FileError("\n  ".join([f"{source} has rows that can't be judged:", *problems]))
    if file.readline().endswith(b"\n"):
        raise FileError(f"{path} has more rows than {source}; choose another --output")
    file.truncate(end)
    return count, done


def parse(row: int, line: bytes) -> Case:
    """A row of the input.

    Raises:
      ValueError: what is wrong with which field, what was expected, what was there.
    """
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"{_kind(value)}, expected an object")
    name = value.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"field 'id' is {_kind(name)}, expected text or an integer")
    verifier, response = _field(value, "verifier", "text"), _field(value, "response", "text")
    example = _field(value, "example", "an object", {})
    options = _field(value, "options", "an object", {})
    if "limits" in value:
        options = {**options, "limits": _field(value, "limits", "an object")}
    try:
        _signature(verifier).bind(response, example, **options)
    except TypeError as error:
        raise ValueError(f"field 'options' of verifier {verifier!r}: {error}") from error
    return Case(row, name, verifier, response, example, options)


def _field(row: dict[str, Any], name: str, wanted: str, default: Any = None) -> Any:
    value = row.get(name, default)
    if not isinstance(value, _TYPES[wanted]):
        raise ValueError(f"field {name!r} is {_kind(value)}, expected {wanted}")
    return value


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing or null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")


@lru_cache(maxsize=256)
def _signature(verifier: str) -> inspect.Signature:
    if verifier.endswith(".py"):
        raise ValueError(
            f"field 'verifier' is {verifier!r}: a row doesn't name a program to run; put the file "
            "into posttrain_jax/verifiers/ and give its name"
        )
    try:
        return inspect.signature(load_verifier(verifier).score)
    except ValueError as error:
        raise ValueError(f"field 'verifier': {error}") from error


def _written(line: bytes, case: Case, path: Path, source: Path) -> dict[str, Any]:
    """A verdict that an earlier run wrote about a case."""
    verdict: Any = None
    with contextlib.suppress(ValueError):
        verdict = json.loads(line)
    fields = {"score": float, "status": str, "detail": str}
    whole = isinstance(verdict, dict) and all(
        isinstance(verdict.get(name), kind) for name, kind in fields.items()
    )
    if not whole or verdict.get("id") != case.id:
        raise FileError(
            f"{path} doesn't hold the verdict on {case.id!r}, row {case.row} of {source}, where it "
            "should: it is of another input. Choose another --output, or delete it"
        )
    return verdict


def _judge(source: Path, file: BinaryIO, workers: int, skip: int, tally: Tally) -> None:
    """Append the verdicts on all rows after the first `skip`."""
    from posttrain_jax.verifiers.pool import Pool

    term = {"verifier": "by_example", "verifiers": sorted(tally.verifiers)}
    pool = Pool({"row": term}, workers=workers, max_infra_share=1.0)
    with open(source, "rb") as rows, pool:
        waiting: deque[tuple[Case, Any]] = deque()

        def write_first() -> None:
            case, future = waiting.popleft()
            found = future.result()
            verdict = {"id": case.id, **found.verdicts[0][0]._asdict()}
            verdict["seconds"] = round(float(found.seconds_BW[0, 0]), 6)
            order = ("id", "score", "status", "trust", "seconds", "detail")
            file.write(json.dumps({name: verdict[name] for name in order}).encode() + b"\n")
            file.flush()
            tally.add(case.row, verdict)

        for number, (row, line) in enumerate(_lines(rows)):
            if number < skip:
                continue
            if len(waiting) == _IN_FLIGHT * workers:
                write_first()
            case = parse(row, line)
            named = {"verifier": case.verifier, "verifier_options": case.options}
            future = pool.submit([case.response], [{**case.example, **named}])
            waiting.append((case._replace(response="", example={}), future))
        while waiting:
            write_first()
    os.fsync(file.fileno())


def _summary(tally: Tally, resumed: int, seconds: float) -> dict[str, Any]:
    rows = tally.statuses.total()
    judged = rows - tally.statuses["infra_error"]
    return {
        "rows": rows,
        "resumed": resumed,
        "statuses": dict(sorted(tally.statuses.items())),
        "mean_score": tally.score / judged if judged else None,
        "seconds": round(seconds, 3),
        "items_per_second": round((rows - resumed) / seconds, 1),
    }


def _complain(tally: Tally) -> None:
    """Name the rows that couldn't be judged, on stderr."""
    if not (count := tally.statuses["infra_error"]):
        return
    print(f"{count} rows could not be judged (infra_error):", file=sys.stderr)
    for row, name, detail in tally.problems:
        print(f"  row {row} ({name}): {detail}", file=sys.stderr)
    if count > len(tally.problems):
        print(f"  and {count - len(tally.problems)} more", file=sys.stderr)


def _print_table(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("status", "rows", "share")
    for status, count in summary["statuses"].items():
        table.add_row(status, f"{count:,}", f"{count / summary['rows']:.1%}")
    Console().print(table)
    mean = "-" if summary["mean_score"] is None else f"{summary['mean_score']:.4f}"
    resumed = f" ({summary['resumed']:,} were there)" if summary["resumed"] else ""
    print(
        f"{summary['rows']:,} rows{resumed}, mean score {mean}, {summary['seconds']:.1f} s, "
        f"{summary['items_per_second']:,.0f} items/s"
    )

"""Numbers of a running stage: one JSON line a step, a progress bar, seconds by phase."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from posttrain_jax import process
from posttrain_jax.files import finite

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
SHOWN = ("loss", "reward", "accuracy", "tokens_per_second")
"""The scalars beside the bar, where a stage logs them."""


class MetricLogger:
    """Writes `metrics.jsonl` (and `samples.jsonl`) into a stage's folder and shows progress.

    Steps count from 1: step n is the n-th update. On resume every row past `resume_step`, the step
    that was restored, is cut off, so that no step stands twice. On a terminal there is a progress
    bar, elsewhere a plain line every few seconds. Only process 0 writes and prints.

        with MetricLogger(workdir, total=steps, title="sft", resume_step=step) as log:
            log(step, {"loss": loss, "tokens_per_second": rate})

    Raises:
      OSError: with the path (full disk, no permission).
    """

    def __init__(
        self,
        folder: Path,
        total: int,
        title: str,
        resume_step: int = 0,
        *,
        shown: Sequence[str] = SHOWN,
        every: float = 5.0,
        console: Console | None = None,
    ):
        self.folder = folder
        self.title = title
        self.total = total  # may be changed on the way, by a stage that stops by a criterion
        self._shown = shown
        self._every = every
        self._active = process.index() == 0
        self._console = console or Console()
        self._files: dict[str, IO[str]] = {}
        self._last = self._printed = time.monotonic()
        self._waiting = ""  # the newest line that was not printed
        self._bar: Progress | None = None
        if self._active:
            for name in (METRICS, SAMPLES):
                truncate(folder / name, resume_step)
            if self._console.is_terminal:
                self._bar = _progress(self._console)
                self._task = self._bar.add_task(title, total=total, completed=resume_step, text="")

    def __enter__(self) -> MetricLogger:
        if self._bar:
            self._bar.start()
        self._last = self._printed = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._waiting:
            self._print(self._waiting)
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __call__(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Log one step; arrays of one number become floats, which waits for the device.

        `seconds` since the step before is added where `scalars` does not have it.
        """
        now = time.monotonic()
        values = {name: _number(value) for name, value in scalars.items()}
        row = {"step": step, "seconds": round(now - self._last, 4), **values}
        self._last = now
        if self._active:
            self._append(METRICS, [row])
            self._show(step, values, now)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append sample rollouts of a step to `samples.jsonl`."""
        if self._active:
            self._append(SAMPLES, [{"step": step, **row} for row in rows])

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._active:
            self._print(f"{self.title}: {text}")

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / name
        try:
            if name not in self._files:
                self._files[name] = open(path, "a", encoding="utf-8")  # noqa: SIM115
            lines = [json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows]
            self._files[name].write("".join(lines))
            self._files[name].flush()
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from error

    def _show(self, step: int, values: Mapping[str, Any], now: float) -> None:
        text = "  ".join(f"{short(n)} {values[n]:.4g}" for n in self._shown if n in values)
        if self._bar:
            total = max(step, self.total)
            self._bar.update(self._task, completed=step, total=total, text=text)
            return
        self._waiting = f"{self.title} {step}/{self.total}  {text}"
        if now - self._printed >= self._every or step == self.total:
            self._printed = now
            self._print(self._waiting)
            self._waiting = ""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class PhaseTimer:
    """Adds up seconds by phase: `with phases("sample"): ...`.

    Args:
      seconds: what earlier runs of the same stage spent, from a checkpoint.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None):
        self.seconds: dict[str, float] = dict(seconds or {})
        self._lap: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block; jax works ahead, so the block must wait for its results itself."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
            self._lap[phase] = self._lap.get(phase, 0.0) + spent

    def lap(self) -> dict[str, float]:
        """`{"seconds_<phase>": ...}` since the last lap, for a step's row of metrics."""
        lap, self._lap = self._lap, {}
        return {f"seconds_{phase}": round(spent, 4) for phase, spent in lap.items()}


def mean_stderr(values: Sequence[float]) -> dict[str, float]:
    """Mean, its standard error (sample standard deviation / sqrt(n)), and n.

    Values must be independent: with several samples a problem, give one mean a problem. A single
    value has standard error 0.

    Raises:
      ValueError: no values.
    """
    numbers = [float(value) for value in values]
    n = len(numbers)
    if n == 0:
        raise ValueError("mean_stderr of no values: there is nothing to average")
    mean = math.fsum(numbers) / n
    variance = math.fsum((x - mean) ** 2 for x in numbers) / (n - 1) if n > 1 else 0.0
    return {"mean": mean, "stderr": math.sqrt(variance / n), "n": n}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file that is being written: a torn last line is left out.

    Raises:
      ValueError: another line is not JSON; with the file and the line number.
    """
    if not path.exists():
        return []
    lines = path.read_text("utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg})") from error
    return rows


def truncate(path: Path, step: int) -> None:
    """Cut a JSONL file after its last row whose `step` is at most `step`."""
    if not path.exists():
        return
    kept = 0
    with open(path, "r+b") as file:
        for line in iter(file.readline, b""):
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            kept += len(line)
        file.truncate(kept)


def short(name: str) -> str:
    """A metric's name as it stands beside the bar."""
    return {"tokens_per_second": "tokens/s", "accuracy": "acc"}.get(name, name)


def _number(value: Any) -> Any:
    if isinstance(value, bool | int | str) or value is None:
        return value
    return float(value)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
    )

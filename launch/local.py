"""`posttrain launch local`: a recipe as several processes of this machine, on loopback.

  posttrain launch local --processes 2 [--devices-per-process K] RECIPE [options of `run`]

Every process runs the same `posttrain run` on the CPU, joined by `jax.distributed` with gloo
collectives, on its own share of the cores. Process 0 has the screen, the others write to `logs/`
in the run folder. The first Ctrl-C is passed on once, so that all save the same step; the second
kills. When a process fails the others are stopped, and the same command continues.

Not done: accelerators (one process drives all of a host's), and noticing a process that hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from posttrain_jax import main as command
from posttrain_jax import runtime
from posttrain_jax.recipe import RecipeError
from posttrain_jax.settings import load_recipe

WORKER = "posttrain_jax.launch._worker"
GRACE = 5.0
"""Seconds in which the others may end by themselves after one failed, with the better message."""
TAIL = 20
"""Lines of a failed process's log that are shown."""


class Child(NamedTuple):
    """A started process; `log` is empty for the one that has the screen."""

    popen: subprocess.Popen[bytes]
    log: Path | None
    log_start: int


def main(args: list[str]) -> int:
    """Run `posttrain launch local ARGS`; returns the exit code of the process that failed first.

    Raises:
      RecipeError: numbers below 1, or a recipe that can't be run.
    """
    parser = argparse.ArgumentParser("posttrain launch local", allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=2, help="how many (2)")
    parser.add_argument("--devices-per-process", type=int, default=1, help="CPU devices each (1)")
    parser.add_argument("--dry-run", action="store_true", help="print the command lines only")
    options, words = parser.parse_known_args(args)
    processes, devices = options.processes, options.devices_per_process
    if processes < 1 or devices < 1:
        raise RecipeError(
            f"--processes={processes} --devices-per-process={devices}: both must be at least 1"
        )
    run = command.parse(["run", *words])
    config, _ = load_recipe(run.recipe, run.overrides)
    shares = split_cpus(available_cpus(), processes)
    lines = render(words, processes, devices, f"127.0.0.1:{free_port()}", shares)
    if options.dry_run:
        print("\n".join(shlex.join(line) for line in lines))
        return 0
    return submit(lines, (run.workdir or command.default_workdir(config)) / "logs")


def render(
    words: Sequence[str],
    processes: int,
    devices: int,
    coordinator: str,
    shares: Sequence[Sequence[int]],
) -> list[list[str]]:
    """The command line of each process.

    Args:
      words: the arguments of `posttrain run`.
      processes: how many.
      devices: CPU devices of each.
      coordinator: host:port that process 0 listens on.
      shares: the cores of each process; an empty share leaves the choice to the system.
    """
    return [
        [
            *(sys.executable, "-m", WORKER),
            *("--coordinator", coordinator),
            *("--processes", str(processes)),
            *("--process", str(index)),
            *("--devices", str(devices)),
            *(("--cpus", ",".join(map(str, share))) if share else ()),
            *("--", "run", *words),
        ]
        for index, share in enumerate(shares)
    ]


def submit(lines: Sequence[Sequence[str]], logs: Path) -> int:
    """Start the processes and wait for all of them; see `main` for the result."""
    logs.mkdir(parents=True, exist_ok=True)
    environment = runtime.tuned_environment() or dict(os.environ)
    children = [_start(index, line, logs, environment) for index, line in enumerate(lines)]
    try:
        with _forwarding(children) as signals:
            failed = _wait(children)
    finally:
        _kill(children)
    if len(signals) > 1:
        return command.INTERRUPTED
    if failed is None:
        return 0
    code = _exit_code(children[failed])
    if code != command.INTERRUPTED and children[0].popen.returncode != code:
        print(_obituary(failed, children), file=sys.stderr)
    return code


def available_cpus() -> list[int]:
    """The cores that this process may use; empty where the system doesn't tell or can't pin."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def split_cpus(cpus: Sequence[int], processes: int) -> list[list[int]]:
    """The share of each process: all cores are used, none twice while there are enough."""
    if len(cpus) < processes:
        return [[cpus[index % len(cpus)]] if cpus else [] for index in range(processes)]
    bounds = [len(cpus) * index // processes for index in range(processes + 1)]
    return [list(cpus[a:b]) for a, b in itertools.pairwise(bounds)]


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(index: int, line: Sequence[str], logs: Path, environment: dict[str, str]) -> Child:
    if index == 0:
        return Child(_spawn(line, environment), None, 0)
    path = logs / f"process-{index}.log"
    with open(path, "ab") as log:
        return Child(_spawn(line, environment, log), path, log.tell())


def _spawn(
    line: Sequence[str], environment: dict[str, str], log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C of the terminal reaches only this process."""
    return subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env=environment,
    )


@contextlib.contextmanager
def _forwarding(children: Sequence[Child]) -> Iterator[list[int]]:
    """Pass the first SIGINT or SIGTERM on as SIGINT, to all; kill at the second. Yields them."""
    signals: list[int] = []

    def forward(number: int, frame: object) -> None:
        signals.append(number)
        if len(signals) > 1:
            _kill(children)
        for child in children:
            child.popen.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[Child]) -> int | None:
    """Until all have ended: the index of the one that failed first, None if none did.

    After a failure the others have GRACE seconds; after an interruption as long as saving takes.
    """
    failed, deadline = None, float("inf")
    while any(child.popen.poll() is None for child in children):
        codes = [child.popen.poll() for child in children]
        if failed is None:
            failed = _first_failed(codes)
            if failed is not None and codes[failed] != command.INTERRUPTED:
                # A process that is killed takes the others' collectives down with it, and they may
                # be seen first: look once more.
                time.sleep(0.2)
                failed = _first_failed([child.popen.poll() for child in children])
                deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            _kill(children)
        time.sleep(0.05)
    return (
        _first_failed([child.popen.returncode for child in children]) if failed is None else failed
    )


def _first_failed(codes: Sequence[int | None]) -> int | None:
    """The process that a signal ended, else the first with an error; None if there is neither."""
    killed = (i for i, code in enumerate(codes) if code is not None and code < 0)
    return next(killed, next((i for i, code in enumerate(codes) if code), None))


def _kill(children: Sequence[Child]) -> None:
    for child in children:
        if child.popen.poll() is None:
            child.popen.kill()
            child.popen.wait()


def _exit_code(child: Child) -> int:
    """As a shell tells it: 128 + n after signal n."""
    code = child.popen.returncode
    return code if code >= 0 else 128 - code


def _obituary(failed: int, children: Sequence[Child]) -> str:
    """What became of the process that failed first, with the end of its log."""
    child, code = children[failed], children[failed].popen.returncode
    how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    lines = [
        f"posttrain: process {failed} of {len(children)} ended with {how}, the others were "
        "stopped. What is saved is kept: the same command continues."
    ]
    if child.log is not None:
        with open(child.log, "rb") as file:
            file.seek(child.log_start)
            said = file.read().decode(errors="replace").splitlines()[-TAIL:]
        lines += [f"The end of {child.log}:", *(f"  {line}" for line in said)]
    return "\n".join(lines)

"""`posttrain run`, with something that happens to it: `faults.py WHAT STAGE ROW DELAY run-words...`

After row ROW of STAGE was logged, and DELAY seconds more, WHAT happens: SIGKILL, SIGINT (to this
process), or `worker` (SIGKILL to one of its verifier workers).
"""

import os
import signal
import sys
import threading
from pathlib import Path

from posttrain_jax import main
from posttrain_jax.metrics import MetricLogger


def verifier_workers() -> list[int]:
    """The verifier workers that this process started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"verifiers.worker" in command:
            found.append(int(folder.name))
    return found


def run(what: str, stage: str, row: int, delay: float, words: list[str]) -> int:
    """Run the recipe; the process may not survive it."""

    def happen() -> None:
        if what == "worker":
            os.kill(verifier_workers()[0], signal.SIGKILL)
        else:
            os.kill(os.getpid(), getattr(signal, what))

    log, waiting = MetricLogger.__call__, [happen]

    def logged(self, step, scalars):
        log(self, step, scalars)
        if self.title == stage and step >= row and waiting:
            one = waiting.pop()
            threading.Timer(delay, one).start() if delay else one()

    MetricLogger.__call__ = logged
    return main.main(["run", *words])


if __name__ == "__main__":
    what, stage, row, delay, *words = sys.argv[1:]
    sys.exit(run(what, stage, int(row), float(delay), words))

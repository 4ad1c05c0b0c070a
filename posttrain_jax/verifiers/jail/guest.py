"""What runs in the fork: arrange descriptors, lock the door, run the job, end."""

import _random
import fcntl
import json
import os
import random
from typing import Any

from posttrain_jax.verifiers.jail import interpreter, program, proxy, stdio
from posttrain_jax.verifiers.jail.order import Order
from posttrain_jax.verifiers.jail.sandbox import FIRST_CLOSED, Sandbox
from posttrain_jax.verifiers.jail.wire import frame, read_all, write_all

_JOB = 4
_TARGETS = {
    "call": (program.REPORT, _JOB),
    "eval": (program.REPORT, _JOB),
    "stdio": (program.REPORT, _JOB, 0, 1),
    "program": (program.REPORT, _JOB + 2, proxy.READ, proxy.WRITE),
    "test": (program.REPORT, _JOB + 2, proxy.READ, proxy.WRITE),
    "inproc": (program.REPORT, _JOB + 2, proxy.READ),
    "function": (program.REPORT, program.REQUESTS),
    "session": (program.REPORT, program.REQUESTS),
    "together": (program.REPORT, program.REQUESTS, 0, 1),
}
_RUN = {
    "call": program.calls,
    "eval": program.expressions,
    "program": proxy.serve,
    "test": proxy.test,
    "inproc": proxy.inproc,
}
_ASKED = {
    "function": lambda order: program.functions(),
    "session": lambda order: interpreter.serve(int(order.out_kb * 1024)),
    "together": lambda order: stdio.serve(),
}
"""Guests that get requests instead of a job."""
_READY = frame(["ready"])
_exit = os._exit
# `random.seed(0)` without its Python part: every page touched here is a page copied
_generator, _seed = getattr(random, "_inst"), _random.Random.seed  # noqa: B009


def _arrange(fds: list[int], targets: tuple[int, ...], null: int) -> None:
    """Move descriptors to their numbers; 0, 1 and 2 are /dev/null where none of them goes.

    Nothing else stays open below `sandbox.FIRST_CLOSED`; `Sandbox.enter` closes the rest.
    """
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in [*fds, null]]
    for target in (0, 1, 2):
        os.dup2(spare[-1], target)
    for fd, target in zip(spare, targets, strict=False):
        os.dup2(fd, target)
    for fd in range(3, FIRST_CLOSED):
        if fd not in targets:
            os.closerange(fd, fd + 1)


def main(order: Order, fds: list[int], sandbox: Sandbox, scratch: int) -> None:
    """The life of a guest; never returns.

    Args:
      order: what to do.
      fds: what came with the order.
      sandbox: the walls.
      scratch: the number of its working folder.
    """
    targets = _TARGETS[order.kind]
    _arrange(fds, targets, sandbox.null)
    job: dict[str, Any] = {}
    if order.kind not in _ASKED:
        job = json.loads(read_all(targets[1]))
    sandbox.enter(order, scratch, job.get("files") or {})
    if order.kind not in _ASKED:
        os.close(targets[1])
    _seed(_generator, 0)
    write_all(program.REPORT, _READY)
    if order.kind == "stdio":
        _exit(stdio.run(job))
    if order.kind in _ASKED:
        _ASKED[order.kind](order)
    else:
        _RUN[order.kind](job)
    _exit(0)

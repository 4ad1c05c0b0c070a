"""Stopping a run without losing anything: the first Ctrl-C asks, the second kills.

A stage polls once a step, on every process of the run, saves, and raises:

    if interrupt.requested():
        checkpoint.save(...)
        raise interrupt.Interrupted(step)

The request is the one piece of module state of this package: a signal belongs to the process.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from posttrain_jax import process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = b"\nStopping: saving after this step. Press Ctrl-C again to stop at once.\n"
_request = threading.Event()


class Interrupted(Exception):
    """A stage stopped because it was asked to, after it saved.

    Attributes:
      step: the last step that is saved; None where the stage has no steps.
    """

    def __init__(self, step: int | None = None):
        super().__init__("stopped" if step is None else f"stopped and saved at step {step}")
        self.step = step


@contextmanager
def watching() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a request while the block runs; main thread only.

    The first signal also restores the defaults, so that the second one ends the process even in
    the middle of a compilation.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: int, frame: object) -> None:
        _request.set()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, MESSAGE)

    _request.clear()
    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _request.clear()


def requested() -> bool:
    """True once a stop was asked for, on any process of the run.

    With several processes this is a collective: all of them call it at the same step.
    """
    if process.count() == 1:
        return _request.is_set()
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array([_request.is_set()]))))

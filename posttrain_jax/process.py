"""Which of the processes of a run this one is, and whose child, without importing jax.

A run has several processes only after `jax.distributed.initialize`; until then, and wherever jax
was never imported, this is the one and only process.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def index() -> int:
    """The index of this process; 0 prints and writes."""
    jax = sys.modules.get("jax")
    return jax.process_index() if jax is not None and jax.distributed.is_initialized() else 0


def count() -> int:
    """The number of processes of the run."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax is not None and jax.distributed.is_initialized() else 1


def device() -> str:
    """The devices in words, as in `2 x cpu`; empty while jax is not imported."""
    jax = sys.modules.get("jax")
    if jax is None:
        return ""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def die_with(parent: int) -> None:
    """SIGKILL for this process when the thread that started it ends; exit if it already has.

    On Linux; elsewhere a child that outlives its parent is not stopped.

    Args:
      parent: the process that started this one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)

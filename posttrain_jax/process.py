"""Which of the processes of a run this one is, without importing jax.

A run has several processes only after `jax.distributed.initialize`; until then, and wherever jax
was never imported, this is the one and only process.
"""

import sys


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

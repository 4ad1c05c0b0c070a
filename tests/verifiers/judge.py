"""A verifier for the tests of the pool: the response says what it does."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from posttrain_jax.api import Verdict


def score(response, example, *, scale=1.0):
    """Score `example["value"]`, or misbehave as the response says."""
    word, _, rest = response.partition(" ")
    if word == "spin":
        while True:
            pass
    if word == "stuck":  # in C, holding the interpreter lock
        9 ** (9**9**2)
    if word == "sleep":
        time.sleep(float(rest))
    if word == "raise":
        raise ZeroDivisionError("asked to")
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "die_once" and not Path(rest).exists():
        Path(rest).touch()
        ctypes.string_at(0)
    if word == "float":
        return 1.0
    if word == "nan":
        return Verdict(float("nan"))
    if word == "print":
        print("noise " * 20_000)
        return Verdict(1.0, detail=sys.stdin.read())
    if word == "modules":
        loaded = sorted({"jax", "jaxlib", "flax"} & {name.split(".")[0] for name in sys.modules})
        return Verdict(1.0, detail=",".join(loaded))
    if word == "environment":
        return Verdict(1.0, detail=",".join(sorted(os.environ)))
    return Verdict(scale * example["value"], detail=response)

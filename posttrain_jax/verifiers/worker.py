"""A worker of `pool.Pool`: reads items from its standard input, writes verdicts to its output.

Frames are a length (4 bytes, big endian) and JSON. The first one in is the set-up, answered by
`{"ready": true}` or `{"error": ...}`; every further one is a chunk
`[[response, example, [term, ...]], ...]`, answered by frames `[[score, status, detail], ...]` with
the verdicts in order. Fast verdicts share a frame. How many verdicts of the chunk are done also
stands in 8 shared bytes, so that the owner of a killed worker knows which verifier was running.

Not covered: a verifier runs with the rights of the user. Nothing a model wrote is executed here.
"""

import contextlib
import importlib
import json
import math
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from posttrain_jax import process
from posttrain_jax.api import Verdict
from posttrain_jax.verifiers.terms import Term, load_verifier

HEADER = struct.Struct(">I")
PROGRESS = struct.Struct("=Q")
_FLUSH_SECONDS = 0.002


def read_frame(stream: BinaryIO) -> Any:
    """The next frame's value, or None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    body = stream.read(size)
    return json.loads(body) if len(body) == size else None


def frame(value: Any) -> bytes:
    """A value as a frame: its length, then JSON in ASCII."""
    body = json.dumps(value, separators=(",", ":")).encode("ascii")
    return HEADER.pack(len(body)) + body


def _limit(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses a limit on the address space.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def _load(setup: dict[str, Any]) -> list[tuple[Callable[..., Verdict], dict[str, Any]]]:
    terms = []
    for fields in setup["terms"]:
        term = Term(*fields)
        module = load_verifier(term.verifier)
        for name in getattr(module, "PRELOAD", ()):
            importlib.import_module(name)
        terms.append((module.score, term.options))
    return terms


def _judge(score: Callable[..., Verdict], response: str, example: Any, options: Any) -> list[Any]:
    """One verdict as a list; an exception or a malformed verdict is an `infra_error`."""
    try:
        verdict = score(response, example, **options)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"score() returned {type(verdict).__name__}, expected Verdict")
        if not math.isfinite(value := float(verdict.score)):
            raise ValueError(f"score() returned the score {verdict.score!r}, expected a finite one")
        return [value, str(verdict.status), str(verdict.detail)[:2000]]
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"
        return [0.0, "infra_error", f"{type(error).__name__}: {error} ({where})"[:2000]]


def serve(stream_in: BinaryIO, fd_out: int, progress: mmap.mmap) -> None:
    """Answer chunks until the stream ends; what verifiers print is dropped."""
    setup = read_frame(stream_in)
    if setup is None:
        return
    try:
        _limit(setup["memory_mb"])
        terms = _load(setup)
    except Exception:
        os.write(fd_out, frame({"error": traceback.format_exc()[-4000:]}))
        return
    for stream in (1, 2):
        os.dup2(0, stream)
    os.write(fd_out, frame({"ready": True}))
    while (chunk := read_frame(stream_in)) is not None:
        PROGRESS.pack_into(progress, 0, 0)
        done, ready, flushed = 0, [], time.monotonic()
        for response, example, wanted in chunk:
            for term in wanted:
                score, options = terms[term]
                ready.append(_judge(score, response, example, options))
                done += 1
                PROGRESS.pack_into(progress, 0, done)
                if (now := time.monotonic()) - flushed > _FLUSH_SECONDS:
                    os.write(fd_out, frame(ready))
                    ready, flushed = [], now
        os.write(fd_out, frame(ready))


def main() -> None:
    """Serve on descriptors that `print` and `input` don't reach; start-up errors go to stderr."""
    parent, progress_fd = map(int, sys.argv[1:])
    process.die_with(parent)
    progress = mmap.mmap(progress_fd, PROGRESS.size)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream_in = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
    fd_out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):
        serve(stream_in, fd_out, progress)
    os._exit(0)


if __name__ == "__main__":
    main()

"""Modes "stdio" and "stdio_together": a program run as `python program.py` would run it.

In "stdio" it runs once in each process. In "stdio_together" it runs on one input after the other in
one process: each time as a new module with new streams, and after each what it left is put back or
complained of, as far as a process can tell.

Its standard output is a pipe that the trusted side reads as it is.
"""

import _thread
import atexit
import contextlib
import gc
import importlib
import itertools
import os
import random
import sys
from collections.abc import Iterator
from opcode import EXTENDED_ARG, opmap
from types import CodeType
from typing import Any

from posttrain_jax.verifiers.jail.program import REPORT, REQUESTS, compiled, describe, load
from posttrain_jax.verifiers.jail.wire import frame, read_frame, write_all

_IMPORT_NAME = opmap["IMPORT_NAME"]
_STREAMS = {"stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"}


def open_streams() -> None:
    """Make `sys.stdin`, `stdout` and `stderr` anew, in the zygote, for all guests to inherit.

    They remember what kind of file they were opened on, so for that moment there lies a file on
    descriptor 0 and a pipe on descriptor 1, as in a guest.
    """
    saved = [os.dup(0), os.dup(1)]
    pipe = os.pipe()
    file = os.open(os.__file__, os.O_RDONLY)
    os.dup2(file, 0)
    os.dup2(pipe[1], 1)
    _new_streams()
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stderr__ = sys.stderr
    for target, fd in enumerate(saved):
        os.dup2(fd, target)
    for fd in (*saved, *pipe, file):
        os.close(fd)


def _new_streams() -> None:
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout


def run(job: dict[str, Any]) -> int:
    """Run the program and what the interpreter runs at its end; the exit code.

    An exception that nothing caught is reported as "TypeName: message".
    """
    code = _main(job["program"])
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()  # waits for threads, as the interpreter does
    return _end(code)


def _main(program: str | CodeType) -> int:
    try:
        load(program, "__main__")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        return 1
    except BaseException as error:
        write_all(REPORT, frame(["e", describe(error)]))
        return 1
    return 0


def _end(code: int) -> int:
    """What the interpreter does once threads have ended; the exit code."""
    atexit._run_exitfuncs()
    # Files that the program left open write out what they hold when they go.
    for name in ("__main__", "program"):
        if name in sys.modules:
            sys.modules[name].__dict__.clear()
    gc.collect()
    for stream in {id(s): s for s in (sys.stdout, sys.__stdout__)}.values():
        try:
            if stream is not None:
                stream.flush()
        except BaseException as error:
            write_all(REPORT, frame(["e", describe(error)]))
            code = code or 120
    return code


def serve() -> None:
    """Run the program of the first request once for each further one.

    A run that ended as it should, and left nothing that the next one could notice, is answered by
    `["d", None]`, any other by `["d", reason]` or `["e", error]`, and is the last.
    """
    (source,) = read_frame(REQUESTS)
    program = compiled(source)
    found = _Found(program)
    for number in itertools.count():
        if read_frame(REQUESTS) is None:
            return
        if number:
            found.put_back()
        code = _main(program)
        complaint = _join_threads()
        code = _end(code)
        complaint = complaint or (f"exit code {code}" if code else found.complaint())
        write_all(REPORT, frame(["d", complaint]))
        if complaint:
            return


def _join_threads() -> str | None:
    """Wait for threads, as the interpreter does, but go on; the reason if that can't be done."""
    if threading := sys.modules.get("threading"):
        if threading._threading_atexits:  # for a second time there is no way
            return "a pool of threads"
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
    return "a thread is left" if _thread._count() else None


class _Found:
    """What a program finds when it starts, as far as its code names it, its modules imported.

    Looking at more would touch, and so copy, much of the memory that guests share.
    """

    def __init__(self, program: CodeType):
        self._streams = [os.dup(0), os.dup(1)]
        self._depth, self._digits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
        self._folder = os.getcwd()
        parts = list(_parts(program))
        self._names = {name for part in parts for name in part.co_names} - _STREAMS
        self._environment = self._named_environment()
        self._modules = sorted({"builtins", "sys"}.union(*map(_imported, parts)))
        for name in self._modules:
            with contextlib.suppress(Exception):  # the program will meet it too, if it gets there
                importlib.import_module(name)
        self._known: dict[str, tuple[int, dict[str, Any]]] = {}
        self._changed_module()

    def put_back(self) -> None:
        """Make good what honest programs change."""
        for target, fd in enumerate(self._streams):
            os.dup2(fd, target)
        _new_streams()
        sys.stderr = sys.__stderr__
        random.seed(0)
        sys.setrecursionlimit(self._depth)
        sys.set_int_max_str_digits(self._digits)
        _thread.stack_size(0)
        sys.settrace(None)
        sys.setprofile(None)
        gc.enable()
        if decimal := sys.modules.get("decimal"):
            decimal.setcontext(decimal.DefaultContext)

    def complaint(self) -> str | None:
        """What was changed and isn't put back, if something was."""
        if os.getcwd() != self._folder or os.listdir(self._folder):
            return "files, or another working folder"
        if self._named_environment() != self._environment:
            return "the environment"
        return self._changed_module()

    def _named_environment(self) -> dict[str, str]:
        return dict(os.environ) if "environ" in self._names else {}

    def _changed_module(self) -> str | None:
        """A module with other names than when it was first seen; its submodules don't count."""
        for name in self._modules:
            names = getattr(sys.modules.get(name), "__dict__", None)
            if names is None:
                continue
            values = {key: names[key] for key in self._names & names.keys()}
            count, known = self._known.setdefault(name, (len(names), values))
            # a dict keeps the order in which names came
            new = list(names)[count:] if len(names) != count else []
            if (
                any(f"{name}.{key}" not in sys.modules for key in new)
                or len(names) < count
                or values.keys() != known.keys()
                or any(values[key] is not known[key] for key in known)
            ):
                return f"names in {name}"
        return None


def _parts(code: CodeType) -> Iterator[CodeType]:
    """A program's code and that of its functions."""
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _parts(part)


def _imported(code: CodeType) -> set[str]:
    """The modules that a piece of code imports."""
    names, high, raw = set(), 0, code.co_code
    for operation, low in zip(raw[::2], raw[1::2], strict=True):
        argument = high << 8 | low
        if operation == _IMPORT_NAME:
            names.add(code.co_names[argument])
        high = argument if operation == EXTENDED_ARG else 0
    return names

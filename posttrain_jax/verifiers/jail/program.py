"""What every kind of guest does with a program: run it, look up names, report results.

All of it runs in the jailed process, beside code that may do anything to it: what it reports is
what that code could as well have returned.
"""

import builtins
import random
import resource
import sys
import types
from collections.abc import Callable
from typing import Any

from posttrain_jax.verifiers.jail.values import Opaque, decode, encode
from posttrain_jax.verifiers.jail.wire import frame, read_frame, write_all

REPORT, REQUESTS = 3, 4
_GROWN_KB = 32 << 10
_ERROR_CHARS = 500


def describe(error: BaseException) -> str:
    """An exception as "TypeName: message", capped."""
    try:
        text = str(error)[:_ERROR_CHARS]
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:_ERROR_CHARS]


def report(index: int, make: Callable[[], Any]) -> None:
    """Send the plain value that `make()` returns, or the error that it raised."""
    try:
        row = ["r", index, encode(make()), None]
    except Opaque as error:
        row = ["r", index, None, f"Opaque: {error}"]
    except BaseException as error:
        row = ["r", index, None, describe(error)]
    write_all(REPORT, frame(row))


def compiled(source: str) -> types.CodeType:
    """A program's code."""
    return compile(source, "program.py", "exec")


def load(source: str | types.CodeType, name: str) -> dict[str, Any]:
    """Run a program as a module of that name; its namespace.

    The module is entered in `sys.modules`, where dataclasses and pickle look for it.
    """
    module = types.ModuleType(name)
    module.__dict__.update(__file__="program.py", __builtins__=builtins)
    sys.modules[name] = module
    exec(compiled(source) if isinstance(source, str) else source, module.__dict__)
    return module.__dict__


def find(namespace: dict[str, Any], name: str) -> Any:
    """A function by its name, dotted or not; else the method of that name of a class Solution.

    Raises:
      NameError: there is none.
    """
    first, *rest = name.split(".")
    if first in namespace:
        found = namespace[first]
    elif "Solution" in namespace and not rest:
        found, rest = namespace["Solution"](), [name]
    else:
        raise NameError(f"name {first!r} is not defined")
    for attribute in rest:
        found = getattr(found, attribute)
    return found


def _each(job: dict[str, Any], count: int, answer: Callable[[dict[str, Any], int], Any]) -> None:
    """Run the program, then report `answer(namespace, index)` for every index."""
    namespace, failed = {}, None
    try:
        namespace = load(job["program"], "program")
    except BaseException as error:
        failed = error

    def one(index: int) -> Any:
        if failed is not None:
            raise failed
        return answer(namespace, index)

    for index in range(count):
        report(index, lambda index=index: one(index))


def calls(job: dict[str, Any]) -> None:
    """Mode "call": call functions of the program, one after the other."""

    def answer(namespace: dict[str, Any], index: int) -> Any:
        call = job["calls"][index]
        args, kwargs = decode(call[1]), decode(call[2])
        return find(namespace, call[0])(*args, **kwargs)

    _each(job, len(job["calls"]), answer)


def expressions(job: dict[str, Any]) -> None:
    """Mode "eval": evaluate expressions in the program's namespace, one after the other."""

    def answer(namespace: dict[str, Any], index: int) -> Any:
        return eval(compile(job["expressions"][index], "expression", "eval"), namespace)

    _each(job, len(job["expressions"]), answer)


def functions() -> None:
    """Mode "function": code of ours, loaded before the fork, on texts that may be hostile.

    One call a request, until there are no more, or one took so much memory that the next would
    find less than it is due.
    """
    most = _peak_kb() + _GROWN_KB
    while _peak_kb() <= most and (request := read_frame(REQUESTS)) is not None:
        target, args = request
        module, _, name = target.partition(":")
        random.seed(0)
        report(0, lambda m=module, n=name, a=args: getattr(sys.modules[m], n)(*decode(a)))


def _peak_kb() -> int:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

"""A session: an interpreter that keeps its state between pieces of code, for a `python` tool."""

import ast
import builtins
import io
import sys
import types
from typing import Any

from posttrain_jax.verifiers.jail.program import REPORT, REQUESTS, describe
from posttrain_jax.verifiers.jail.wire import frame, read_frame, write_all


class Printed(io.TextIOBase):
    """Takes what is printed, up to so many characters.

    Attributes:
      cut: whether something was left out.
    """

    def __init__(self, most: int):
        self._parts: list[str] = []
        self._left = most
        self.cut = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.cut = self.cut or len(text) > self._left
        kept = text[: self._left]
        self._parts.append(kept)
        self._left -= len(kept)
        return len(text)

    def text(self) -> str:
        return "".join(self._parts)


def serve(characters: int) -> None:
    """Run one piece of code a request, until there are no more.

    The answer is what it printed, then the repr of its last expression unless that is None.
    """
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins)
    sys.modules["__main__"] = module
    while (request := read_frame(REQUESTS)) is not None:
        printed = Printed(characters)
        sys.stdout = sys.stderr = printed
        error = None
        try:
            _run(request[0], module.__dict__, printed)
        except BaseException as raised:
            error = describe(raised)
        write_all(REPORT, frame(["s", printed.text(), printed.cut, error]))


def _run(code: str, namespace: dict[str, Any], printed: Printed) -> None:
    tree = ast.parse(code, "<input>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<input>", "exec"), namespace)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "<input>", "eval"), namespace)
        if value is not None:
            printed.write(repr(value) + "\n")

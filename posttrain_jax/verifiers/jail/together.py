"""Mode "stdio_together": a program's inputs one after the other in one guest.

For what may be believed of it see `programs.together`.
"""

import os

from posttrain_jax.verifiers.jail.connection import Connection, memory_file
from posttrain_jax.verifiers.jail.dialogue import Dialogue
from posttrain_jax.verifiers.jail.limits import Limits
from posttrain_jax.verifiers.jail.outcome import Outcome, Result

_IN_ORDER = ["d", None]


def run(connection: Connection, program: str, inputs: list[bytes], limits: Limits) -> Outcome:
    """The standard output for each input; `ok` only where all ended in order.

    A guest gets an input when it has answered the one before it. The results up to the first that
    was out of order come with the status `died`, or that of a limit.

    Args:
      connection: to the zygote.
      program, inputs: what to run, and on what.
      limits: for all of it.

    Raises:
      Gone: the zygote died.
    """
    standard_input = memory_file(b"")
    try:
        dialogue = Dialogue(connection, "together", limits, fds=(standard_input,), output=True)
        try:
            return _run(dialogue, program, inputs, standard_input)
        except OSError as error:  # it tampered with its input
            return Outcome("died", [], str(error))
        finally:
            dialogue.close()
    finally:
        os.close(standard_input)


def _run(dialogue: Dialogue, program: str, inputs: list[bytes], standard_input: int) -> Outcome:
    watch, results, end = dialogue.watch, [], 0
    output = watch.fds[1]
    dialogue.tell([program])
    for text in inputs:
        _rewrite(standard_input, text)
        answer = dialogue.ask([])
        if isinstance(answer, Outcome):
            return answer._replace(results=results)
        while not watch.broken and watch.read(output):  # what came before the answer is there
            pass
        if watch.broken or answer != _IN_ORDER:
            return Outcome("died", results, watch.broken or f"left behind: {answer[1:]}"[:200])
        results.append(Result(watch.text[end:].decode("utf-8", "replace")))
        end = len(watch.text)
    dialogue.finish()
    if watch.failure() or watch.code or len(watch.text) > end:
        return Outcome("died", results, "it didn't end in order", watch.cpu_s)
    return Outcome("ok", results, "", watch.cpu_s)


def _rewrite(file: int, text: bytes) -> None:
    """Make it a file of that text, read from its start; guest and client share the position."""
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    view = memoryview(text)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)

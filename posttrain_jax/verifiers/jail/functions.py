"""Calls of functions of our own, up to 32 one after the other in a guest that stays.

For mode "function": code that we trust, on text that may be hostile, which can hang it, crash it or
eat up its memory. So each call has its own limits of CPU time and by the clock, and what becomes of
it does not depend on the calls before it in the guest:

- A guest serves one module under one set of limits. It ends by itself after a call that took more
  than 32 MB (`program.functions`), so that a call has at least its limit of memory less 32 MB.
- A call that ends the guest by anything but a timeout is made again in a fresh one, unless it was
  the first there.
- `random` starts anew with each call. What else a function's libraries keep is for the function to
  clear (`formulas.comparison` does).

Not covered: text that takes over the guest, by a bug in what reads it, answers for the calls that
follow there too.
"""

from typing import Any, NamedTuple

from posttrain_jax.verifiers.jail.connection import Connection
from posttrain_jax.verifiers.jail.dialogue import Dialogue
from posttrain_jax.verifiers.jail.limits import Limits
from posttrain_jax.verifiers.jail.outcome import Outcome
from posttrain_jax.verifiers.jail.values import Malformed
from posttrain_jax.verifiers.jail.watch import ended_well, result

CALLS = 32


class Kept(NamedTuple):
    """A guest for the calls to come: what it may serve, and how many calls it has served."""

    dialogue: Dialogue
    module: str
    limits: Limits
    served: int = 0


def call(connection: Connection, target: str, args: Any, limits: Limits) -> Outcome:
    """The outcome of one call, in the guest that the connection keeps or in a fresh one.

    Args:
      connection: to the zygote; nobody else uses it meanwhile.
      target: "package.module:function".
      args: the list of its arguments, as `values.encode` gives it.
      limits: of this call.

    Raises:
      Gone: the zygote died.
    """
    module = target.partition(":")[0]
    kept = connection.kept
    if kept is not None and (kept.module, kept.limits) != (module, limits):
        kept = _drop(connection)
    if kept is not None:
        outcome = _ask(connection, kept, [target, args])
        if outcome.status in ("ok", "timeout"):
            return outcome
        _drop(connection)
    total = limits._replace(cpu_s=limits.cpu_s * CALLS)
    fresh = Kept(Dialogue(connection, "function", total, target=module), module, limits)
    return _ask(connection, fresh, [target, args])


def _ask(connection: Connection, kept: Kept, request: list[Any]) -> Outcome:
    """One call in this guest, which stays if it is fit for another."""
    connection.kept = kept._replace(served=kept.served + 1)
    answer = kept.dialogue.ask(request, kept.limits)
    if isinstance(answer, list):
        try:
            answer = ended_well([result(answer, 0)], 0.0)
        except Malformed as malformed:
            answer = Outcome("died", [], f"a malformed result: {malformed}")
    if answer.status != "ok" or kept.served + 1 == CALLS:
        _drop(connection)
    return answer


def _drop(connection: Connection) -> None:
    """End the guest that is kept, if there is one."""
    if connection.kept is not None:
        connection.kept.dialogue.close()
        connection.kept = None

"""A session of the `python` tool, as its client sees it."""

from typing import TYPE_CHECKING, Any

from posttrain_jax.verifiers.jail.connection import Connection, Gone
from posttrain_jax.verifiers.jail.dialogue import Dialogue
from posttrain_jax.verifiers.jail.limits import Limits
from posttrain_jax.verifiers.jail.outcome import ERROR_CHARS, Outcome, Result

if TYPE_CHECKING:
    from posttrain_jax.verifiers.jail.client import Jail


class Session:
    """An interpreter that keeps its state between calls; made by `Jail.session`.

    It starts with the first call. Once a call ended it (a timeout, an exit, too much output), every
    further call says so: start another session.
    """

    def __init__(self, jail: "Jail", per_call: Limits, total: Limits):
        self._jail, self._per_call = jail, per_call
        self._total = total._replace(out_kb=per_call.out_kb)
        self._dialogue: Dialogue | None = None
        self._over: str | None = None

    def run(self, code: str) -> Outcome:
        """Run a piece of code.

        The single result's value is the text it printed, then the repr of its last expression; its
        error is the exception that ended it.
        """
        if self._over is not None:
            return Outcome("died", [], f"the session is over: {self._over}")
        with self._jail.lock:
            try:
                if self._dialogue is None:
                    begun = self._jail.retried(self._start)
                    if begun.status != "ok":  # a later call may find the jail well again
                        return begun
                outcome = self._ask(code)
            except Gone as gone:
                outcome = Outcome("infra_error", [], f"the jail died: {gone}")
        if outcome.status != "ok":
            self._over = outcome.detail or outcome.status
            self.close()
        return outcome

    def _start(self, connection: Connection) -> Outcome:
        self._dialogue = Dialogue(connection, "session", self._total)
        return Outcome("ok", [])

    def _ask(self, code: str) -> Outcome:
        assert self._dialogue is not None
        answer = self._dialogue.ask([code], self._per_call)
        return answer if isinstance(answer, Outcome) else _read(answer)

    def close(self) -> None:
        """End the interpreter. May be called again."""
        self._over = self._over or "it was closed"
        if self._dialogue is not None:
            with self._jail.lock:
                self._dialogue.close()
            self._dialogue = None


def _read(row: list[Any]) -> Outcome:
    try:
        kind, text, cut, error = row
        if kind != "s" or type(text) is not str or not isinstance(error, str | None):
            raise ValueError(kind)
    except (ValueError, TypeError):
        return Outcome("died", [], "a malformed result")
    text += "\n[output cut]" if cut else ""
    return Outcome("ok", [Result(text, error if error is None else error[:ERROR_CHARS])])

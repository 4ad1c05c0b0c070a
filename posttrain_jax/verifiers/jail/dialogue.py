"""A guest that stays and answers one request after the other, as its client sees it."""

import contextlib
import os
from typing import Any

from posttrain_jax.verifiers.jail.connection import Connection, Gone
from posttrain_jax.verifiers.jail.limits import Limits
from posttrain_jax.verifiers.jail.outcome import Outcome
from posttrain_jax.verifiers.jail.watch import exit_name
from posttrain_jax.verifiers.jail.wire import frame, write_all

_ESCAPED = 6
"""Characters that JSON may take for one."""


class Dialogue:
    """Starts the guest; what it answers is believed no more than any guest's.

    Args:
      connection: to the zygote.
      kind: what the guest does, see `guest.Order`.
      total: limits of all requests together; `out_kb` is that of one.
      fds: descriptors for the guest, after the one of its requests.
      output: whether its standard output is read, into `watch.text`.
      target: see `guest.Order`.

    Raises:
      Gone: the zygote died.
    """

    def __init__(
        self, connection: Connection, kind: str, total: Limits, *, fds: tuple[int, ...] = (),
        output: bool = False, target: str = "",
    ):  # fmt: skip
        self._connection, self._total = connection, total
        read, self._requests = os.pipe()
        try:
            self.watch = connection.start(kind, total, (read, *fds), output=output, target=target)
        except Gone:
            os.close(self._requests)
            raise
        finally:
            os.close(read)

    def tell(self, request: Any) -> None:
        """Send a request. That nobody reads it any more is for `ask` to find, with the reason."""
        with contextlib.suppress(BrokenPipeError):
            write_all(self._requests, frame(request))

    def ask(self, request: Any, limits: Limits | None = None) -> list[Any] | Outcome:
        """Send a request; the row that answers it, or how the guest ended instead.

        Args:
          limits: of this request; None leaves it those of all together.

        Raises:
          Gone: the zygote died.
        """
        watch, wall = self.watch, (limits or self._total).wall
        if limits is not None:
            bounds = {"cpu_total": self._total.cpu_s, "cpu_s": limits.cpu_s, "wall_s": wall}
            self._connection.tell(watch, bounds)
        self.tell(request)
        if limits is not None:
            watch.allow(int(self._total.out_kb * 1024 * _ESCAPED))
        before = len(watch.rows)
        self._connection.wait([watch], wall, lambda: len(watch.rows) > before)
        if len(watch.rows) == before or watch.broken:
            status, detail = watch.failure() or ("died", exit_name(watch.code))
            return Outcome(status, [], detail, watch.cpu_s)
        if limits is not None:
            self._connection.tell(watch, {"rest": True})
        return watch.rows.pop()

    def finish(self) -> None:
        """Ask nothing more, and wait until it has ended by itself.

        Raises:
          Gone: the zygote died.
        """
        self._close_requests()
        self._connection.finish([self.watch], self._total.wall)

    def close(self) -> None:
        """End the guest. May be called again."""
        self._close_requests()
        try:
            if self.watch.end is None:
                self._connection.tell(self.watch, {"kill": True})
                self._connection.wait([self.watch], self._total.wall)
        except Gone:
            pass
        self.watch.close()

    def _close_requests(self) -> None:
        if self._requests >= 0:
            os.close(self._requests)
            self._requests = -1

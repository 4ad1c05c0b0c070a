"""A guest as the client sees it: what it has written so far, and how it ended."""

import os
import signal
import time
from typing import Any

from posttrain_jax.verifiers.jail.outcome import ERROR_CHARS, Outcome, Result
from posttrain_jax.verifiers.jail.values import Malformed, decode
from posttrain_jax.verifiers.jail.wire import Broken, Frames

_READ = 1 << 16
_SLACK = 4096


class Watch:
    """Collects what a guest writes; believes none of it.

    Args:
      ident: its number on the control channel.
      report: the pipe of its frames.
      output: the pipe of its standard output, or None.
      most: bytes that each may carry.
      cpu_limit: CPU seconds, at which the kernel ends it if the zygote didn't.

    Attributes:
      ready: whether it said so before anything else: what goes wrong earlier is our fault.
      broken: None, "output", or how it broke the protocol.
      wall_s: seconds from its start to its `drain`.
      end: the zygote's word on how it ended, once it has.
    """

    def __init__(self, ident: int, report: int, output: int | None, most: int, cpu_limit: float):
        self.ident, self.ready = ident, False
        self.broken: str | None = None
        self.end: dict[str, Any] | None = None
        self.wall_s = 0.0
        self.rows: list[Any] = []
        self._since = time.monotonic()
        self.text = bytearray()
        self._most, self._cpu_limit = most, cpu_limit
        self._frames = Frames(most + _SLACK)
        self._report = report
        self.fds = [report] if output is None else [report, output]
        for fd in self.fds:
            os.set_blocking(fd, False)

    def read(self, fd: int) -> int | None:
        """Take what has come on one of its pipes: how many bytes; None if there is nothing yet."""
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return None
        if data and not self.broken:
            try:
                self._take(fd, data)
            except Broken as error:
                self.broken = str(error)
        return len(data)

    def _take(self, fd: int, data: bytes) -> None:
        if fd != self._report:
            self.text += data
            if len(self.text) > self._most:
                raise Broken("output")
            return
        for value in self._frames.feed(data):
            if not self.ready:
                if value != ["ready"]:
                    raise Broken("no frame of ours came first")
                self.ready = True
            elif type(value) is list and value:
                self.rows.append(value)
            else:
                raise Broken("a frame that is no list")

    def allow(self, most: int) -> None:
        """Let it write so many bytes of frames from now on."""
        self._frames.left = most + _SLACK

    def drain(self) -> None:
        """Take what is left, once the guest has ended, and close."""
        for fd in self.fds:
            while not self.broken and self.read(fd):
                pass
        self.wall_s = time.monotonic() - self._since
        self.close()

    def results(self) -> list[Result]:
        """The results that came, in order, up to the first malformed one."""
        results = []
        for index, row in enumerate(self.rows):
            try:
                results.append(result(row, index))
            except Malformed as malformed:
                self.broken = self.broken or f"a malformed result: {malformed}"
                break
        return results

    def failure(self) -> tuple[str, str] | None:
        """`(status, detail)` of an end that is not an exit by itself."""
        end = self.end or {"failed": "it never ended"}
        if "failed" in end:
            return "infra_error", f"a process of the jail could not start: {end['failed']}"
        code, killed = end["code"], end["killed"]
        if not self.ready and not self.broken:
            return "infra_error", f"the jail could not set itself up ({killed or exit_name(code)})"
        if self.broken == "output":
            return "output", "wrote more than allowed"
        if killed == "cpu" or (code == -signal.SIGKILL and end["cpu_s"] >= self._cpu_limit):
            return "timeout", f"used {end['cpu_s']:.2f} s of CPU time"
        if killed == "files":
            return "output", "made more files than allowed"
        if killed == "wall":
            return "timeout", "reached the limit by the clock"
        if self.broken:
            return "died", self.broken
        return None

    @property
    def code(self) -> int:
        """Its exit code; negative for a signal."""
        return (self.end or {}).get("code", 0)

    @property
    def cpu_s(self) -> float:
        """CPU seconds that it used."""
        return (self.end or {}).get("cpu_s", 0.0)

    def close(self) -> None:
        """Close its pipes."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def result(row: list[Any], index: int) -> Result:
    """The result in a guest's row, which should be its `index`-th.

    Raises:
      Malformed: it isn't.
    """
    try:
        kind, number, tagged, error = row
        if kind != "r" or number != index or not isinstance(error, str | None):
            raise Malformed("not the next result")
        return Result(decode(tagged), error if error is None else error[:ERROR_CHARS])
    except (ValueError, TypeError) as malformed:
        raise Malformed(str(malformed)) from malformed


def exit_name(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def outcome(watch: Watch, expected: int) -> Outcome:
    """What came of a guest that was to report so many results."""
    results = watch.results()[:expected]
    if failure := watch.failure():
        return Outcome(failure[0], results, failure[1], watch.cpu_s)
    if watch.code or len(results) < expected:
        return Outcome("died", results, exit_name(watch.code), watch.cpu_s)
    return ended_well(results, watch.cpu_s)


def ended_well(results: list[Result], cpu_s: float) -> Outcome:
    """What came of guests that ended by themselves."""
    if any((result.error or "").startswith("MemoryError") for result in results):
        return Outcome("memory", results, "used more memory than allowed", cpu_s)
    return Outcome("ok", results, "", cpu_s)

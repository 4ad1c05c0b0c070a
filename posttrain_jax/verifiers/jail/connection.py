"""The trusted side: `Jail` starts a zygote, hands it jobs and judges what comes back."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posttrain_jax.verifiers.jail.limits import Limits
from posttrain_jax.verifiers.jail.order import Order
from posttrain_jax.verifiers.jail.outcome import Unsandboxed
from posttrain_jax.verifiers.jail.scratch import remove
from posttrain_jax.verifiers.jail.tier import Tier
from posttrain_jax.verifiers.jail.watch import Watch
from posttrain_jax.verifiers.jail.wire import Channel

if TYPE_CHECKING:
    from posttrain_jax.verifiers.jail.functions import Kept

_START_SECONDS = 60.0
_GRACE_SECONDS = 15.0
_TURN_SECONDS = 0.25
_MAIN = (
    "import sys; sys.path[:] = {path!r}; "
    "from posttrain_jax.verifiers.jail.zygote import main; main({fd})"
)
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    # threads of a BLAS would be lost in the fork
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


_beat: Callable[[], None] | None = None


def while_waiting(beat: Callable[[], None]) -> None:
    """Have `beat` called at least four times a second while this process waits for a guest.

    For a process that is itself watched: this time is bounded by the guest's limits.
    """
    global _beat
    _beat = beat


class Gone(Exception):
    """The zygote died."""


def memory_file(data: bytes) -> int:
    """A descriptor of a nameless file that holds the data."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("job", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    view = memoryview(data)
    at = 0
    while at < len(view):
        at += os.pwrite(fd, view[at:], at)
    return fd


def _path() -> list[str]:
    return list(dict.fromkeys(os.path.abspath(path) for path in sys.path))


class Connection:
    """A zygote as its client sees it.

    Attributes:
      kept: the guest that stays for further calls of our own functions, see `functions`.

    Raises:
      RuntimeError: it could not start; the message says why. `Unsandboxed` at tier T0.
    """

    def __init__(self, preload: tuple[str, ...], allow_unsandboxed: bool, highest_tier: int):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            self._popen = self._spawn(theirs.fileno())
        self._idents = 0
        self._folder: str | None = None
        self._watches: dict[int, Watch] = {}
        self.kept: Kept | None = None
        answer: dict[str, Any]
        setup = {
            "path": _path(),
            "preload": list(preload),
            "allow_unsandboxed": allow_unsandboxed,
            "highest_tier": highest_tier,
            "parent": os.getpid() if threading.current_thread() is threading.main_thread() else 0,
        }
        try:
            self._channel.send(setup)
            answer = self._first()
        except OSError as error:
            answer = {"error": str(error)}
        if "refused" in answer:
            self.close()
            raise Unsandboxed(
                f"no isolation (tier T0), so no program is run: {answer['refused']}; "
                "allow_unsandboxed=True runs programs with all rights of this user"
            )
        if "tier" not in answer:
            self._errors.seek(0)
            said = self._errors.read()[-4000:].decode(errors="replace")
            self.close()
            raise RuntimeError(f"{answer.get('error')}\n{said}".rstrip())
        self.tier, self._folder = Tier(*answer["tier"]), answer["folder"]

    def _spawn(self, fd: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-c", _MAIN.format(path=_path(), fd=fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env=_ENVIRONMENT,
            pass_fds=(fd,),
            start_new_session=True,
            cwd="/",
        )

    @property
    def pid(self) -> int:
        """The process id of the zygote (of its outermost process)."""
        return self._popen.pid

    def _first(self) -> dict[str, Any]:
        self._channel.sock.settimeout(_START_SECONDS)
        try:
            messages = self._channel.receive()
        except TimeoutError:
            return {"error": f"no answer within {_START_SECONDS:.0f} s"}
        finally:
            self._channel.sock.settimeout(None)
        return messages[0][0] if messages else {"error": "it ended at once"}

    def start(
        self, kind: str, limits: Limits, fds: tuple[int, ...], *, output: bool = False,
        target: str = "",
    ) -> Watch:  # fmt: skip
        """Start a guest.

        Args:
          kind: see `guest.Order`.
          limits: what it may use.
          fds: what it gets after its report pipe.
          output: whether its last descriptor is a pipe that we read.
          target: see `guest.Order`.

        Raises:
          Gone: the zygote died.
        """
        pipes = [os.pipe() for _ in range(2 if output else 1)]
        theirs = [write for _, write in pipes]
        sent = (theirs[0], *fds, *theirs[1:])
        self._idents += 1
        order = Order(kind, limits.cpu_s, limits.wall, limits.mem_mb, limits.out_kb, target)
        try:
            self._channel.send({"id": self._idents, "order": list(order)}, sent)
        except OSError as error:
            for read, _ in pipes:
                os.close(read)
            raise Gone(str(error)) from error
        finally:
            for fd in theirs:
                os.close(fd)
        most = int(limits.out_kb * 1024)
        output_fd = pipes[1][0] if output else None
        watch = Watch(self._idents, pipes[0][0], output_fd, most, limits.cpu_s)
        self._watches[watch.ident] = watch
        return watch

    def tell(self, watch: Watch, message: dict[str, Any]) -> None:
        """Send the zygote a message about a guest.

        Raises:
          Gone: the zygote died.
        """
        try:
            self._channel.send({"id": watch.ident, **message})
        except OSError as error:
            raise Gone(str(error)) from error

    def wait(
        self, watches: list[Watch], seconds: float, until: Callable[[], bool] | None = None
    ) -> None:
        """Read from guests until they have ended, or `until()` is true.

        Args:
          watches: whom to read from.
          seconds: what the zygote allows them; when it doesn't keep its word it is ended.
          until: looked at after every event.

        Raises:
          Gone: the zygote died.
        """
        poll, owner = select.poll(), {fd: watch for watch in watches for fd in watch.fds}
        for fd in (self._channel.fileno(), *owner):
            poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + seconds + _GRACE_SECONDS
        asked = set()
        while any(w.end is None for w in watches) and not (until is not None and until()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise Gone("it doesn't answer")
            if _beat is not None:
                _beat()
            for fd, _ in poll.poll(min(left, _TURN_SECONDS) * 1000):
                if fd == self._channel.fileno():
                    self._take_messages()
                elif owner[fd].read(fd) == 0:
                    poll.unregister(fd)
            for watch in watches:
                if watch.broken and watch.ident not in asked:
                    asked.add(watch.ident)
                    self.tell(watch, {"kill": True})

    def finish(self, watches: list[Watch], seconds: float, beside: tuple[Watch, ...] = ()) -> None:
        """Wait for guests to end, then end those beside them; what all wrote is read.

        Raises:
          Gone: the zygote died.
        """
        try:
            self.wait(watches, seconds)
            for watch in beside:
                if watch.end is None:
                    self.tell(watch, {"kill": True})
            self.wait([*beside], seconds)
        finally:
            for watch in (*watches, *beside):
                watch.drain()

    def _take_messages(self) -> None:
        try:
            messages = self._channel.receive()
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise Gone(f"the control channel: {error}") from error
        if messages is None:
            raise Gone("it ended")
        for message, _ in messages:
            watch = self._watches.pop(message["id"], None)
            if watch is not None:
                watch.end = message

    def close(self) -> None:
        """End the zygote and every guest, and reap it. May be called again."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(1.0)
        self._popen.kill()
        self._popen.wait()
        self._errors.close()
        if self._folder and os.path.exists(self._folder):
            remove(self._folder)  # it was killed
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        if self.kept is not None:
            self.kept.dialogue.close()
            self.kept = None

"""The threads that own the workers of a pool: one thread, one process at a time.

Linux kills a worker when the thread that started it ends, so the thread that starts a worker is
the one that lives as long as it does.
"""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers.process import Died, Process, Stalled

Key = tuple[int, int]
"""A sample and a term: what one verdict is about."""
Timed = tuple[Verdict, float]
"""A verdict and the seconds it took."""
_DEATHS = 2


class Batch:
    """The items of one call and the verdicts that arrived so far.

    Attributes:
      verdicts, seconds: one row a sample, one column a term.
      digests: what `cache` knows its questions by.
      error: what made the batch fail, if it did.
      future: set by `finish(batch)`, which is called once, when the batch is done or failed.
    """

    def __init__(
        self,
        responses: Sequence[str],
        examples: Sequence[Mapping[str, Any]],
        terms: int,
        finish: Callable[["Batch"], None],
    ):
        self.responses, self.examples, self.terms = responses, examples, terms
        self.verdicts: list[list[Verdict | None]] = [[None] * terms for _ in responses]
        self.seconds = [[0.0] * terms for _ in responses]
        self.deaths = Counter[Key]()
        self.digests: dict[Key, bytes] = {}
        self.error: Exception | None = None
        self.future: Future[Any] = Future()
        self._finish = finish
        self._left = len(responses) * terms
        self._over = not responses
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted of it."""
        return self._over

    def put(self, keys: Sequence[Key], timed: Sequence[Timed]) -> None:
        """Enter verdicts; the last one of the batch finishes it."""
        for (sample, term), (verdict, seconds) in zip(keys, timed, strict=True):
            self.verdicts[sample][term] = verdict
            self.seconds[sample][term] = seconds
        with self._lock:
            self._left -= len(keys)
            if self._left or self._over:
                return
            self._over = True
        self._finish(self)

    def fail(self, error: Exception) -> None:
        """Finish the batch with an error, unless it is over."""
        with self._lock:
            if self._over:
                return
            self._over, self.error = True, error
        self._finish(self)


class Chunk(NamedTuple):
    """A part of a batch: `todo` is in order and shrinks as verdicts arrive."""

    batch: Batch
    todo: list[Key]


class Owner(threading.Thread):
    """A thread with one worker: starts it, feeds it chunks, watches its clock, replaces it.

    Args:
      setup: the first frame for every worker.
      chunks: shared by all owners; None ends the thread.
      closed: set when the pool closes.
      limits: CPU and wall seconds for one verdict.
      count: called with the name of what happened.
      poisoned: called with batch, key and reason of an item that killed two workers.
    """

    def __init__(
        self,
        setup: dict[str, Any],
        chunks: "queue.Queue[Chunk | None]",
        closed: threading.Event,
        limits: tuple[float, float],
        count: Callable[[str, int], None],
        poisoned: Callable[[Batch, Key, str], None],
    ):
        super().__init__(name="verifiers", daemon=True)
        self._setup, self._chunks, self._closed, self._limits = setup, chunks, closed, limits
        self._count, self._poisoned = count, poisoned
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the worker, None while there is none."""
        process = self._process
        return process.pid if process else None

    def run(self) -> None:
        """Serve chunks until the pool closes."""
        first_error = None
        try:
            self._process = Process(self._setup)
        except Exception as error:
            first_error = error
        while (chunk := self._chunks.get()) is not None and not self._closed.is_set():
            try:
                if first_error is not None:
                    raise first_error
                self._work(*chunk)
            except Exception as error:
                self._drop()
                chunk.batch.fail(error)
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _drop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _work(self, batch: Batch, todo: list[Key]) -> None:
        """Have a chunk scored, by as many workers as it takes."""
        while todo and not batch.over and not self._closed.is_set():
            if self._process is None:
                self._count("restarts", 1)
                self._process = Process(self._setup)
            process, sent = self._process, len(todo)
            try:
                process.send(_request(batch, todo))
                self._collect(process, batch, todo)
            except (Stalled, Died) as error:
                # Verdicts that were done but not received are simply asked for again.
                at = min(max(process.done - (sent - len(todo)), 0), len(todo) - 1)
                self._drop()
                self._judge(batch, todo, at, error, process.silence)

    def _collect(self, process: Process, batch: Batch, todo: list[Key]) -> None:
        """Take verdicts as they come, until all of `todo` are there or the pool closes."""
        cpu, wall = self._limits
        while todo and not self._closed.is_set():
            answers = process.receive(min(0.1, cpu / 4))
            if not answers:
                process.check(cpu, wall)
            for verdicts in answers:
                if len(verdicts) > len(todo):
                    raise Died("verdicts that weren't asked for")
                self._put(batch, todo, [(Verdict(*said), took) for *said, took in verdicts])
        if todo:
            self._drop()

    def _put(self, batch: Batch, todo: list[Key], timed: list[Timed]) -> None:
        """Enter the verdicts of the first of `todo`, which aren't to do any more."""
        keys = todo[: len(timed)]
        del todo[: len(timed)]
        self._count("verdicts", len(timed))
        for key, (verdict, _) in zip(keys, timed, strict=True):
            if verdict.status == "poisoned":
                self._poisoned(batch, key, verdict.detail)
            elif verdict.status == "timeout":
                self._count("timeouts", 1)
        batch.put(keys, timed)

    def _judge(
        self, batch: Batch, todo: list[Key], at: int, error: Exception, seconds: float
    ) -> None:
        """After a lost worker: the verdict it was at is a timeout, tried again, or given up."""
        key, reason = todo[at], str(error)
        if isinstance(error, Stalled):
            verdict = Verdict(0.0, "timeout", reason)
        else:
            self._count("deaths", 1)
            batch.deaths[key] += 1
            if batch.deaths[key] < _DEATHS:
                return
            verdict = Verdict(0.0, "poisoned", f"the worker died {_DEATHS} times: {reason}")
        todo.insert(0, todo.pop(at))
        self._put(batch, todo, [(verdict, seconds)])


def _request(batch: Batch, todo: list[Key]) -> list[Any]:
    """A chunk for the wire: every response once, with the terms wanted of it."""
    wanted: dict[int, list[int]] = {}
    for sample, term in todo:
        wanted.setdefault(sample, []).append(term)
    return [[batch.responses[i], dict(batch.examples[i]), terms] for i, terms in wanted.items()]

"""The pool of verifier workers on the host: text in, rewards out, whatever a verifier does.

Each worker is a process of its own (`process.py`, `worker.py`), owned by one thread that hands it
chunks of items and watches the clock (`owner.py`). For every verifier and item:

- past the deadline, the worker is killed and replaced; only that verdict becomes `timeout`,
  score 0. The deadline is in CPU seconds, so that verdicts don't depend on the load of the
  machine; four times as much wall time is the backstop for a verifier that sleeps.
- a worker that dies is replaced and the verdict it was at is tried once more; the second death is
  `poisoned`, score 0, and the item goes to the quarantine file.
- a verifier that raises gives `infra_error`: the sample is masked out of the loss, counted, and
  above a small share of a batch the whole batch fails with the verifiers' own messages.

Programs that a model wrote run in the jail of the worker that judges them (`jail/`), never in a
worker, which holds the references. The queue is bounded: `submit` waits where the workers are far
behind. Verdicts of costly verifiers are cached (`cache.py`).
"""

import atexit
import contextlib
import json
import math
import queue
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers.cache import Cache
from posttrain_jax.verifiers.owner import Batch, Chunk, Key, Owner
from posttrain_jax.verifiers.terms import make_terms

_LARGEST_CHUNK = 64
_LONGEST_QUEUE = 1024
_FEW = 3
_COUNTS = (
    "samples", "verdicts", "cached", "timeouts", "infra_errors", "deaths", "poisoned", "restarts",
)  # fmt: skip


class Verdicts(NamedTuple):
    """What the pool says of a batch.

    Attributes:
      rewards_BW: float32 scores, one column a term, unweighted.
      mask_B: False where a sample must be left out of the loss (an `infra_error`).
      verdicts: the full verdicts, one tuple a sample, in the order of the terms.
      seconds_BW: float32 wall time of each verdict, 0 for a cached one.
    """

    rewards_BW: np.ndarray
    mask_B: np.ndarray
    verdicts: list[tuple[Verdict, ...]]
    seconds_BW: np.ndarray

    def take(self, rows: Sequence[int]) -> "Verdicts":
        """Those of the given samples, in the given order."""
        chosen = [self.verdicts[row] for row in rows]
        return Verdicts(self.rewards_BW[rows], self.mask_B[rows], chosen, self.seconds_BW[rows])


Part = tuple[Sequence[int] | np.ndarray, Future[Verdicts]]
"""The places of some samples in a batch, and the future of their verdicts."""


def _verdicts(rows: list[tuple[Verdict, ...]], seconds_BW: np.ndarray) -> Verdicts:
    scores = [[verdict.score for verdict in row] for row in rows]
    broken = [any(verdict.status == "infra_error" for verdict in row) for row in rows]
    return Verdicts(
        np.array(scores, np.float32).reshape(seconds_BW.shape), ~np.array(broken, bool), rows,
        seconds_BW,
    )  # fmt: skip


class Pool:
    """Worker processes that score responses.

    Args:
      terms: `{"accuracy": {"verifier": "task_answer", "weight": 1.0, <options>}}`, see
        `terms.make_terms`.
      workers: processes.
      deadline: CPU seconds a verifier may take for one item.
      wall_factor: the wall time it may take, as a multiple of `deadline`.
      max_infra_share: above this share of `infra_error` samples in a batch, and above three of
        them, the batch fails.
      memory_mb: the address space of a worker.
      quarantine: a JSONL file that poisoned items are appended to.

    Attributes:
      names: the terms' names, the columns of `rewards_BW`.
      weights: their weights, which the scores aren't multiplied by.

    Raises:
      ValueError, TypeError: from `make_terms`, or a size below 1.
    """

    def __init__(
        self,
        terms: Mapping[str, Mapping[str, Any]],
        *,
        workers: int = 2,
        deadline: float = 5.0,
        wall_factor: float = 4.0,
        max_infra_share: float = 0.005,
        memory_mb: int = 4096,
        quarantine: str | Path | None = None,
    ):
        if workers < 1 or deadline <= 0 or wall_factor < 1:
            raise ValueError(
                f"workers={workers}, deadline={deadline}, wall_factor={wall_factor}: expected at "
                "least 1 worker, a deadline above 0 and a factor of at least 1"
            )
        self._terms = make_terms(terms)
        self.names = tuple(term.name for term in self._terms)
        self.weights = tuple(term.weight for term in self._terms)
        self._range = range(len(self._terms))
        self._max_infra_share = max_infra_share
        self._quarantine = Path(quarantine) if quarantine else None
        self._cache = Cache(self._terms)
        self._chunks: queue.Queue[Chunk | None] = queue.Queue(_LONGEST_QUEUE)
        self._lock = threading.Lock()
        self._counts = Counter[str]()
        self._open: set[Batch] = set()
        self._closed = threading.Event()
        setup = {"terms": [list(term) for term in self._terms], "memory_mb": memory_mb}
        limits = (deadline, deadline * wall_factor)
        self._owners = [
            Owner(setup, self._chunks, self._closed, limits, self._count, self._poisoned)
            for _ in range(workers if self._terms else 0)
        ]
        for owner in self._owners:
            owner.start()
        atexit.register(self.close)

    @property
    def counts(self) -> dict[str, int]:
        """What happened since the start, by name.

        `samples` are those of finished batches; `verdicts` are the workers', `cached` were known
        already; `infra_errors` counts verdicts; `restarts` the workers started in place of another.
        """
        with self._lock:
            return {name: self._counts[name] for name in _COUNTS}

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that are up."""
        return sorted(owner.pid for owner in self._owners if owner.pid is not None)

    def __call__(
        self, responses: Sequence[str], examples: Sequence[Mapping[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`(rewards_BW, mask_B)` of a batch, in its order: see `Verdicts`.

        Raises:
          RuntimeError: too many `infra_error` samples, no worker can start, or a closed pool.
        """
        verdicts = self.verdicts(responses, examples)
        return verdicts.rewards_BW, verdicts.mask_B

    def verdicts(self, responses: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> Verdicts:
        """As `__call__`, with every verdict."""
        return self.gather([(range(len(responses)), self.submit(responses, examples))])

    def gather(self, parts: Sequence[Part]) -> Verdicts:
        """The verdicts of a batch that was submitted in parts, in the order of its samples.

        Args:
          parts: the places of each part's samples in the batch, and its future.

        Raises:
          RuntimeError: too many `infra_error` samples, no worker can start, or a closed pool.
        """
        count = sum(len(places) for places, _ in parts)
        rows: list[tuple[Verdict, ...]] = [()] * count
        seconds = np.zeros((count, len(self.names)), np.float32)
        for places, future in parts:
            found = future.result()
            seconds[list(places)] = found.seconds_BW
            for place, row in zip(places, found.verdicts, strict=True):
                rows[place] = row
        merged = _verdicts(rows, seconds)
        broken = int(np.sum(~merged.mask_B))
        if broken > max(_FEW, self._max_infra_share * count):
            raise RuntimeError(self._complaint(rows, broken))
        return merged

    def submit(
        self, responses: Sequence[str], examples: Sequence[Mapping[str, Any]]
    ) -> Future[Verdicts]:
        """Start on a batch; `gather` its future, or several.

        Returns at once, unless the queue is full.

        Raises:
          ValueError: the two sequences differ in length.
          RuntimeError: the pool is closed.
        """
        if len(responses) != len(examples):
            raise ValueError(f"{len(responses)} responses for {len(examples)} examples")
        batch = Batch(list(responses), list(examples), len(self.names), self._finish)
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("the verifier pool is closed")
            self._open.add(batch)
        if not responses or not self.names:
            self._finish(batch)
            return batch.future
        todo = self._unknown(batch)
        size = math.ceil(len(todo) / (4 * len(self._owners) * batch.terms))
        size = max(1, min(_LARGEST_CHUNK, size)) * batch.terms
        for start in range(0, len(todo), size):
            self._enqueue(Chunk(batch, todo[start : start + size]))
        return batch.future

    def _unknown(self, batch: Batch) -> list[Key]:
        """Enter what the cache knows of a batch; the verdicts that are left to find."""
        keys = [(sample, term) for sample in range(len(batch.responses)) for term in self._range]
        known = {key: verdict for key in keys if (verdict := self._cache.get(batch, key))}
        self._count("cached", len(known))
        if known:
            batch.put(list(known), [(verdict, 0.0) for verdict in known.values()])
        return [key for key in keys if key not in known]

    def _enqueue(self, chunk: Chunk | None) -> None:
        while not self._closed.is_set():
            try:
                return self._chunks.put(chunk, timeout=0.1)
            except queue.Full:
                continue

    def close(self) -> None:
        """Stop the workers and reap them; what is unfinished fails. May be called again."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        # An owner that waits for a chunk needs one to wake up; one that works looks at `_closed`.
        with contextlib.suppress(queue.Full):
            for _ in self._owners:
                self._chunks.put_nowait(None)
        for owner in self._owners:
            owner.join()
        with self._lock:
            unfinished = list(self._open)
            self._open.clear()
        for batch in unfinished:
            batch.fail(RuntimeError("the verifier pool was closed before the batch was done"))
        atexit.unregister(self.close)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by

    def _poisoned(self, batch: Batch, key: Key, reason: str) -> None:
        """Append an item that killed two workers to the quarantine file."""
        self._count("poisoned")
        if self._quarantine is None:
            return
        sample, term = key
        row = {"term": self.names[term], "verifier": self._terms[term].verifier, "reason": reason}
        row |= {"response": batch.responses[sample], "example": dict(batch.examples[sample])}
        with self._lock, self._quarantine.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _finish(self, batch: Batch) -> None:
        """Hand over a batch that has all its verdicts or failed; called once, from any thread."""
        with self._lock:
            self._open.discard(batch)
        if batch.error is not None:
            batch.future.set_exception(batch.error)
            return
        rows = [tuple(v for v in row if v is not None) for row in batch.verdicts]
        self._cache.put(batch)
        self._count("samples", len(rows))
        self._count("infra_errors", sum(v.status == "infra_error" for row in rows for v in row))
        shape = (len(rows), len(self.names))
        batch.future.set_result(_verdicts(rows, np.array(batch.seconds, np.float32).reshape(shape)))

    def _complaint(self, rows: list[tuple[Verdict, ...]], broken: int) -> str:
        reasons = Counter(
            f"{name}: {verdict.detail}"
            for row in rows
            for name, verdict in zip(self.names, row, strict=True)
            if verdict.status == "infra_error"
        )
        said = "; ".join(f"{reason} ({n} times)" for reason, n in reasons.most_common(3))
        first = next(i for i, row in enumerate(rows) if any(v.status == "infra_error" for v in row))
        return (
            f"verifiers failed on {broken} of {len(rows)} samples, above max_infra_share="
            f"{self._max_infra_share:g}, the first is row {first}: {said}"
        )

"""Verdicts that are known already: a costly verifier need not judge the same thing twice.

A verifier whose module says `CACHED = True` promises that its verdict depends on response, example
and options only. What depended on the host (a timeout, a failure of its own) is never kept.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers.owner import Batch, Key
from posttrain_jax.verifiers.terms import Term, load_verifier

_MOST = 1 << 16


class Cache:
    """The latest 65,536 verdicts of the cached terms, by the SHA-256 of all they depend on."""

    def __init__(self, terms: Sequence[Term]):
        self._terms = {
            number: json.dumps([term.verifier, term.options, term.span], sort_keys=True)
            for number, term in enumerate(terms)
            if getattr(load_verifier(term.verifier), "CACHED", False)
        }
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def _digest(self, batch: Batch, key: Key) -> bytes:
        if key not in batch.digests:
            sample, term = key
            asked = [self._terms[term], batch.responses[sample], dict(batch.examples[sample])]
            text = json.dumps(asked, sort_keys=True, default=repr)
            batch.digests[key] = hashlib.sha256(text.encode()).digest()
        return batch.digests[key]

    def get(self, batch: Batch, key: Key) -> Verdict | None:
        """The verdict on a sample and a term, if it is known."""
        if key[1] not in self._terms:
            return None
        digest = self._digest(batch, key)
        with self._lock:
            return self._known.get(digest)

    def put(self, batch: Batch) -> None:
        """Keep the verdicts of a finished batch."""
        for sample, row in enumerate(batch.verdicts):
            for term in self._terms:
                verdict = row[term]
                if verdict is None or verdict.status not in ("pass", "fail"):
                    continue
                digest = self._digest(batch, (sample, term))
                with self._lock:
                    self._known[digest] = verdict
                    while len(self._known) > _MOST:
                        self._known.popitem(last=False)

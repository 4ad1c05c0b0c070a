"""The terms of a reward as a recipe names them, checked before anything runs."""

import importlib
import importlib.util
import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from posttrain_jax import registry
from posttrain_jax.verifiers import jail, tags

SPANS = ("whole", "thought", "answer")


class Term(NamedTuple):
    """One term of a reward.

    Attributes:
      name: its name in the metrics.
      verifier: a file of `posttrain_jax/verifiers/`, or the path of a `.py` file.
      weight: its factor in the sum of the terms.
      options: the keyword arguments of the verifier's `score`.
      span: what of the response it reads, one of `SPANS`.
    """

    name: str
    verifier: str
    weight: float
    options: dict[str, Any]
    span: str = "whole"


def cut(response: str, span: str) -> str:
    """The part of a response that a term reads: all of it, the chain of thought, or the answer."""
    if span == "whole":
        return response
    if span == "thought":
        return tags.chain(response)
    return tags.answer(response)


@lru_cache(maxsize=256)
def load_verifier(verifier: str) -> ModuleType:
    """The module of a verifier: by name, or by path where the name ends in `.py`.

    Raises:
      ValueError: there is none of that name, or it has no `score`.
    """
    if verifier.endswith(".py"):
        path = Path(verifier)
        if not path.is_file():
            raise ValueError(f"verifier {verifier!r}: no such file")
        spec = importlib.util.spec_from_file_location(f"_verifier_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = registry.load("verifiers", verifier)
    if not callable(getattr(module, "score", None)):
        raise ValueError(f"verifier {verifier!r} has no score(response, example, **options)")
    return module


def prepare(verifier: str, options: Mapping[str, Any]) -> ModuleType:
    """Load a verifier and what it needs in this process, so that no item's deadline pays for it.

    A verifier may define `PRELOAD`, modules to import; `JAIL`, modules that the process in which
    its jailed jobs are forked imports; and `prepare(**options)`, for one that calls others.

    Raises:
      RuntimeError: its jail can't start.
    """
    module = load_verifier(verifier)
    for name in getattr(module, "PRELOAD", ()):
        importlib.import_module(name)
    if hasattr(module, "JAIL"):
        allowed = bool(options.get("allow_unsandboxed"))
        jail.shared(tuple(module.JAIL), allow_unsandboxed=allowed).start()
    if hasattr(module, "prepare"):
        module.prepare(**options)
    return module


def make_terms(terms: Mapping[str, Mapping[str, Any]]) -> list[Term]:
    """Terms from `{"accuracy": {"verifier": "task_answer", "weight": 1.0, <options>}}`.

    The weight defaults to 1 and the span to `whole`. A relative path is made absolute, so that
    workers find it.

    Raises:
      ValueError: a term without a verifier or with one that isn't there, or an unknown span.
      TypeError: an option that the verifier doesn't know, or one that isn't JSON.
    """
    made = []
    for name, spec in terms.items():
        options = dict(spec.items())
        verifier = options.pop("verifier", None)
        if not isinstance(verifier, str):
            raise ValueError(f"term {name!r}: 'verifier' is {verifier!r}, expected a name")
        if verifier.endswith(".py"):
            verifier = str(Path(verifier).resolve())
        weight = float(options.pop("weight", 1.0))
        span = options.pop("span", "whole")
        if span not in SPANS:
            raise ValueError(f"term {name!r}: span={span!r}, expected one of {', '.join(SPANS)}")
        try:
            inspect.signature(load_verifier(verifier).score).bind("", {}, **options)
            json.dumps(options)
        except TypeError as error:
            raise TypeError(f"term {name!r}, verifier {verifier!r}: {error}") from error
        made.append(Term(name, verifier, weight, options, span))
    return made

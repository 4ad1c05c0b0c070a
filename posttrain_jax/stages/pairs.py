"""Pairs of a better and a worse response from scored samples (the artifact of a generate stage).

`score` names what ranks the samples: one score, or several whose mean counts. `method`:

  best_worst   the best against the worst, the second best against the second worst, and so on
               (RLHF Workflow, arXiv 2405.07863: the best and the worst of eight)
  right_wrong  samples that score at least `right` against those that don't, every one used as often
               as the others (Iterative RPO, arXiv 2404.19733, section 2: K pairs of N samples)
  best_lower   the best against any with a lower score (Tülu 3, arXiv 2411.15124, section 5.2.1)
  short_long   the shortest right against the longest right (Sky-T1-32B-Flash)

Up to `per_prompt` pairs come from a prompt. Then pairs are left out whose scores differ by less
than `margin`, whose longer side has over `length_ratio` times the tokens of the shorter (0: all
pass), and, with `balance_lengths`, as many as it takes, drawn at random, for the chosen response to
be the longer one as often as the shorter one.

A response may be a list of messages, a conversation that was sampled turn by turn. Then a pair is
what follows on the messages that both begin with; with `one_message` only the first message of it,
so that a single choice is judged. All that is left out is counted.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_jax import artifacts, process
from posttrain_jax.api import Artifact
from posttrain_jax.data.examples import DATA
from posttrain_jax.data.source import JsonlSource
from posttrain_jax.files import write_text
from posttrain_jax.metrics import MetricLogger
from posttrain_jax.policy import stage_title

DEFAULTS = {
    "score": ...,
    "method": "best_worst",
    "per_prompt": 1,
    "right": 1.0,
    "margin": 0.0,
    "length_ratio": 0.0,
    "balance_lengths": False,
    "one_message": False,
}
SAMPLE = ("response", "sample", "index", "length", "finished", "scores", "masked", "forged")
"""Fields of a sample that are not its example's."""
LEFT_OUT: tuple[str, ...] = (
    "masked", "unfinished", "forged", "empty", "not_finite", "repeated", "no_pair", "margin",
    "length_ratio", "balance",
)  # fmt: skip
"""Why samples, then prompts (no_pair), then pairs are left out."""
Row = Mapping[str, Any]
Choice = tuple[Row, Row]
"""A better sample and a worse one."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Pairs from inputs["samples"] -> data.jsonl with `chosen` and `rejected`."""
    rows = list(JsonlSource(inputs["samples"].path / DATA))
    settings = {name: config[name] for name in DEFAULTS}
    pairs, counts = build(rows, random.Random(config.seed), **settings)
    if not pairs:
        raise ValueError(
            f"{len(rows)} samples give no pair with method={config.method!r} and "
            f"margin={config.margin}; counts: {counts}"
        )
    if process.index() == 0:
        lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
        write_text(workdir / DATA, "".join(lines))
    metrics = {**counts, **_describe(pairs)}
    with MetricLogger(workdir, 1, stage_title(workdir)) as log:
        log(1, metrics)
    return artifacts.finish(workdir, metrics=metrics)


def build(
    rows: Sequence[Row], rng: random.Random, *, score: str | Sequence[str], method: str,
    per_prompt: int = 1, right: float = 1.0, margin: float = 0.0, length_ratio: float = 0.0,
    balance_lengths: bool = False, one_message: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, int]]:  # fmt: skip
    """The pairs, in the order of the prompts, and what was left out.

    Of samples: those that the verifier failed on, that did not end (the template would close what
    the policy did not), that hold a turn marker, are empty, have a score that is not finite, or
    repeat another one. Of prompts: those that give no pair. Of pairs: see above.

    Raises:
      ValueError: an unknown method, or a score that the samples don't have.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    names = _score_names(rows, score)
    counts = dict.fromkeys(LEFT_OUT, 0)
    by_prompt: dict[int, list[Row]] = {}
    for row in rows:
        ranked = {**row, "rank": sum(row["scores"][name] for name in names) / len(names)}
        group = by_prompt.setdefault(row["index"], [])
        if reason := _refused(ranked, group):
            counts[reason] += 1
        else:
            group.append(ranked)
    choices: list[Choice] = []
    for group in by_prompt.values():
        found = list(itertools.islice(METHODS[method](group, right, rng), per_prompt))
        counts["no_pair"] += not found
        choices += found
    choices = _filter(choices, "margin", counts, lambda c: c[0]["rank"] - c[1]["rank"] >= margin)
    if length_ratio:
        balanced = lambda c: _longer(c) <= length_ratio * _shorter(c)  # noqa: E731
        choices = _filter(choices, "length_ratio", counts, balanced)
    if balance_lengths:
        surplus = _surplus(choices, rng)
        choices = _filter(choices, "balance", counts, lambda c: id(c) not in surplus)
    numbers = itertools.count()
    pairs = [_pair(choice, next(numbers), one_message) for choice in choices]
    return pairs, {"sampled": len(rows), "prompts": len(by_prompt), **counts, "kept": len(pairs)}


def _score_names(rows: Sequence[Row], score: str | Sequence[str]) -> list[str]:
    names = [score] if isinstance(score, str) else list(score)
    known = set(rows[0]["scores"]) if rows else set()
    if not names or set(names) - known:
        raise ValueError(f"score={score!r}: the samples have {sorted(known)}; name one or more")
    return names


def _refused(row: Row, others: Iterable[Row]) -> str:
    """Why a sample is left out; empty where it is not."""
    reasons = {
        "masked": row["masked"],
        "unfinished": not row["finished"],
        "forged": row["forged"],
        "empty": not _has_words(row["response"]),
        "not_finite": not math.isfinite(row["rank"]),
        "repeated": any(row["response"] == other["response"] for other in others),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _has_words(response: Any) -> bool:
    turns = [{"content": response}] if isinstance(response, str) else response
    return any((turn.get("content") or "").strip() or turn.get("tool_calls") for turn in turns)


def _best_worst(group: Sequence[Row], right: float, rng: random.Random) -> Iterable[Choice]:
    ranked = sorted(group, key=lambda row: -row["rank"])
    for place in range(len(ranked) // 2):
        if ranked[place]["rank"] > ranked[-1 - place]["rank"]:
            yield ranked[place], ranked[-1 - place]


def _right_wrong(group: Sequence[Row], right: float, rng: random.Random) -> Iterable[Choice]:
    good = [row for row in group if row["rank"] >= right]
    bad = [row for row in group if row["rank"] < right]
    rng.shuffle(good)
    rng.shuffle(bad)
    for number in range(len(good) * len(bad)):
        # Both lists go round together; after each common round one is a step further.
        shift = number // math.lcm(len(good), len(bad))
        yield good[number % len(good)], bad[(number + shift) % len(bad)]


def _best_lower(group: Sequence[Row], right: float, rng: random.Random) -> Iterable[Choice]:
    best = max(group, key=lambda row: row["rank"], default=None)
    lower = [row for row in group if best is not None and row["rank"] < best["rank"]]
    rng.shuffle(lower)
    return ((best, row) for row in lower if best is not None)


def _short_long(group: Sequence[Row], right: float, rng: random.Random) -> Iterable[Choice]:
    ranked = sorted((r for r in group if r["rank"] >= right), key=lambda row: row["length"])
    for place in range(len(ranked) // 2):
        if ranked[place]["length"] < ranked[-1 - place]["length"]:
            yield ranked[place], ranked[-1 - place]


METHODS: dict[str, Callable[[Sequence[Row], float, random.Random], Iterable[Choice]]] = {
    "best_worst": _best_worst,
    "right_wrong": _right_wrong,
    "best_lower": _best_lower,
    "short_long": _short_long,
}


def _filter(choices: list[Choice], reason: str, counts: dict[str, int], keep) -> list[Choice]:
    kept = [choice for choice in choices if keep(choice)]
    counts[reason] += len(choices) - len(kept)
    return kept


def _longer(choice: Choice) -> int:
    return max(row["length"] for row in choice)


def _shorter(choice: Choice) -> int:
    return min(row["length"] for row in choice)


def _surplus(choices: Sequence[Choice], rng: random.Random) -> set[int]:
    """Of the pairs that are in the majority by which side is longer, those too many, at random."""
    longer = [c for c in choices if c[0]["length"] > c[1]["length"]]
    shorter = [c for c in choices if c[0]["length"] < c[1]["length"]]
    more, fewer = (longer, shorter) if len(longer) > len(shorter) else (shorter, longer)
    return {id(choice) for choice in rng.sample(more, len(more) - len(fewer))}


def _pair(choice: Choice, number: int, one_message: bool) -> dict[str, Any]:
    """A row of data.jsonl."""
    better, worse = choice
    example = {key: value for key, value in better.items() if key not in (*SAMPLE, "rank")}
    sides = {"chosen": better["response"], "rejected": worse["response"]}
    if one_message and not isinstance(better["response"], str):
        sides = dict(zip(sides, _first_difference(*sides.values()), strict=True))
    ranks = {f"{side}_score": row["rank"] for side, row in zip(sides, choice, strict=True)}
    sizes = {f"{side}_length": row["length"] for side, row in zip(sides, choice, strict=True)}
    return {**example, "id": f"{example.get('id')}-{number}", **sides, **ranks, **sizes}


def _first_difference(one: Sequence[Row], other: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Two conversations up to the first message that differs, that one included."""
    same = 0
    while same < min(len(one), len(other)) - 1 and one[same] == other[same]:
        same += 1
    return list(one[: same + 1]), list(other[: same + 1])


def _describe(pairs: Sequence[Row]) -> dict[str, float]:
    """Mean scores and lengths of the sides."""
    return {
        f"{side}_{what}": math.fsum(pair[f"{side}_{what}"] for pair in pairs) / len(pairs)
        for side in ("chosen", "rejected")
        for what in ("score", "length")
    }

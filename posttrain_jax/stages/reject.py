"""Rejection sampling: keep the verified responses, drop duplicates, mix in other examples.

DeepSeek-R1 keeps correct samples only and drops mixed-language chains of thought (arXiv
2501.12948v1, section 2.3.3). Everything that was sampled stays in the generate stage's artifact;
this one holds what supervised stages train on, and counts what it left out and why.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_jax import artifacts, process
from posttrain_jax.api import Artifact
from posttrain_jax.data.examples import DATA, load_examples
from posttrain_jax.data.source import JsonlSource
from posttrain_jax.files import write_text
from posttrain_jax.metrics import MetricLogger
from posttrain_jax.policy import stage_title

DEFAULTS = {
    "keep": {},
    "per_prompt": 0,
    "prefer": "first",
    "mix": {},
}
PREFERENCES = ("first", "short", "long")


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Filter inputs["samples"] and mix in the sources of `config.mix`.

    `keep` maps a score to its least value; masked, unfinished and forged samples never pass, nor
    are they mixed in. At most `per_prompt` responses a prompt stay (0: all), the `prefer`red ones
    first: `first`, `short`, `long`, or those with the most of the score that it names.
    """
    rows = list(JsonlSource(inputs["samples"].path / DATA))
    kept, counts = select(rows, config.keep.to_dict(), config.per_prompt, config.prefer)
    if not kept:
        raise ValueError(
            f"none of {len(rows)} samples passes stages.{stage_title(workdir)}.keep="
            f"{config.keep.to_dict()}; counts: {counts}"
        )
    mixed = load_examples(config.mix, inputs, config.seed) if config.mix else []
    good = [row for row in mixed if not spoilt(row)]
    counts |= {"mixed": len(good), "mixed_dropped": len(mixed) - len(good)}
    data = [*kept, *good]
    random.Random(config.seed).shuffle(data)
    if process.index() == 0:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in data]
        write_text(workdir / DATA, "".join(lines))
    with MetricLogger(workdir, 1, stage_title(workdir)) as log:
        log(1, counts)
    return artifacts.finish(workdir, metrics=counts)


def select(
    rows: Sequence[Mapping[str, Any]], keep: Mapping[str, float], per_prompt: int, prefer: str
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows that pass, without repeated responses of one prompt, and what was left out.

    Raises:
      ValueError: a score that the rows don't have, or an unknown preference.
    """
    known = set(rows[0]["scores"]) if rows else set()
    if prefer not in PREFERENCES and prefer not in known:
        raise ValueError(f"prefer={prefer!r}: expected one of {PREFERENCES} or of {sorted(known)}")
    if missing := set(keep) - known:
        raise ValueError(
            f"keep names the scores {sorted(missing)}; the samples have {sorted(known)}"
        )
    counts = {"sampled": len(rows), "masked": 0, "unfinished": 0, "forged": 0}
    counts |= {f"below_{name}": 0 for name in keep} | {"repeated": 0, "surplus": 0, "kept": 0}
    sign = {"first": 0, "short": 1, "long": -1}.get(prefer)
    rank = lambda row: -row["scores"][prefer] if sign is None else sign * row["length"]  # noqa: E731
    by_prompt: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if reason := _refused(row, keep):
            counts[reason] += 1
        else:
            by_prompt.setdefault(row["index"], []).append(row)
    kept = []
    for group in by_prompt.values():
        seen: set[str] = set()
        for row in sorted(group, key=rank):
            if row["response"] in seen:
                counts["repeated"] += 1
            elif per_prompt and len(seen) >= per_prompt:
                counts["surplus"] += 1
            else:
                seen.add(row["response"])
                kept.append(dict(row))
    counts["kept"] = len(kept)
    return kept, counts


def spoilt(row: Mapping[str, Any]) -> bool:
    """Whether a row is a sample that nothing should be trained on, whatever its scores."""
    return "forged" in row and bool(_refused(row, {}))


def _refused(row: Mapping[str, Any], keep: Mapping[str, float]) -> str:
    """Why a row is left out; empty where it passes."""
    if row["masked"]:
        return "masked"
    if not row["finished"]:
        return "unfinished"
    if row["forged"]:
        return "forged"
    return next((f"below_{n}" for n, least in keep.items() if row["scores"][n] < least), "")

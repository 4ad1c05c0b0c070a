"""A JSONL file as the examples of later stages: renamed, without repeats, split, worked out.

Repeated prompts are dropped first, then a hash of the prompt decides the split, so that no prompt
stands on both sides. Later stages take `{"input": role, "where": {"split": "train"}}`.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_jax import artifacts, process
from posttrain_jax.api import Artifact
from posttrain_jax.data.equations import worked_equation
from posttrain_jax.data.examples import DATA
from posttrain_jax.data.source import JsonlSource
from posttrain_jax.files import write_text
from posttrain_jax.metrics import MetricLogger
from posttrain_jax.policy import stage_title

DEFAULTS = {
    "path": ...,
    "fields": {},
    "add": {},
    "heldout_share": 0.5,
    "solutions": "",
    "solution_format": "<think>{worked}</think><answer>{answer}</answer>",
}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Read `config.path`; `solutions="equation"` adds worked one-step solutions where there is one.

    Raises:
      FileNotFoundError, ValueError: a missing or malformed file (with its line).
    """
    del inputs
    if config.solutions not in ("", "equation"):
        raise ValueError(f"solutions={config.solutions!r}: expected '' or 'equation'")
    rows, counts = [], Counter(rows=0, repeated=0, train=0, heldout=0, worked=0)
    seen: set[str] = set()
    for row in JsonlSource(config.path, config.fields.to_dict(), required=("prompt",)):
        counts["rows"] += 1
        key = " ".join(row["prompt"].lower().split())
        if key in seen:
            counts["repeated"] += 1
            continue
        seen.add(key)
        split = (
            "heldout" if zlib.crc32(key.encode()) % 1000 < config.heldout_share * 1000 else "train"
        )
        counts[split] += 1
        worked = worked_equation(row["prompt"], row["answer"]) if config.solutions else None
        row = {**row, **config.add.to_dict(), "split": split, "worked": worked is not None}
        if worked is not None:
            counts["worked"] += 1
            row["solution"] = config.solution_format.format(worked=worked, answer=row["answer"])
        rows.append(row)
    if process.index() == 0:
        write_text(
            workdir / DATA, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
    with MetricLogger(workdir, 1, stage_title(workdir)) as log:
        log(1, dict(counts))
    return artifacts.finish(workdir, metrics=dict(counts))

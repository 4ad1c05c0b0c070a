"""A teacher's likeliest next tokens over a data set, once, for the `distill` stage.

The rows are packed as that stage packs them, so `data`, `system` and `length` must be the same
there. Only the places that bear loss are kept (posttrain_jax/teacher_cache.py says how, and how
exactly). Each process writes its own rows, batch by batch; a killed run continues, with any number
of processes, at the first batch that is not all written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, interrupt, process, teacher_cache
from posttrain_jax import teacher as teachers
from posttrain_jax.api import Artifact
from posttrain_jax.data.loader import row_batch
from posttrain_jax.data.pack import Rows
from posttrain_jax.mesh import barrier, check_batch, from_first, local_rows, local_slice
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr
from posttrain_jax.policy import load_policy, open_mesh, open_text, stage_title
from posttrain_jax.stages.sft import load_rows

DEFAULTS = {
    "data": {},
    "system": "",
    "results": (),
    "length": ...,
    "batch_size": 32,
    "k": ...,
    "temperature": 1.0,
    "dtype": "float16",
    "model_options": {},
}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Ask inputs["teacher"] for its `k` likeliest tokens at each place of `config.data`.

    The metric `mass` is the share of its probability that the teacher has on them.

    Raises:
      ValueError: an unknown dtype, a teacher of another tokenizer, or k out of range.
    """
    if config.k < 1:
        raise ValueError(f"k={config.k}: expected at least 1")
    if config.dtype not in teacher_cache.DTYPES:
        raise ValueError(f"dtype={config.dtype!r}: expected one of {teacher_cache.DTYPES}")
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    check_batch(mesh, "batch_size", config.batch_size)
    rows, counts = load_rows(config, inputs, text)
    teachers.check_text(inputs["teacher"], text)
    with jax.set_mesh(mesh):
        model, params = load_policy(inputs["teacher"], mesh, **config.model_options)
        teacher = teachers.TeacherModel(model, params, model.config.vocab_size)
        record(config, workdir, mesh, teacher, rows, phases)
    barrier("all parts are written")
    if process.index() == 0:
        mass = teacher_cache.merge(
            workdir, rows, config.dtype, teacher.vocab_size, k=config.k,
            temperature=config.temperature,
        )  # fmt: skip
        counts |= {"mass": mean_stderr(mass), "places": int(np.count_nonzero(rows.mask))}
    return artifacts.finish(workdir, metrics=counts, phases=phases.seconds)


def record(
    config: Any, workdir: Path, mesh: Mesh, teacher: teachers.TeacherModel, rows: Rows,
    phases: PhaseTimer,
) -> None:  # fmt: skip
    """Write a part for each batch of rows; the last batch is filled up with the first rows."""
    count, size = len(rows.mask), config.batch_size
    start = from_first(teacher_cache.missing_row(workdir, rows) // size)
    barrier("all have seen what is written")
    with MetricLogger(workdir, -(-count // size), stage_title(workdir), start) as log:
        for step in range(start, -(-count // size)):
            begun, first = time.monotonic(), step * size
            with phases("compile" if step == start else "score"):
                batch = row_batch(mesh, rows, [i % count for i in range(first, first + size)])
                found = teachers.likeliest(
                    teacher, batch, config.k, temperature=config.temperature
                )  # fmt: skip
                here = local_slice(batch.tokens_BT)
                mine = slice(first + here.start, min(first + here.stop, count))
                kept = max(0, mine.stop - mine.start)
                tokens, logp = (local_rows(x)[:kept] for x in (found.tokens_BTJ, found.logp_BTJ))
                if kept:
                    teacher_cache.write_part(workdir, mine.start, tokens, logp, rows.mask[mine])
            rate = size * rows.mask.shape[1] / (time.monotonic() - begun)
            log(step + 1, {"tokens_per_second": rate})
            if interrupt.requested():
                raise interrupt.Interrupted(step + 1)

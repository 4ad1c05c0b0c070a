"""`posttrain bench queue --tune`: the sizes of a queue beside others, on this machine.

The others differ from what is derived (`continuous.plan_sizes`) in one number each. All sample the
same sequences, one after the other, round after round, since a machine's speed drifts.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
from jax.sharding import Mesh

from posttrain_jax.api import Model, Params
from posttrain_jax.bench.queued import queue_job
from posttrain_jax.bench.workloads import Sizes
from posttrain_jax.rollout import continuous
from posttrain_jax.rollout.continuous import sample_queue
from posttrain_jax.rollout.engine import for_sampling
from posttrain_jax.rollout.prefill import prompt_widths


def candidates(derived: continuous.Sizes, width: int, max_new: int) -> dict[str, continuous.Sizes]:
    """The derived sizes, and the others.

    Args:
      width: places of a prompt.
      max_new: tokens of a sequence at most.
    """
    longest, free = -(-max_new // continuous.page_size()), derived.threshold
    shares = {round(share * derived.slots * longest) for share in (0.25, 0.5, 1)}
    others = {
        "threshold": {1, free // 2, 2 * free, 4 * free},
        "prefill": {1, 4, 8},
        "pages": {pages for pages in shares if pages >= longest},
        "narrowest": {width} if len(prompt_widths(width, derived.narrowest)) > 1 else {},
    }
    found = {"derived": derived}
    for name, values in others.items():
        for value in sorted({*values} - {0, getattr(derived, name)}):
            found[f"{name} {value}"] = derived._replace(**{name: value})
    return found


def tune(model: Model, params: Params, mesh: Mesh, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Time all candidates; the figures as a JSON-able dict, `best` by the median."""
    placed, (asked, rules, derived) = (
        for_sampling(params, model, mesh), queue_job(model, mesh, sizes),
    )  # fmt: skip
    held = candidates(derived, asked.prompts_PT.shape[1], rules.max_new)
    seconds: dict[str, list[float]] = {name: [] for name in held}
    for _ in range(1 + rounds):
        for name, each in held.items():
            begun = time.monotonic()
            jax.block_until_ready(sample_queue(model, placed, asked, rules, each))
            seconds[name].append(time.monotonic() - begun)
    timed = {name: every[1:] for name, every in seconds.items()}  # the first ones compile
    median = {name: statistics.median(every) for name, every in timed.items()}
    return {
        "workload": "tune",
        "derived": derived._asdict(),
        "best": min(median, key=lambda name: median[name]),
        "step_ms": {name: round(1e3 * value, 1) for name, value in median.items()},
        "step_ms_min": {name: round(1e3 * min(every), 1) for name, every in timed.items()},
        "compile_s": {name: round(seconds[name][0] - median[name], 1) for name in held},
    }

"""What `posttrain bench` times of a queue: sequences of lengths as RL has them, sixteen a slot.

The same sequences in batches are what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax.api import Model, Params, Rollout
from posttrain_jax.bench.flops import forward_flops
from posttrain_jax.bench.workloads import Sizes, Workload, prompts_of
from posttrain_jax.mesh import batch_shards, shard_rows
from posttrain_jax.rollout.continuous import Sizes as Holding
from posttrain_jax.rollout.continuous import Work, page_size, plan_sizes, sample_queue
from posttrain_jax.rollout.engine import for_sampling
from posttrain_jax.rollout.pools import prompt_bytes
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.row_settings import RowSettings
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.slots import empty as empty_slots

QUEUE, SIGMA = 16, 0.9
"""Sequences a slot, and the deviation of the logarithm of their lengths."""


def _queue(model: Model, mesh: Mesh, sizes: Sizes) -> tuple[Asked, Rules]:
    """Prompts for sixteen times as many sequences as slots, of lengths as RL has them: lognormal,
    sigma 0.9, an eighth of `max_new` in the mean."""
    prompts = QUEUE * sizes.slots // sizes.group
    asked, rules = prompts_of(model, mesh, sizes._replace(prompts=prompts))
    rng, mean = np.random.default_rng(0), math.log(sizes.max_new / 8) - SIGMA**2 / 2
    drawn = rng.lognormal(mean, SIGMA, prompts * sizes.group)
    most = np.clip(np.round(drawn), 1, sizes.max_new).astype(np.int32)
    width = sizes.prompt_len
    length = rng.integers(sizes.shortest or width, width + 1, (prompts, 1))
    segments = (np.arange(width) >= width - length).astype(np.int32)
    most, segments = shard_rows(mesh, (most, segments))
    asked = asked._replace(
        prompts_PT=asked.prompts_PT * segments, segments_PT=segments, rows=RowSettings(max_new=most)
    )
    return asked, rules._replace(sampling=Sampling(sizes.temperature))


def queue_job(model: Model, mesh: Mesh, sizes: Sizes) -> tuple[Asked, Rules, Holding]:
    """What a queue samples, and the sizes that are derived for it."""
    asked, rules = _queue(model, mesh, sizes)
    ways = batch_shards(mesh)
    prompts = asked.prompts_PT.shape[0] // ways
    return asked, rules, plan_sizes(sizes.slots // ways, prompts, rules, drafts=sizes.drafts)


def queue_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """All sequences of a queue, with a slot for one in sixteen."""
    placed, (asked, rules, holding) = (
        for_sampling(params, model, mesh), queue_job(model, mesh, sizes),
    )  # fmt: skip
    slots = holding.slots * batch_shards(mesh)

    def told(result: tuple[Rollout, Work]) -> dict[str, float]:
        work = jax.device_get(result[1])
        found = {
            "steps_of_decoding": int(work.steps),
            "occupancy": round(work.busy / work.steps / slots, 3),
            "occupancy_while_queued": round(work.full_busy / work.full_steps / slots, 3),
            "cache_share": round(holding.pages * page_size() / (holding.slots * sizes.max_new), 3),
            "cache_used": round(work.most_pages * page_size() / (slots * sizes.max_new), 3),
            **shared_prompts(model, asked, holding, int(work.prefilled)),
        }
        if sizes.drafts:
            right = round(work.accepted / max(1, work.proposed), 3)
            found |= {"drafted": int(work.proposed), "acceptance": right}
            found |= {"steps_with_drafts": int(work.wide_steps)}
        return found

    step = lambda: sample_queue(model, placed, asked, rules, holding)  # noqa: E731
    tokens = int(np.sum(jax.device_get(asked.rows.max_new)))
    return Workload(step, tokens, sizes.slots, _queue_flops(model, asked, sizes), told)


def shared_prompts(
    model: Model, asked: Asked, holding: Holding, prefilled: int
) -> dict[str, float]:
    """What it saves that a group has one prompt.

    Args:
      prefilled: places that went through the model, of a rollout.

    Returns:
      shares of what it would be with a prompt for each sequence: of prefilled places, where all
      are as wide as prompts may be; of bytes, where each slot has a prompt of its own.
    """
    sequences, (prompts, width) = len(asked.uids_B), asked.prompts_PT.shape

    def held(entries: int) -> int:
        sizes = (holding.slots, holding.pages, entries, prompts, sequences // prompts, width)
        return prompt_bytes(model, jax.eval_shape(lambda: empty_slots(*sizes)), page_size())

    return {
        "prefilled_tokens": prefilled,
        "prefill_share": round(prefilled / (sequences * width), 4),
        "prompt_cache_mb": round(held(holding.entries) / 1e6, 2),
        "prompt_cache_share": round(held(holding.entries) / held(holding.slots), 3),
    }


def static_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """The same sequences in batches of as many as there are slots, each to its slowest's end."""
    return _static(model, params, mesh, sizes, lambda rows: rows)


def static_cap_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """The same in batches that all go on to `max_new`: a sequence is the first tokens of its row,
    as many as it has in the queue, and what comes behind them is thrown away."""
    return _static(model, params, mesh, sizes, lambda rows: rows._replace(max_new=None))


def _static(model: Model, params: Params, mesh: Mesh, sizes: Sizes, ends: Callable) -> Workload:
    """The queue's sequences in batches; `ends` makes their rows' settings of the queue's."""
    placed, (asked, rules) = for_sampling(params, model, mesh), _queue(model, mesh, sizes)
    count, parts = sizes.slots // sizes.group, []
    for first in range(0, asked.prompts_PT.shape[0], count):
        prompts = slice(first, first + count)
        rows = slice(first * sizes.group, (first + count) * sizes.group)
        parts.append(
            asked._replace(
                prompts_PT=asked.prompts_PT[prompts], segments_PT=asked.segments_PT[prompts],
                uids_B=asked.uids_B[rows],
                rows=ends(jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], asked.rows)),
            )
        )  # fmt: skip
    tokens = int(np.sum(jax.device_get(asked.rows.max_new)))
    step = lambda: [sample(model, placed, part, rules) for part in parts]  # noqa: E731
    return Workload(step, tokens, sizes.slots, _queue_flops(model, asked, sizes))


def _queue_flops(model: Model, asked: Asked, sizes: Sizes) -> float:
    before = jax.device_get(asked.segments_PT).sum(axis=1).tolist()
    prefill = (forward_flops(model.config, n, head=1) for n in before)
    lengths = jax.device_get(asked.rows.max_new).reshape(-1, sizes.group).tolist()
    decode = (
        forward_flops(model.config, n - 1, before=prompt)
        for prompt, group in zip(before, lengths, strict=True)
        for n in group
    )
    return sum(prefill) + sum(decode)


WORKLOADS = {"queue": queue_step, "static": static_step, "static_cap": static_cap_step}

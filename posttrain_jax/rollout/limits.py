"""What a rollout must fit: the length of its model, and for a queue the memory of a device.

What makes no sense but does no harm is said, once.
"""

from __future__ import annotations

import os
import sys
from functools import cache, lru_cache
from typing import Any

import jax

from posttrain_jax import process
from posttrain_jax.api import Model, Params
from posttrain_jax.mesh import batch_shards
from posttrain_jax.rollout import continuous, pools, slots
from posttrain_jax.rollout.continuous import Sizes
from posttrain_jax.rollout.request import Rules


@cache
def say_greedy(group_size: int) -> None:
    """Tell that groups are sampled greedily, the first time that it is so."""
    if process.index() == 0:
        print(
            f"posttrain: temperature=0 with {group_size} responses a prompt: they will all be the "
            "same; set a temperature above 0, or one response a prompt",
            file=sys.stderr,
        )


def check(model: Model, params: Params, job: Any) -> None:
    """Refuse a rollout that can't be made.

    Args:
      job: of `engine.job`.

    Raises:
      ValueError: sequences longer than the model reads; a queue beyond a device's memory.
    """
    check_window(model, job.asked.prompts_PT.shape[1], job.rules.max_new)
    if job.sizes is not None:
        check_memory(model, params, job)


def check_window(model: Model, prompt_length: int, max_new: int) -> None:
    """Refuse sequences that are longer than the model reads.

    Raises:
      ValueError: with the settings to change.
    """
    if prompt_length + max_new > model.config.max_length:
        raise ValueError(
            f"prompt_length={prompt_length} and max_new={max_new} make sequences of "
            f"{prompt_length + max_new} tokens, and the model is for {model.config.max_length} "
            "(max_length): lower one of them, or set model_options.max_length if the model goes on "
            "beyond"
        )


def check_memory(model: Model, params: Params, job: Any) -> None:
    """Refuse a queue whose cache and weights can't lie in a device's memory, whatever else does.

    Args:
      job: an `engine.Job` with sizes and a mesh.

    Raises:
      ValueError: with the number of slots that fits.
    """
    mesh, sizes, rules = job.mesh, job.sizes, job.rules
    ways, (prompts, width) = batch_shards(mesh), job.asked.prompts_PT.shape
    device, prompts = mesh.local_devices[0], prompts // ways
    needs = lambda sizes: cache_bytes(model, rules, sizes, prompts, width) // (mesh.size // ways)  # noqa: E731
    whole, weights = memory(device), sum(_on_one(leaf) for leaf in jax.tree.leaves(params))
    if whole is None or needs(sizes) <= whole - weights:
        return
    fits, beyond = 0, sizes.slots
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fewer = continuous.plan_sizes(middle, prompts, rules, drafts=sizes.drafts)
        fits, beyond = (middle, beyond) if needs(fewer) <= whole - weights else (fits, middle)
    instead = f"set slots to {fits * ways} at most" if fits else f"not even slots={ways} fits"
    raise ValueError(
        f"slots={sizes.slots * ways}: the queue's keys and values, of sequences of up to max_new="
        f"{rules.max_new} tokens, take {needs(sizes) / 1e9:,.1f} GB of a device that has "
        f"{whole / 1e9:,.1f} GB, {weights / 1e9:,.1f} of them for weights: {instead}; a lower "
        "max_new or cache_dtype='int8' makes room for more"
    )


@lru_cache(maxsize=64)
def cache_bytes(model: Model, rules: Rules, sizes: Sizes, prompts: int, width: int) -> int:
    """Bytes of the keys and values of a shard's queue; nothing is allocated.

    Args:
      prompts, width: how many prompts the shard has, and how many places each.
    """
    held = (sizes.slots, sizes.pages, sizes.entries)
    s = jax.eval_shape(lambda: slots.empty(*held, prompts, rules.group_size, width))
    return pools.cache_bytes(model, s, continuous.page_size(), rules.cache_dtype)


def memory(device: Any) -> int | None:
    """Bytes that arrays may take of a device, on CPU its part of the host's; None: unknown."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None or device.platform != "cpu" or not hasattr(os, "sysconf"):
        return limit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(jax.local_devices())


def _on_one(leaf: Any) -> int:
    """Bytes of an array on one of this host's devices."""
    return leaf.addressable_shards[0].data.nbytes if isinstance(leaf, jax.Array) else leaf.nbytes

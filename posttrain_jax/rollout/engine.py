"""The host side of rollouts: prompts to arrays, arrays to responses; each host its own rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from posttrain_jax.api import Model, Params, Rollout
from posttrain_jax.data.chat import ChatTemplate, encode_prompt
from posttrain_jax.data.examples import messages
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.mesh import host_batch, is_axes, local_rows, spec
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling


class Prompts(NamedTuple):
    """Encoded prompts, left-padded to one width.

    Attributes:
      examples: what each row was made from.
      tokens, segments: int32 [rows, width]; segments are 0 on padding.
      skipped: how many prompts were longer than the width and left out.
    """

    examples: list[Mapping[str, Any]]
    tokens: np.ndarray
    segments: np.ndarray
    skipped: int

    def take(self, rows: Sequence[int]) -> Prompts:
        """The given rows, in the given order."""
        chosen = list(rows)
        return Prompts(
            [self.examples[i] for i in chosen], self.tokens[chosen], self.segments[chosen], 0
        )


def encode_prompts(
    examples: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    width: int,
    system: str = "",
) -> Prompts:
    """Render and encode prompts; those longer than `width` tokens are skipped and counted.

    Raises:
      ValueError: every prompt is too long.
    """
    encoded = [encode_prompt(tokenizer, template, messages(e, system=system)) for e in examples]
    kept = [i for i, tokens in enumerate(encoded) if len(tokens) <= width]
    if not kept:
        raise ValueError(
            f"all {len(examples)} prompts are longer than prompt_length={width} tokens (the "
            f"shortest has {min((len(t) for t in encoded), default=0)}): raise prompt_length"
        )
    tokens = np.full((len(kept), width), tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for row, i in enumerate(kept):
        tokens[row, width - len(encoded[i]) :] = encoded[i]
        segments[row, width - len(encoded[i]) :] = 1
    return Prompts([examples[i] for i in kept], tokens, segments, len(examples) - len(kept))


def batches(prompts: Prompts, size: int, start: int = 0) -> Iterator[tuple[Prompts, int]]:
    """Batches of exactly `size` prompts from batch number `start`, each with how many are real.

    The last batch is filled up with its first prompts, so that one compiled program serves all.
    """
    count = len(prompts.examples)
    for first in range(start * size, count, size):
        rows = list(range(first, min(first + size, count)))
        filled = rows + [rows[i % len(rows)] for i in range(size - len(rows))]
        yield prompts.take(filled), len(rows)


def concat(parts: Sequence[Prompts]) -> Prompts:
    """Several prompt tables as one."""
    return Prompts(
        [example for part in parts for example in part.examples],
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.segments for part in parts]),
        sum(part.skipped for part in parts),
    )


def roll_out(
    model: Model,
    params: Params,
    prompts: Prompts,
    mesh: Mesh,
    tokenizer: Tokenizer,
    *,
    sampling: Sampling,
    seed: int,
    first_uid: int,
    group_size: int,
    max_new: int,
) -> Rollout:
    """Sample a group of completions for each prompt; row b has the uid `first_uid + b`.

    Args:
      prompts: the same on every host; each host puts only its part on its devices.
      sampling: the end-of-sequence token is added to its stop tokens.
    """
    rows = len(prompts.examples) * group_size
    uids = np.arange(rows, dtype=np.uint32) + np.uint32(first_uid % 2**32)
    place = lambda array: host_batch(mesh, array.shape, lambda index: array[index])  # noqa: E731
    return sample(
        model,
        params,
        place(prompts.tokens),
        place(prompts.segments),
        jax.random.key(seed),
        place(uids),
        sampling=sampling._replace(stop=(*sampling.stop, tokenizer.eos_id)),
        group_size=group_size,
        max_new=max_new,
        pad_id=tokenizer.pad_id,
    )


def responses(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
    """The text of this host's completions, in row order, without the end-of-sequence token."""
    tokens = local_rows(rollout.tokens_BT)
    mask = local_rows(rollout.completion_mask_BT)
    return [
        tokenizer.decode([t for t in row[kept].tolist() if t != tokenizer.eos_id])
        for row, kept in zip(tokens, mask, strict=True)
    ]


def for_sampling(params: Params, model: Model, mesh: Mesh) -> Params:
    """The weights laid out for decoding: split over `tensor` only, by one jitted reshard."""
    return params if mesh.shape["fsdp"] == 1 else _reshard(mesh, model)(params)


@lru_cache(maxsize=8)
def _reshard(mesh: Mesh, model: Model):
    decoding = lambda axes: spec(*(None if name == "embed" else name for name in axes))  # noqa: E731
    where = jax.tree.map(
        lambda axes: NamedSharding(mesh, decoding(axes)), model.axes(), is_leaf=is_axes
    )
    return jax.jit(lambda params: params, out_shardings=where)

"""Steps of solutions: sampled by a policy and judged at their ends, in calls of a fixed shape.

A step ends at a token whose text ends with one of the separators. Each call of the in-graph sampler
reads prompt and solution again: steps are few and short, and every call with the same sizes is the
same program. Places of a call that are not needed repeat its first row under the same uids: they
end when it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax.api import Model, Params
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.mesh import from_local_rows, local_rows
from posttrain_jax.process_reward import ProcessModel, chances_local
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampling import Sampling


class Writer(NamedTuple):
    """A policy that writes solutions step by step; `params` are laid out for sampling.

    Attributes:
      stops: the tokens that end a step.
      sampling: of a step; its stop tokens are those and the end of the sequence.
      prompt_length: tokens of the longest prompt.
      max_step, max_new: tokens of a step and of a response at most.
    """

    model: Model
    params: Params
    mesh: Mesh
    tokenizer: Tokenizer
    stops: tuple[int, ...]
    sampling: Sampling
    seed: int
    prompt_length: int
    max_step: int
    max_new: int


class Call(NamedTuple):
    """The sizes of a call of the sampler, on this host.

    Attributes:
      rows: as many solutions can be continued.
      group: continuations of each.
      max_new: tokens of a continuation at most.
    """

    rows: int
    group: int
    max_new: int
    sampling: Sampling


class Step(NamedTuple):
    """What was said next in a solution.

    Attributes:
      tokens: without the end-of-sequence token.
      finished: the solution ended by itself.
      ended: it goes no further: it ended, or it met a limit.
    """

    tokens: list[int]
    finished: bool
    ended: bool


def step_stops(tokenizer: Tokenizer, separators: Sequence[str]) -> tuple[int, ...]:
    """The tokens whose text ends with a separator, new lines behind it allowed.

    Raises:
      ValueError: there is none: no token ends a step.
    """
    special = {tokenizer.eos_id, tokenizer.pad_id, *tokenizer.markers.values()}
    ends = tuple(separators)
    found = tuple(
        i for i in range(tokenizer.vocab_size)
        if i not in special
        and ((said := tokenizer.decode([i])).endswith(ends) or said.rstrip("\n").endswith(ends))
    )  # fmt: skip
    if not found:
        raise ValueError(f"no token of the tokenizer ends with one of separators={ends}")
    return found


def prompt_rows(prompts: engine.Prompts) -> list[list[int]]:
    """The tokens of each prompt, without padding."""
    return [
        tokens[segments > 0].tolist()
        for tokens, segments in zip(prompts.tokens, prompts.segments, strict=True)
    ]


def write(
    writer: Writer, rows: Sequence[Sequence[int]], uids: Sequence[Sequence[int]], call: Call
) -> list[list[list[int]]]:
    """What the policy says next, `call.group` times for each row; every host its own rows.

    All hosts call together, also those that have no row.

    Args:
      rows: prompts with what was said so far, `call.rows` at most.
      uids: of every continuation, [rows][group]; they count modulo 2^32.

    Returns:
      its tokens, the one that stopped it included.
    """
    tokenizer, width = writer.tokenizer, writer.prompt_length + writer.max_new
    idle = call.rows - len(rows)
    fill = (rows[0], uids[0]) if rows else ([tokenizer.eos_id], [0] * call.group)
    tokens = np.full((call.rows, width), tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate([*rows, *[fill[0]] * idle]):
        tokens[row, width - len(ids) :], segments[row, width - len(ids) :] = ids, 1
    numbers = np.array([*uids, *[fill[1]] * idle], np.uint64).reshape(-1) % 2**32
    place = lambda array: from_local_rows(writer.mesh, array)  # noqa: E731
    asked = Asked(
        place(tokens), place(segments), jax.random.key(writer.seed),
        place(numbers.astype(np.uint32)),
    )  # fmt: skip
    rules = Rules(call.sampling, call.max_new, call.group, tokenizer.pad_id)
    rollout = engine.roll_out(writer.model, writer.params, engine.Job(asked, rules))
    new = local_rows(rollout.tokens_BT)[:, width:]
    mask = local_rows(rollout.completion_mask_BT)[:, width:]
    said = [row[kept].tolist() for row, kept in zip(new, mask, strict=True)]
    return [said[i * call.group : (i + 1) * call.group] for i in range(len(rows))]


def read_step(writer: Writer, before: int, said: list[int]) -> Step:
    """What a call for a step gave, behind `before` tokens of a response."""
    finished = said[-1] == writer.tokenizer.eos_id
    tokens = (said[:-1] if finished else said)[: writer.max_new - before]
    full = before + len(tokens) + writer.max_step > writer.max_new
    return Step(tokens, finished, finished or full or said[-1] not in writer.stops)


def end_chances(
    judge: ProcessModel, mesh: Mesh, rows: Sequence[Sequence[int]], size: int
) -> list[float]:
    """The chance that the last step of each row is right, read at its last token.

    Every host its own rows, `size` at most; all hosts call together.
    """
    filler = [np.ones(1, np.int32)] * (size - len(rows))
    chance_BT = chances_local(judge, [*(np.array(r, np.int32) for r in rows), *filler], mesh)
    return [float(chance_BT[i, len(ids) - 1]) for i, ids in enumerate(rows)]

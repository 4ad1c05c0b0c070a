"""Beams of a search: solutions that grow step by step, sampled by a policy, judged at step ends.

A step ends at a token whose text ends with one of the process model's separators. Each round
continues the kept beams in one call of the in-graph sampler, which reads prompt and beam again:
rounds are few and short, and every round is the same program. The process model reads the beams'
own tokens. See stages/search.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax.api import Model, Params
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.mesh import from_local_rows, local_rows, total
from posttrain_jax.process_reward import ProcessModel, aggregate, chances_local
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.sampler import Asked, Rules, sample
from posttrain_jax.rollout.sampling import Sampling


@dataclass
class Beam:
    """A solution, as far as it is.

    Attributes:
      tokens: of the response, without the end-of-sequence token.
      chances: of its steps being right.
      finished: it ended by itself.
      stopped: it goes no further: it ended, or it met a limit.
    """

    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    finished: bool = False
    stopped: bool = False


class Found(NamedTuple):
    """The beams of a prompt, and how many tokens were sampled for them."""

    beams: list[Beam]
    sampled: int


class Limits(NamedTuple):
    """The sizes of a search.

    Attributes:
      beams: N, steps sampled a round.
      width: M, steps sampled from each beam that is kept; it divides N.
      rounds: the most steps of a solution.
      prompt_length: tokens of the longest prompt.
      max_step, max_new: tokens of a step and of a response at most.
      aggregate: the score of a beam, one of `process_reward.AGGREGATES`.
    """

    beams: int
    width: int
    rounds: int
    prompt_length: int
    max_step: int
    max_new: int
    aggregate: str = "last"


class Searcher(NamedTuple):
    """The models and rules of a search; `params` are laid out for sampling.

    Attributes:
      stops: the tokens that end a step.
      sampling: its stop tokens are those and the end of the sequence.
    """

    model: Model
    params: Params
    judge: ProcessModel
    mesh: Mesh
    tokenizer: Tokenizer
    limits: Limits
    stops: tuple[int, ...]
    sampling: Sampling
    seed: int


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


def search(searcher: Searcher, prompts: Prompts, first: int) -> tuple[list[Found], int]:
    """The finished search of each prompt, and how many rounds it took; every host its own prompts.

    Args:
      first: the number of the first prompt, so that sampling doesn't depend on the batch.
    """
    limits = searcher.limits
    prefixes = [
        tokens[segments > 0].tolist()
        for tokens, segments in zip(prompts.tokens, prompts.segments, strict=True)
    ]
    found = [Found([Beam() for _ in range(limits.beams)], 0) for _ in prefixes]
    for number in range(limits.rounds):
        kept = [select(mine.beams, limits) for mine in found]
        live = sum(len(chosen) for _, chosen in kept)
        if not total(np.array([live]))[0]:
            return found, number
        uids = [((first + i) * limits.rounds + number) * limits.beams for i in range(len(prefixes))]
        grown, tokens = extend(searcher, prefixes, [chosen for _, chosen in kept], uids)
        judge(searcher, prefixes, grown)
        found = [
            Found(ended + new, before.sampled + spent)
            for before, (ended, _), new, spent in zip(found, kept, grown, tokens, strict=True)
        ]
    return found, limits.rounds


def select(beams: Sequence[Beam], limits: Limits) -> tuple[list[Beam], list[tuple[Beam, int]]]:
    """The beams that have stopped, and the best of the others to go on with.

    Each of those comes with the steps to sample from it, `width` at most, so that there will be
    `limits.beams` again. Where fewer live than there is room for, they come more than once.
    """
    ended = [beam for beam in beams if beam.stopped]
    live = [beam for beam in beams if not beam.stopped]
    left = limits.beams - len(ended)
    score = lambda beam: aggregate(beam.chances, limits.aggregate) if beam.chances else 0.0  # noqa: E731
    best = sorted(live, key=score, reverse=True)[: -(-left // limits.width)]
    chosen = []
    for beam in itertools.cycle(best):
        if left <= 0:
            break
        chosen.append((beam, min(limits.width, left)))
        left -= limits.width
    return ended, chosen


def extend(
    searcher: Searcher, prefixes: Sequence[list[int]],
    chosen: Sequence[Sequence[tuple[Beam, int]]], uids: Sequence[int],
) -> tuple[list[list[Beam]], list[int]]:  # fmt: skip
    """One more step of every chosen beam, as often as it has places, by one call of the sampler.

    Args:
      uids: of the first sample of each prompt.

    Returns:
      the new beams of each prompt, and how many tokens were sampled for them.
    """
    limits, tokenizer = searcher.limits, searcher.tokenizer
    room, width = limits.beams // limits.width, limits.prompt_length + limits.max_new
    tokens = np.full((len(prefixes) * room, width), tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for row in range(len(tokens)):
        problem, seat = divmod(row, room)
        mine = chosen[problem]
        ids = [*prefixes[problem], *(mine[seat][0].tokens if seat < len(mine) else [])]
        tokens[row, width - len(ids) :], segments[row, width - len(ids) :] = ids, 1
    numbers = np.concatenate([np.arange(limits.beams) + uid for uid in uids]) % 2**32
    place = lambda array: from_local_rows(searcher.mesh, array)  # noqa: E731
    asked = Asked(
        place(tokens), place(segments), jax.random.key(searcher.seed),
        place(numbers.astype(np.uint32)),
    )  # fmt: skip
    rules = Rules(searcher.sampling, limits.max_step, limits.width, tokenizer.pad_id)
    rollout = sample(searcher.model, searcher.params, asked, rules)
    new = local_rows(rollout.tokens_BT)[:, width:]
    mask = local_rows(rollout.completion_mask_BT)[:, width:]
    grown, spent = [], []
    for problem, mine in enumerate(chosen):
        rows = [
            (beam, ((problem * room + seat) * limits.width) + i)
            for seat, (beam, count) in enumerate(mine) for i in range(count)
        ]  # fmt: skip
        grown.append([_grown(beam, new[row][mask[row]].tolist(), searcher) for beam, row in rows])
        spent.append(sum(int(mask[row].sum()) for _, row in rows))
    return grown, spent


def _grown(beam: Beam, step: list[int], searcher: Searcher) -> Beam:
    """A beam with one more step; it stops at the end of the response, or at a limit."""
    limits, eos = searcher.limits, searcher.tokenizer.eos_id
    finished = step[-1:] == [eos]
    tokens = (beam.tokens + (step[:-1] if finished else step))[: limits.max_new]
    ended = finished or step[-1] in searcher.stops
    full = len(tokens) + limits.max_step > limits.max_new
    return Beam(tokens, list(beam.chances), finished, finished or full or not ended)


def judge(searcher: Searcher, prefixes: Sequence[list[int]], grown: Sequence[list[Beam]]) -> None:
    """Add the chance of each beam's new step, read at its last token.

    A step of the end-of-sequence token alone has none of its own.
    """
    flat = [(prefixes[i], beam) for i, mine in enumerate(grown) for beam in mine]
    size = len(prefixes) * searcher.limits.beams
    rows = [np.array([*ids, *beam.tokens], np.int32) for ids, beam in flat]
    filler = [np.ones(1, np.int32)] * (size - len(rows))
    chance_BT = chances_local(searcher.judge, rows + filler, searcher.mesh)
    for row, (ids, beam) in enumerate(flat):
        if beam.tokens:
            chance = float(chance_BT[row, len(ids) + len(beam.tokens) - 1])
            again = beam.finished and beam.tokens[-1] in searcher.stops
            beam.chances = (beam.chances[:-1] if again else beam.chances) + [chance]

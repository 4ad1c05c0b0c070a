"""Beams of a search: solutions that grow step by step, sampled by a policy, judged at step ends.

Each round continues the kept beams in one call of the sampler. With `lookahead` a new beam is
scored not where it is but as many steps further, which the policy takes greedily (Snell et al.
2024, arXiv 2408.03314, section 5.2). See stages/search.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from posttrain_jax.mesh import total
from posttrain_jax.process_reward import ProcessModel, aggregate
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.steps import (
    Call,
    Writer,
    end_chances,
    prompt_rows,
    read_step,
    write,
)


@dataclass
class Beam:
    """A solution, as far as it is.

    Attributes:
      tokens: of the response, without the end-of-sequence token.
      chances: of its steps being right.
      finished: it ended by itself.
      stopped: it goes no further: it ended, or it met a limit.
      ahead: the chance at the end of the lookahead, if there is one.
    """

    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    finished: bool = False
    stopped: bool = False
    ahead: float | None = None


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
      aggregate: the score of a beam, one of `process_reward.AGGREGATES`.
      lookahead: k, greedy steps that a new beam is scored behind.
    """

    beams: int
    width: int
    rounds: int
    aggregate: str = "last"
    lookahead: int = 0


class Searcher(NamedTuple):
    """The models and sizes of a search."""

    writer: Writer
    judge: ProcessModel
    limits: Limits


def search(searcher: Searcher, prompts: Prompts, first: int) -> tuple[list[Found], int]:
    """The finished search of each prompt, and how many rounds it took; every host its own prompts.

    Args:
      first: the number of the first prompt, so that sampling doesn't depend on the batch.
    """
    limits, prefixes = searcher.limits, prompt_rows(prompts)
    found = [Found([Beam() for _ in range(limits.beams)], 0) for _ in prefixes]
    for number in range(limits.rounds):
        kept = [select(mine.beams, limits) for mine in found]
        live = sum(len(chosen) for _, chosen in kept)
        if not total(np.array([live]))[0]:
            return found, number
        uids = [((first + i) * limits.rounds + number) * limits.beams for i in range(len(prefixes))]
        grown, tokens = extend(searcher, prefixes, [chosen for _, chosen in kept], uids)
        judge(searcher, prefixes, grown)
        more = look_ahead(searcher, prefixes, grown)
        found = [
            Found(ended + new, before.sampled + spent + further)
            for before, (ended, _), new, spent, further in zip(
                found, kept, grown, tokens, more, strict=True
            )
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
    ranked = sorted(live, key=lambda beam: score(beam, limits.aggregate), reverse=True)
    chosen = []
    for beam in itertools.cycle(ranked[: -(-left // limits.width)]):
        if left <= 0:
            break
        chosen.append((beam, min(limits.width, left)))
        left -= limits.width
    return ended, chosen


def score(beam: Beam, how: str) -> float:
    """One number of a beam; the chance at the end of a lookahead stands for its last step's."""
    ahead = [] if beam.ahead is None else [beam.ahead]
    chances = [*beam.chances[: len(beam.chances) - len(ahead)], *ahead]
    return aggregate(chances, how) if chances else 0.0


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
    writer, limits = searcher.writer, searcher.limits
    rows, numbers = [], []
    for prefix, mine, uid in zip(prefixes, chosen, uids, strict=True):
        for seat, (beam, _) in enumerate(mine):
            rows.append([*prefix, *beam.tokens])
            numbers.append([uid + seat * limits.width + i for i in range(limits.width)])
    room = len(prefixes) * (limits.beams // limits.width)
    call = Call(room, limits.width, writer.max_step, writer.sampling)
    said = iter(write(writer, rows, numbers, call))
    grown, spent = [], []
    for mine in chosen:
        steps = [(beam, step) for beam, count in mine for step in next(said)[:count]]
        grown.append([_grown(writer, beam, step) for beam, step in steps])
        spent.append(sum(len(step) for _, step in steps))
    return grown, spent


def _grown(writer: Writer, beam: Beam, said: list[int]) -> Beam:
    """A beam with one more step; it stops at the end of the response, or at a limit."""
    step = read_step(writer, len(beam.tokens), said)
    return Beam([*beam.tokens, *step.tokens], list(beam.chances), step.finished, step.ended)


def judge(searcher: Searcher, prefixes: Sequence[list[int]], grown: Sequence[list[Beam]]) -> None:
    """Add the chance of each beam's new step, read at its last token.

    A step of the end-of-sequence token alone has none of its own.
    """
    flat = [beam for mine in grown for beam in mine]
    chances = _chances(searcher, prefixes, grown)
    for beam, chance in zip(flat, chances, strict=True):
        if beam.tokens:
            again = beam.finished and beam.tokens[-1] in searcher.writer.stops
            beam.chances = (beam.chances[:-1] if again else beam.chances) + [chance]


def look_ahead(
    searcher: Searcher, prefixes: Sequence[list[int]], grown: Sequence[list[Beam]]
) -> list[int]:
    """Note the chance of each new beam `lookahead` greedy steps further, or where it ends before.

    Returns:
      how many tokens were sampled for the beams of each prompt.
    """
    writer, limits = searcher.writer, searcher.limits
    spent = [0] * len(prefixes)
    if not limits.lookahead:
        return spent
    greedy = writer.sampling._replace(temperature=0.0)
    call = Call(len(prefixes) * limits.beams, 1, writer.max_step, greedy)
    further = [list(mine) for mine in grown]
    for _ in range(limits.lookahead):
        live = [
            (problem, seat) for problem, mine in enumerate(further)
            for seat, beam in enumerate(mine) if not beam.stopped
        ]  # fmt: skip
        rows = [[*prefixes[problem], *further[problem][seat].tokens] for problem, seat in live]
        said = write(writer, rows, [[0]] * len(rows), call)  # greedy: no noise, so any uid
        for (problem, seat), (step,) in zip(live, said, strict=True):
            further[problem][seat] = _grown(writer, further[problem][seat], step)
            spent[problem] += len(step)
    chances = iter(_chances(searcher, prefixes, further))
    for mine in grown:
        for beam in mine:
            beam.ahead = next(chances)
    return spent


def _chances(searcher: Searcher, prefixes, beams: Sequence[Sequence[Beam]]) -> list[float]:
    """The chance at the last token of each beam, prompt by prompt."""
    rows = [
        [*prefix, *beam.tokens] for prefix, mine in zip(prefixes, beams, strict=True)
        for beam in mine
    ]  # fmt: skip
    size = len(prefixes) * searcher.limits.beams
    return end_chances(searcher.judge, searcher.writer.mesh, rows, size)

"""Monte Carlo tree search for many problems at once: trees on the host, models on the device.

Every problem has a tree of its own (tree_search.py). The trees grow in lockstep: one round expands
one node of each by one call of the sampler, one of the process model and one for rollouts, of the
same shapes in every round. What a problem's tree becomes depends on the problem, its number and
the seed, not on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain_jax.mesh import total
from posttrain_jax.process_reward import ProcessModel, aggregate
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.steps import (
    Call,
    Step,
    Writer,
    end_chances,
    prompt_rows,
    read_step,
    write,
)
from posttrain_jax.rollout.tree_search import (
    Candidate,
    Plan,
    Walk,
    chances_to,
    enter,
    next_leaf,
    tokens_to,
)

Verify = Callable[[Sequence[str], Sequence[Mapping[str, Any]]], tuple[np.ndarray, np.ndarray]]
"""From responses and their examples to how right they are, and which could be judged."""


class Explorer(NamedTuple):
    """The models and sizes of a search.

    Attributes:
      judge: scores steps, and ends where nothing else does; None: only ends are judged.
      how: the value of a solution from the chances of its steps, one of
        `process_reward.AGGREGATES`.
      verify: judges ends and rollouts by the reference; None: `judge` does.
    """

    writer: Writer
    judge: ProcessModel | None
    how: str
    plan: Plan
    verify: Verify | None = None


class Round(NamedTuple):
    """A batch of problems, and which of them go on.

    Attributes:
      prefixes: the tokens of the prompts.
      uids: of the first candidate of each problem that goes on.
    """

    prefixes: Sequence[list[int]]
    examples: Sequence[Mapping[str, Any]]
    walks: Sequence[Walk]
    uids: Mapping[int, int]


class Drawn(NamedTuple):
    """A step that was sampled.

    Attributes:
      problem: its place in the batch.
      before: what the solution said before it.
      earlier: the chances of the steps before it.
    """

    problem: int
    before: list[int]
    earlier: list[float]
    step: Step

    @property
    def said(self) -> list[int]:
        """The solution with the step."""
        return [*self.before, *self.step.tokens]


class Guess(NamedTuple):
    """What the process model says of a step, and of the solution up to it; None for nothing."""

    chance: float | None = None
    value: float | None = None


def search(explorer: Explorer, prompts: Prompts, first: int) -> tuple[list[Walk], int]:
    """The tree of each prompt, and how many rounds it took; every host its own prompts.

    Args:
      first: the number of the first prompt, so that sampling doesn't depend on the batch.
    """
    plan, prefixes = explorer.plan, prompt_rows(prompts)
    walks, rounds = [Walk() for _ in prefixes], 0
    each = plan.candidates * (1 + plan.rollouts)  # sequences that an expansion samples
    while True:
        live = [i for i, walk in enumerate(walks) if next_leaf(walk, plan) is not None]
        if not total(np.array([len(live)]))[0]:
            return walks, rounds
        uids = {i: ((first + i) * plan.most + walks[i].expanded) * each for i in live}
        now = Round(prefixes, prompts.examples, walks, uids)
        drawn = expand(explorer, now)
        guesses = guess(explorer, now, drawn)
        known = outcomes(explorer, now, drawn, guesses)
        for number, i in enumerate(live):
            mine = slice(number * plan.candidates, (number + 1) * plan.candidates)
            enter(walks[i], [
                Candidate(tuple(d.step.tokens), d.step.ended, d.step.finished, *said, tuple(ends))
                for d, said, ends in zip(drawn[mine], guesses[mine], known[mine], strict=True)
            ], plan)  # fmt: skip
        rounds += 1


def expand(explorer: Explorer, now: Round) -> list[Drawn]:
    """The candidates of the node at which each walk is, problem by problem."""
    writer, plan = explorer.writer, explorer.plan
    at = {i: (now.walks[i].nodes, now.walks[i].at) for i in now.uids}
    before = {i: tokens_to(*place) for i, place in at.items()}
    rows = [[*now.prefixes[i], *before[i]] for i in now.uids]
    numbers = [[uid + n for n in range(plan.candidates)] for uid in now.uids.values()]
    call = Call(len(now.prefixes), plan.candidates, writer.max_step, writer.sampling)
    drawn = []
    for i, samples in zip(now.uids, write(writer, rows, numbers, call), strict=True):
        nodes, node = at[i]
        last = nodes[node].depth + 1 >= plan.depth
        now.walks[i].sampled += sum(len(said) for said in samples)
        for said in samples:
            step = read_step(writer, len(before[i]), said)
            step = step._replace(ended=step.ended or last)
            drawn.append(Drawn(i, before[i], chances_to(nodes, node), step))
    return drawn


def guess(explorer: Explorer, now: Round, drawn: Sequence[Drawn]) -> list[Guess]:
    """What the process model says of each step.

    A step of the end-of-sequence token alone has no chance of its own.
    """
    if explorer.judge is None:
        return [Guess()] * len(drawn)
    rows = [[*now.prefixes[d.problem], *d.said] for d in drawn]
    size = len(now.prefixes) * explorer.plan.candidates
    found = []
    for d, chance in zip(
        drawn, end_chances(explorer.judge, explorer.writer.mesh, rows, size), strict=True
    ):
        own = [chance] if d.step.tokens else []
        value = aggregate([*d.earlier, *own] or [chance], explorer.how)
        found.append(Guess(chance if own else None, value))
    return found


def outcomes(
    explorer: Explorer, now: Round, drawn: Sequence[Drawn], guesses: Sequence[Guess]
) -> list[list[float]]:
    """The values of the judged ends of each step: its own, or those of its rollouts.

    A solution that met a limit is worth 0; one that the verifier failed on is not counted.
    """
    known = [[0.0] if d.step.ended and not d.step.finished else [] for d in drawn]
    finished = [n for n, d in enumerate(drawn) if d.step.finished]
    if explorer.verify is None:
        for n in finished:
            if (value := guesses[n].value) is not None:
                known[n].append(value)
        return known
    done = [(n, drawn[n].said) for n in finished]
    if explorer.plan.rollouts:
        for n, tokens, whole in roll_out(explorer, now, drawn):
            if whole:
                done.append((n, tokens))
            else:
                known[n].append(0.0)
    said = [explorer.writer.tokenizer.decode(tokens) for _, tokens in done]
    right, sound = explorer.verify(said, [now.examples[drawn[n].problem] for n, _ in done])
    for (n, _), value, ok in zip(done, right, sound, strict=True):
        known[n] += [float(value)] if ok else []
    return known


def roll_out(
    explorer: Explorer, now: Round, drawn: Sequence[Drawn]
) -> list[tuple[int, list[int], bool]]:
    """Solutions completed from each step that has not ended, by one call of the sampler.

    Returns:
      for each the number of the step in `drawn`, its tokens, and whether it finished in `max_new`.
    """
    writer, plan, eos = explorer.writer, explorer.plan, explorer.writer.tokenizer.eos_id
    going = [n for n, d in enumerate(drawn) if not d.step.ended]
    rows = [[*now.prefixes[drawn[n].problem], *drawn[n].said] for n in going]
    numbers = []
    for n in going:
        # Behind those of the candidates.
        place = plan.candidates + n % plan.candidates * plan.rollouts
        numbers.append([now.uids[drawn[n].problem] + place + i for i in range(plan.rollouts)])
    sampling = writer.sampling._replace(stop=(eos,))
    call = Call(len(now.prefixes) * plan.candidates, plan.rollouts, writer.max_new, sampling)
    found = []
    for n, samples in zip(going, write(writer, rows, numbers, call), strict=True):
        now.walks[drawn[n].problem].sampled += sum(len(said) for said in samples)
        for said in samples:
            finished = said[-1] == eos
            tokens = [*drawn[n].said, *(said[:-1] if finished else said)]
            found.append((n, tokens, finished and len(tokens) <= writer.max_new))
    return found

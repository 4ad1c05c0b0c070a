"""Who scores the responses of a rollout, and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax.api import Rollout
from posttrain_jax.mesh import from_local_rows, local_rows
from posttrain_jax.rewards import Term, applies
from posttrain_jax.rollout import engine
from posttrain_jax.verifiers.judging.judge import Judge, ask
from posttrain_jax.verifiers.pool import Part, Pool, Verdicts


class Judges(NamedTuple):
    """Everything that scores a response: terms, the verifier pool, judge models by term."""

    terms: tuple[Term, ...]
    pool: Pool
    models: Mapping[str, Judge]


class Scored(NamedTuple):
    """A rollout's rewards on the mesh: scores and whether they apply [B, W], validity [B]."""

    rewards_BW: jax.Array
    applies_BW: jax.Array
    valid_B: jax.Array


class Judging:
    """The verifiers at work on a rollout while it is being made.

    Called with the sequences that have ended (`engine.stream`); each example that a verifier sees
    tells the completion's length in tokens and whether it was finished.

    Args:
      examples: what this host's rows answer, in row order.

    Attributes:
      sound_B: False where a row is left out of the loss whatever its verdicts.
    """

    def __init__(self, pool: Pool, examples: Sequence[Mapping[str, Any]]):
        self._pool = pool
        self._parts: list[Part] = []
        self.examples = list(examples)
        self.responses = [""] * len(examples)
        self.sound_B = np.ones(len(examples), bool)
        self._kept: np.ndarray | None = None

    def __call__(self, ended: engine.Ended) -> None:
        told = []
        for row, response, length, finished in zip(*ended, strict=True):
            self.responses[row] = response
            about = {"completion_length": int(length), "finished": bool(finished)}
            told.append({**self.examples[row], **about})
        self._parts.append((ended.rows, self._pool.submit(ended.responses, told)))

    def verdicts(self) -> Verdicts:
        """The verdicts on all rows, in their order."""
        if self._kept is None:
            return self._pool.gather(self._parts)
        told, parts = np.concatenate([rows for rows, _ in self._parts]), []
        for rows, future in self._parts:  # some rows have not been told of
            first = sum(len(places) for places, _ in parts)
            parts.append((range(first, first + len(rows)), future))
        place = {int(row): place for place, row in enumerate(told)}
        return self._pool.gather(parts).take([place[int(row)] for row in self._kept])

    def keep(self, rows: np.ndarray) -> None:
        """Go on as the judging of these rows alone, which have all ended."""
        self.examples = [self.examples[row] for row in rows]
        self.responses = [self.responses[row] for row in rows]
        self.sound_B, self._kept = self.sound_B[rows], rows

    def take_over(self, places: Sequence[int], other: Judging, theirs: Sequence[int]) -> None:
        """Put rows of another rollout in the places of some of this one's, once both are judged."""
        for place, row in zip(places, theirs, strict=True):
            self.examples[place] = other.examples[row]
            self.responses[place] = other.responses[row]
            self.sound_B[place] = other.sound_B[row]


def score(judges: Judges, judging: Judging, step: int, mesh: Mesh) -> Scored:
    """Score a rollout; the judges work while the last verdicts arrive.

    A judge sees the samples that its term applies to.

    Raises:
      RuntimeError: verifiers or a judge failed on too many samples.
      ValueError: a reward that is not finite, with the response that got it.
    """
    on_BW = applies(judges.terms, judging.examples, step)
    columns, sound_B = [], judging.sound_B.copy()
    for number, term in enumerate(judges.terms):
        if term.name in judges.models:
            scores, sound = ask(
                judges.models[term.name], term.name, judging.examples, judging.responses,
                on_BW[:, number],
            )  # fmt: skip
            columns.append(scores)
            sound_B &= sound
    verdicts = judging.verdicts()
    rewards_BW, valid_B = (
        np.column_stack([verdicts.rewards_BW, *columns]),
        verdicts.mask_B & sound_B,
    )
    rewards_BW = checked(rewards_BW, on_BW & valid_B[:, None], judges.terms, judging)
    return Scored(*(from_local_rows(mesh, x) for x in (rewards_BW, on_BW, valid_B)))


def checked(rewards_BW, counts_BW, terms: Sequence[Term], judging: Judging) -> np.ndarray:
    """The rewards, those that aren't finite refused where they count and 0 where they don't.

    Raises:
      ValueError: the first that counts, with its row.
    """
    bad_BW = ~np.isfinite(rewards_BW)
    for row, number in np.argwhere(bad_BW & counts_BW):
        example = judging.examples[row]
        raise ValueError(
            f"the reward term {terms[number].name!r} gave {rewards_BW[row, number]} to row {row} "
            f"(example {example.get('id', '')!r}, prompt {str(example.get('prompt'))[:200]!r}, "
            f"response {judging.responses[row][:200]!r}); a reward must be a finite number "
            f"(rewards.{terms[number].name})"
        )
    return np.where(bad_BW, 0.0, rewards_BW) if bad_BW.any() else rewards_BW


def shown(judging: Judging, scored: Scored, terms: Sequence[Term], rollout: Rollout, count: int):
    """Some of this host's rollouts with their reward parts, for the report."""
    rewards, on = local_rows(scored.rewards_BW), local_rows(scored.applies_BW)
    finished = local_rows(rollout.finished_B)
    rows = []
    for i in range(0, len(judging.responses), max(1, len(judging.responses) // count)):
        parts = {t.name: float(r) for t, r, o in zip(terms, rewards[i], on[i], strict=True) if o}
        example = judging.examples[i]
        rows.append(
            {
                "prompt": example["prompt"],
                "response": judging.responses[i],
                "reward": sum(
                    t.weight * (parts[t.name] + t.offset) for t in terms if t.name in parts
                ),
                "rewards": parts,
                "example_id": example.get("id", ""),
                "finished": bool(finished[i]),
            }
        )
    return rows

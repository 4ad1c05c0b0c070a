"""The host beside a queue: it tells of what has ended, and has calls answered while others go on.

The host looks once a stretch of steps. Partners work in threads of their own; a sequence whose
partner takes too long is told so and goes on, whatever becomes of the thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax.api import Array, Model, Params, Rollout
from posttrain_jax.mesh import batch_shards, from_local_rows, local_rows, local_slice
from posttrain_jax.rollout import serving
from posttrain_jax.rollout.continuous import Sizes, State, half
from posttrain_jax.rollout.partners import Answer, Partner, Partners
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import layers_apart
from posttrain_jax.rollout.serving import Answers, Served


class Call(NamedTuple):
    """A call that waits for its answer: since when, and how much its sequence had said."""

    begun: float
    place: int


class Host:
    """The conversations of a rollout.

    Args:
      examples: what each sequence answers, of all hosts.

    Attributes:
      broken: sequences whose partner failed.
    """

    def __init__(
        self, partners: Partners, examples: Sequence[Mapping[str, Any]], rules: Rules, mesh: Mesh
    ):
        self.broken: set[int] = set()
        self._mesh, self._shards = mesh, batch_shards(mesh)
        self._partners, self._examples, self._rules = partners, examples, rules
        self._opened: dict[int, Partner] = {}
        self._calls: dict[int, Call] = {}
        self._heard: dict[int, int] = {}
        self._answers: queue.Queue[tuple[int, int, Answer | None]] = queue.Queue()

    def ask(self, seen: Served) -> None:
        """Have the calls of this host's slots that wait answered."""
        parked, sequences, places = map(local_rows, (seen.parked_B, seen.sequence_B, seen.place_B))
        (slots,) = np.nonzero(parked)
        if not len(slots):
            return
        tokens_NC, first = local_rows(seen.tokens_NC), local_slice(seen.tokens_NC).start
        tokenizer, stops = self._partners.text.tokenizer, self._rules.sampling.stop
        for slot in slots:
            sequence, place = int(sequences[slot]), int(places[slot])
            if sequence in self._calls:
                continue
            heard = self._heard.get(sequence, 0)
            ids = tokens_NC[sequence - first, heard:place].tolist()
            said = tokenizer.decode([t for t in ids if t != tokenizer.eos_id])
            self._calls[sequence] = Call(time.monotonic(), place)
            work = (sequence, place, said, ids[-1] in stops)
            threading.Thread(target=self._reply, args=work, daemon=True).start()

    def _reply(self, sequence: int, place: int, said: str, ended: bool) -> None:
        try:
            if sequence not in self._opened:
                self._opened[sequence] = self._partners.open(self._examples[sequence])
            answer = self._opened[sequence].reply(said, ended)
        except Exception as error:  # a partner of the user's own must not end the rollout
            ids = self._partners.text.tokenizer.encode(f"error: {type(error).__name__}")
            answer = Answer(ids[: self._partners.longest], broken=True)
        self._answers.put((sequence, place, answer))

    def answers(self, wait: bool) -> dict[int, Answer | None]:
        """The answers that have come, by sequence; with `wait` it waits for the first."""
        found: dict[int, Answer | None] = {}
        while self._calls.keys() - found.keys():
            late = [s for s, call in self._calls.items() if self._left(call) <= 0]
            found |= dict.fromkeys(set(late) - found.keys(), self._partners.late)
            until = min(self._left(call) for call in self._calls.values())
            waits = wait and not found and until > 0
            try:
                sequence, place, answer = self._answers.get(waits, until if waits else None)
            except queue.Empty:
                if waits:
                    continue
                break
            call = self._calls.get(sequence)
            if sequence not in found and call is not None and call.place == place:
                found[sequence] = answer
        return found

    def _left(self, call: Call) -> float:
        return call.begun + self._partners.wait_seconds - time.monotonic()

    def packed(self, found: Mapping[int, Answer | None], seen: Served, most: int) -> Answers:
        """Answers as the device has them: `most` places for each of this host's shards."""
        here, rows = local_slice(seen.ended_N), len(self._examples)
        shard = rows // self._shards
        size = (here.stop - here.start) // shard * most
        sequence_A = np.full(size, rows, np.int32)
        tokens_AW = np.zeros((size, self._rules.inserts), np.int32)
        length_A, filled = np.zeros(size, np.int32), Counter[int]()
        for sequence, answer in found.items():
            place, owner = self._calls.pop(sequence).place, (sequence - here.start) // shard
            row = owner * most + filled[owner]
            filled[owner] += 1
            sequence_A[row] = sequence
            if answer is None:
                length_A[row] = -1
                continue
            if answer.broken:
                self.broken.add(sequence)
            length_A[row] = length = len(answer.ids)
            tokens_AW[row, :length] = answer.ids
            if length:
                self._heard[sequence] = place + length
        return Answers(*(from_local_rows(self._mesh, x) for x in (sequence_A, tokens_AW, length_A)))

    def sound(self, rollout: Rollout) -> Array:
        """Which sequences nobody failed [B]."""
        here = local_slice(rollout.finished_B)
        sound = ~np.isin(np.arange(here.start, here.stop), sorted(self.broken))
        return from_local_rows(self._mesh, sound)

    def close(self) -> None:
        """End all conversations."""
        for partner in self._opened.values():
            partner.close()


def roll_out(
    model: Model, params: Params, asked: Asked, rules: Rules, sizes: Sizes, *,
    stretch: int, host: Host | None = None, look: Callable[[Served], None] = lambda seen: None,
) -> Rollout:  # fmt: skip
    """As `continuous.sample_queue`, in stretches of so many steps.

    Args:
      host: answers calls.
      look: called between stretches while the device works on the next, last when all have ended.
    """
    state = serving.begin(model, asked, rules, sizes)
    state = drive(
        model, params, asked, rules, sizes, state, stretch=stretch, host=host, look=look
    )  # fmt: skip
    rollout = serving.finish(state, asked, rules)
    return rollout if host is None else rollout._replace(sound_B=host.sound(rollout))


def drive(
    model: Model, params: Params, asked: Asked, rules: Rules, sizes: Sizes, state: State, *,
    stretch: int, host: Host | None = None, look: Callable[[Served], None] = lambda seen: None,
) -> State:  # fmt: skip
    """The state in which all, or enough of them (`Sizes.spare`), have ended.

    Args:
      state: of `serving.begin`; it is used up.
      stretch, host, look: as of `roll_out`.
    """
    params, steps, count = layers_apart(params), jnp.int32(stretch), sizes.slots
    # Where the slowest are left for another time the slots stay full.
    fewer = (lambda count: 0) if sizes.spare else half
    state, seen = serving.advance(model, params, asked, rules, sizes, state, steps)
    try:
        # When all have ended it goes on through the smaller sizes, so that the first rollout
        # compiles every program that a later one may need.
        while int(seen.left) or fewer(count):
            if host is not None:
                host.ask(seen)
                found = host.answers(wait=not bool(seen.busy))
                # All hosts call together.
                state = serving.answer(state, rules, host.packed(found, seen, count))
            queued, live = int(seen.queued), int(seen.live)
            if not queued and fewer(count) and live <= fewer(count):
                count = fewer(count)
                state = serving.fewer(state, count, rules)
            state, following = serving.advance(model, params, asked, rules, sizes, state, steps)
            look(seen)
            seen = following
        look(seen)
    finally:
        if host is not None:
            host.close()
    return state

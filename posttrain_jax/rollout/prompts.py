"""Which prompts each draw takes: named groups with shares, some of which join later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from posttrain_jax.api import Artifact
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.loader import Order
from posttrain_jax.data.procedural import allot
from posttrain_jax.policy import Text
from posttrain_jax.rollout.engine import Prompts, concat, encode_prompts


class Drawn(NamedTuple):
    """How far a stream is.

    Attributes:
      draws: how often it was drawn from.
      taken: how many prompts each group gave.
    """

    draws: int
    taken: Mapping[str, int]


NOTHING_DRAWN = Drawn(0, {})


class PromptStream:
    """The prompts of an RL stage, as a function of how far it is.

    `config.prompts` is {name: {"data": sources, "share": weight, "start_step": update}}. A group's
    prompts come in a shuffled order without end; it goes on where it stopped, also after a resume.
    """

    def __init__(self, config: Any, inputs: Mapping[str, Artifact], text: Text):
        if not config.prompts:
            raise ValueError("prompts is empty: an RL stage needs at least one group of prompts")
        self._groups = {name: dict(group) for name, group in config.prompts.to_dict().items()}
        self._count = config.rollout_size // config.group_size
        tables: list[Prompts] = []
        self._first: dict[str, int] = {}
        self._orders: dict[str, Order] = {}
        for name in sorted(self._groups):
            examples = load_examples(self._groups[name]["data"], inputs, config.seed)
            table = encode_prompts(examples, *text, config.prompt_length, config.system)
            self._first[name] = sum(len(t.examples) for t in tables)
            self._orders[name] = Order(len(table.examples), config.seed)
            tables.append(table)
        self._table = concat(tables)
        self.skipped = self._table.skipped

    def counts(self, step: int, count: int | None = None) -> dict[str, int]:
        """How many prompts each group gives to the rollout at this update.

        Args:
          count: of all; those of a rollout where None.
        """
        active = {
            name: group.get("share", 1.0)
            for name, group in sorted(self._groups.items())
            if step >= group.get("start_step", 0)
        }
        if not active:
            raise ValueError(f"no group of prompts is active at step {step}: lower a start_step")
        return allot(active, self._count if count is None else count)

    def draw(self, step: int, drawn: Drawn = NOTHING_DRAWN) -> tuple[Prompts, Drawn]:
        """The prompts of a rollout that is learnt from at update `step`, group by group."""
        rows, drawn = self.rows(step, drawn)
        return self.take(rows), drawn

    def rows(
        self, step: int, drawn: Drawn = NOTHING_DRAWN, count: int | None = None
    ) -> tuple[list[int], Drawn]:
        """The same as numbers, for `take`; so many of them (None: a rollout's)."""
        rows, taken = [], dict(drawn.taken)
        for name, wanted in self.counts(step, count).items():
            before = taken.get(name, 0)
            rows += [self._first[name] + i for i in self._orders[name].take(before, wanted)]
            taken[name] = before + wanted
        return rows, Drawn(drawn.draws + 1, taken)

    def take(self, rows: Sequence[int]) -> Prompts:
        """The prompts of these numbers."""
        return self._table.take(rows)

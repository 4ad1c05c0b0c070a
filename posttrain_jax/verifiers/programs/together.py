"""A program's inputs judged in one process, where that can't be to its gain.

Every input has a right to a process of its own (mode "stdio"), which is what a verdict means. Most
programs neither know nor care. So where there are three inputs or more, all run in one process
first (`jail.together`), and a program that passes there has passed. Whatever else comes of it, a
wrong answer, an exception, an exit, a limit, something left behind, says nothing: then every input
gets its process, and that verdict counts.

Why a pass in one process is a pass in several:

- No process ever holds what is expected. What a program printed is compared here, input by input;
  it gets the next input when it has said that it is done with the last, and if it says so early it
  has only printed less.
- What honest programs change without a thought (the recursion limit, the seed, the decimal context,
  the streams) is put back, and what others leave behind (files, the environment, threads, names in
  modules or among the built-in ones) ends the attempt, so that no input is answered right by
  accident of an earlier one.
- A program that hides what it keeps from one input to the next (nothing in its own process can keep
  it from that) could use it to count, or to save time. Counting leads nowhere: the order of the
  inputs is drawn from what is expected of them, and one is drawn twice. Time is not saved: n
  inputs together get an n-th of the item's limits, so each process could have done all that they
  did, and n processes would have stayed within the limits.

What is left is a program that finds an answer from an earlier input and could not from its own; as
the answer is a function of its own input, there is nothing to gain that it couldn't compute.
"""

import hashlib
import json
import random

from posttrain_jax.verifiers.jail import Jail, Limits
from posttrain_jax.verifiers.programs.cases import Stdio
from posttrain_jax.verifiers.programs.compare import same_output

FEWEST = 3
"""Of two inputs the order is too easily guessed, and little is saved."""


def passes(
    jail: Jail, program: str, tests: list[Stdio], limits: Limits, tolerance: float | None
) -> bool:
    """Whether a program answers all inputs right in one process; False leaves it open.

    Args:
      jail: where it runs.
      program: its source.
      tests: inputs and expected outputs.
      limits: of the whole item.
      tolerance: see `compare.same_output`.

    Raises:
      Poisoned: it killed two zygotes.
    """
    if len(tests) < FEWEST:
        return False
    share = limits._replace(cpu_s=limits.cpu_s / len(tests), wall_s=limits.wall / len(tests))
    drawn = [tests[number] for number in _order(program, tests)]
    inputs = [case.input for case in drawn]
    outcome = jail.run({"mode": "stdio_together", "program": program, "inputs": inputs}, share)
    return outcome.status == "ok" and all(
        same_output(case.output, result.value, tolerance)
        for case, result in zip(drawn, outcome.results, strict=True)
    )


def _order(program: str, tests: list[Stdio]) -> list[int]:
    """All cases, then one of them again: always the same, and nothing that a program can know."""
    drawn = random.Random(hashlib.sha256(json.dumps([program, tests]).encode()).digest())
    count = len(tests)
    return [*drawn.sample(range(count), count), drawn.randrange(count)]

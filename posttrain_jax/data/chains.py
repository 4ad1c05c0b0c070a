"""Chain problems: a start, a few labelled operations, and the state that each one leads to.

The three reasoning tasks are walks on a table of moves (add and subtract on 0..20, swaps of four
cups). A problem writes the walk as `3 #1+5 #2-2`, a label and its operation as one token; a worked
step reads `8 #2 -2 gives 6.`, three tokens. So a label is looked up by the content of a single
token, which a small model learns for every seed. (With label and operation apart in the problem
too, it has to compose two heads, and for some seeds it never does.) Labels, operations and states
are the same in both languages.

Every text piece here carries its own leading space (the tokenizer's word boundary), so sentences
are plain concatenations.
"""

import hashlib
import random
import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

LANGUAGES = ("en", "zh")
MAX_STEPS = 5
LABELS = tuple(f" #{i}" for i in range(1, MAX_STEPS + 1))
NUMBERS = tuple(f" {i}" for i in range(21))
CUPS = (" A", " B", " C", " D")
THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"

GIVES = {"en": " gives", "zh": " 得"}
STOP = {"en": ".", "zh": "。"}
WAIT = {"en": " Wait", "zh": "等等"}
PLAIN_ANSWER = {"en": " The answer is", "zh": "答案是"}
STYLES = ("none", "short", "full")
HELD_OUT_SHARE = 5
"""One problem in five is held out."""

Moves = Mapping[str, Sequence[tuple[str, str]]]
"""state -> the operations that may be applied to it, each with the state it leads to."""


def number_moves(largest: int = 9) -> Moves:
    """Adding and subtracting 1..largest where the total stays within 0..20."""
    return {
        NUMBERS[n]: tuple(
            (f" {delta:+d}", NUMBERS[n + delta])
            for delta in range(-largest, largest + 1)
            if delta and 0 <= n + delta < len(NUMBERS)
        )
        for n in range(len(NUMBERS))
    }


def cup_moves() -> Moves:
    """Swapping two of four cups: the ball moves with its cup, or stays where it is."""
    swaps = [(a, b) for a, b in combinations(CUPS, 2)]

    def follow(cup: str, a: str, b: str) -> str:
        return b if cup == a else a if cup == b else cup

    return {
        cup: tuple((f" {a.strip()}{b.strip()}", follow(cup, a, b)) for a, b in swaps)
        for cup in CUPS
    }


NUMBER_MOVES = number_moves()
CUP_MOVES = cup_moves()
OPERATIONS = tuple(
    sorted({op for m in (NUMBER_MOVES, CUP_MOVES) for v in m.values() for op, _ in v})
)
RESULT = {
    (state, op): after
    for moves in (NUMBER_MOVES, CUP_MOVES)
    for state, options in moves.items()
    for op, after in options
}
"""The step function of all tasks: (state, operation) -> state."""


class Chain(NamedTuple):
    """A walk: `states[0]` is the start, `states[i + 1]` follows `operations[i]`."""

    operations: tuple[str, ...]
    states: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The last state, without its leading space."""
        return self.states[-1].strip()


def is_held_out(key: str) -> bool:
    """Whether a problem belongs to the held-out split: a hash of the problem, without wording.

    The language, the names and the sentence are not in the key, so the same sum in other words is
    on the same side of the split.
    """
    return zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0


def make_chain(
    rng: random.Random,
    moves: Moves,
    steps: tuple[int, int] = (2, MAX_STEPS),
    split: str | None = None,
) -> Chain:
    """A random walk of `steps[0]`..`steps[1]` operations, from the given split (None: from both).

    Raises:
      ValueError: an unknown split, or a number of steps outside 2..MAX_STEPS (one step alone is a
        row of the table and can't be held out).
    """
    if split not in (None, "train", "heldout"):
        raise ValueError(f"split must be 'train', 'heldout' or None, got {split!r}")
    low, high = steps
    if not 2 <= low <= high <= MAX_STEPS:
        raise ValueError(f"steps must lie within 2..{MAX_STEPS}, got {steps}: change `steps`")
    starts = tuple(moves)
    uniform = rng.random
    while True:
        state = starts[int(uniform() * len(starts))]
        states, operations = [state], []
        for _ in range(low + int(uniform() * (high - low + 1))):
            options = moves[state]
            operation, state = options[int(uniform() * len(options))]
            operations.append(operation)
            states.append(state)
        if split is None or is_held_out(states[0] + "".join(operations)) == (split == "heldout"):
            return Chain(tuple(operations), tuple(states))


def item(label: str, operation: str) -> str:
    """A label with its operation as a problem writes them, one token: ` #2-2`."""
    return label + operation.strip()


def labelled(chain: Chain) -> str:
    """The walk as a problem writes it: ` 3 #1+5 #2-2`."""
    steps = [item(label, op) for label, op in zip(LABELS, chain.operations, strict=False)]
    return chain.states[0] + "".join(steps)


def step_text(before: str, label: str, operation: str, after: str, language: str) -> str:
    """One worked step: ` 8 #2 -2 gives 6.`"""
    return before + label + operation + GIVES[language] + after + STOP[language]


def thought(chain: Chain, language: str, style: str = "full") -> str:
    """The chain of thought of a walk.

    Args:
      style: `full` (every step worked), `short` (every result, nothing else) or `none` (empty).

    Raises:
      ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}, got {style!r}")
    if style == "none":
        return ""
    gives, stop = GIVES[language], STOP[language]
    if style == "short":
        return "".join(
            label + gives + after + stop
            for label, after in zip(LABELS, chain.states[1:], strict=False)
        )
    rows = zip(chain.states, LABELS, chain.operations, chain.states[1:], strict=False)
    return "".join(before + lab + op + gives + after + stop for before, lab, op, after in rows)


def tagged(thought_text: str, answer_text: str) -> str:
    """The response format of the tiny preset: thought and answer between their tags."""
    return f"{THINK}{thought_text}{END_THINK}{ANSWER}{answer_text}{END_ANSWER}"


def chain_example(
    task: str, language: str, prompt: str, chain: Chain, style: str
) -> dict[str, object]:
    """The example of a chain problem (the id is set by its wording)."""
    return {
        "id": example_id(task, language, prompt),
        "task": task,
        "language": language,
        "kind": "reasoning",
        "prompt": prompt,
        "answer": chain.answer,
        "solution": tagged(thought(chain, language, style), chain.states[-1]),
    }


def example_id(task: str, language: str, prompt: str) -> str:
    """`<task>-<language>-<10 hex digits of the prompt's SHA-256>`."""
    return f"{task}-{language}-{hashlib.sha256(prompt.encode()).hexdigest()[:10]}"


def render(prompt: str, completion: str = "", *, end: bool = True) -> str:
    """The chat rendering of one turn; with `end` the end-of-turn token follows."""
    return f"{USER}{prompt}{ASSISTANT}{completion}{END if end else ''}"

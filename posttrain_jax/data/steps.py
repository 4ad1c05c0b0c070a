"""Solutions as steps: where each one ends, in the text and among the tokens.

A step ends with a separator of the task's text: a blank line in Qwen2.5-Math-PRM's data, a full
stop in the tiny tasks. What follows the last separator is a step too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain_jax.data import chat
from posttrain_jax.data.chat_template import ChatTemplate
from posttrain_jax.data.examples import messages
from posttrain_jax.data.tokenizers.base import Tokenizer


class Steps(NamedTuple):
    """The tokens of a conversation, and where the steps of its response end.

    Attributes:
      prompt: how many tokens stand before the response.
      ends: the last token of each step; -1 where a step ends inside of a token, or behind the cut.
    """

    tokens: np.ndarray
    prompt: int
    ends: tuple[int, ...]


def split_steps(response: str, separators: Sequence[str]) -> list[str]:
    """The steps of a response, whose sum it is.

    New lines behind a separator, and white space alone, are part of the step before.

    Raises:
      ValueError: no separator, or an empty one.
    """
    if isinstance(separators, str) or not separators or not all(separators):
        raise ValueError(
            f"separators={separators!r}: expected texts that end a step, as ('\\n\\n',)"
        )
    ends = re.compile(f"(?:{'|'.join(map(re.escape, separators))})\n*")
    stops = [0, *(found.end() for found in ends.finditer(response)), len(response)]
    steps: list[str] = []
    for start, stop in itertools.pairwise(stops):
        step = response[start:stop]
        if step.strip() or not steps:
            steps.append(step)
        else:
            steps[-1] += step
    return steps if response.strip() else []


def encode_steps(
    tokenizer: Tokenizer, template: ChatTemplate, example: Mapping[str, Any], steps: Sequence[str],
    length: int = 0, system: str = "", marker: str = "",
) -> Steps:  # fmt: skip
    """The tokens of a solution, cut to `length` (0: all of them), and where its steps end.

    Args:
      marker: a token that is put behind each step and read in its place (`<extra_0>` of
        Qwen2.5-Math-PRM).

    Raises:
      ValueError: the marker is no single token; else as `data.chat.encode_chat`.
    """
    turns = messages(example, "".join(steps), system)
    ids, spoken = chat.encode_chat(tokenizer, template, turns)
    before = template.render(turns[:-1], True)
    prompt, last = spoken.index(True), len(spoken) - 1 - spoken[::-1].index(True)
    ends, said = [], before
    for step in steps[:-1]:
        said += step
        part = tokenizer.encode(said)
        ends.append(len(part) - 1 if prompt < len(part) and ids[: len(part)] == part else -1)
    if steps:
        ends.append(last - 1)  # what follows it ends the turn
    if marker:
        ids, ends = _with_markers(tokenizer, ids, ends, marker)
    kept = tuple(end if end < (length or len(ids)) else -1 for end in ends)
    return Steps(np.array(ids[: length or None], np.int32), prompt, kept)


def _with_markers(tokenizer: Tokenizer, ids: list[int], ends: list[int], marker: str):
    found = tokenizer.encode(marker)
    if len(found) != 1:
        raise ValueError(f"marker={marker!r} is {len(found)} tokens; expected a single one")
    out, moved, start = [], [], 0
    for end in ends:
        if end < 0:
            moved.append(-1)
            continue
        out += [*ids[start : end + 1], *found]
        moved.append(len(out) - 1)
        start = end + 1
    return out + ids[start:], moved

"""Preferences as tokens: pairs of responses, or single ones with a label.

An example of a pair has `chosen` and `rejected`, and what they answer: `prompt`, or `messages`, a
conversation that the assistant goes on with (so that pairs of a single message are possible). A
side is a text, one message, or a list of messages; where both are lists, what they begin with in
common is not compared. An example of a single response has `response` and `label` (true where it
is desirable); a pair counts as two of them.

Of a side the template's tokens are told from what was said: the header (what the generation prompt
adds) and the turn markers inside, such as the end-of-sequence token. Messages can't hold those.
What can't be learnt from is left out, with its row and the reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain_jax.data.chat import ChatTemplate, encode_chat, encode_prompt
from posttrain_jax.data.examples import messages
from posttrain_jax.data.messages import Messages
from posttrain_jax.data.tokenizer import Tokenizer

Example = Mapping[str, Any]
REASONS = ("equal_sides", "empty_response", "all_masked", "too_long")


class Side(NamedTuple):
    """A conversation and the response in it.

    Attributes:
      tokens: int32.
      said: bool, the response: what a policy samples, up to the end-of-sequence token.
      template: bool, the response's tokens that are not its author's: headers and turn markers.
    """

    tokens: np.ndarray
    said: np.ndarray
    template: np.ndarray

    @property
    def prompt(self) -> int:
        """How many tokens stand before the response."""
        return int(np.argmax(self.said))


class Preferences(NamedTuple):
    """Encoded examples.

    Attributes:
      groups: (chosen, rejected) of each pair; or (response, response to another prompt) of each
        single one.
      desirable: the label of each single response; empty of pairs.
      names: the examples' ids.
      left_out: {"id", "reason"} of what is not among them, the reason one of REASONS.
    """

    groups: list[tuple[Side, Side]]
    desirable: list[bool]
    names: list[str]
    left_out: list[dict[str, str]]

    @property
    def counts(self) -> dict[str, int]:
        """How many there are, and how many were left out for each reason."""
        reasons = Counter(row["reason"] for row in self.left_out)
        return {"pairs": len(self.groups), **{name: reasons[name] for name in REASONS}}


def encode_pairs(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    length: int,
    system: str = "",
) -> Preferences:
    """The pairs among examples.

    Args:
      length: the most tokens that a conversation may have.
      system: a system prompt for conversations without one.

    Raises:
      ValueError: an example without a pair, a conversation that the template can't encode (with the
        example), or no pair is left (with the counts).
    """
    found = Preferences([], [], [], [])
    for example in examples:
        context, sides = _read_pair(example, system)
        chosen, rejected = (
            _encode(example, tokenizer, template, context, turns) for turns in sides
        )
        reason = _useless(sides[0], chosen, length) or _useless(sides[1], rejected, length)
        if np.array_equal(chosen.tokens, rejected.tokens):
            reason = "equal_sides"
        _take(found, example, reason, (chosen, rejected))
    return _checked(found, length)


def encode_singles(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    length: int,
    system: str = "",
) -> Preferences:
    """The single responses among examples, each beside another's response to its prompt.

    The other one is the nearest before it, round the end, that answers another prompt; what goes
    over `length` is cut. (TRL's KTO takes the one before within a batch; a partner that stays the
    same lets the reference's log-probs be kept.)

    Raises:
      ValueError: as `encode_pairs`; or all examples have one prompt.
    """
    found = Preferences([], [], [], [])
    for example in examples:
        context, responses = _read_singles(example, system)
        for turns, label in responses:
            side = _encode(example, tokenizer, template, context, turns)
            reason = _useless(turns, side, length)
            if _take(found, example, reason, (side, side)):
                found.desirable.append(label)
    _checked(found, length)
    sides = [side for side, _ in found.groups]
    found.groups[:] = [(side, _mismatched(sides, i, length)) for i, side in enumerate(sides)]
    return found


def fingerprints(groups: Sequence[tuple[Side, Side]]) -> np.ndarray:
    """A uint64 of the tokens of each group, and of which of them are the responses'."""
    digests = []
    for group in groups:
        sha = hashlib.sha256()
        for side in group:
            sha.update(np.int64(len(side.tokens)).tobytes())
            sha.update(side.tokens.tobytes() + side.said.tobytes())
        digests.append(sha.digest()[:8])
    return np.frombuffer(b"".join(digests), np.uint64)


def _take(found: Preferences, example: Example, reason: str, group: tuple[Side, Side]) -> bool:
    name = str(example.get("id"))
    if reason:
        found.left_out.append({"id": name, "reason": reason})
    else:
        found.groups.append(group)
        found.names.append(name)
    return not reason


def _checked(found: Preferences, length: int) -> Preferences:
    if not found.groups:
        raise ValueError(
            f"no example is left to learn from: {found.counts} (too_long is over length={length})"
        )
    return found


def _read_pair(example: Example, system: str) -> tuple[Messages, tuple[Messages, Messages]]:
    """What both sides answer, and the messages of each."""
    sides = [example.get("chosen"), example.get("rejected")]
    if any(side is None for side in sides):
        raise ValueError(f"example {example.get('id')!r} has no chosen and rejected response")
    chosen, rejected = (_turns(side) for side in sides)
    shared = 0
    if all(isinstance(side, list | tuple) for side in sides):
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        if shared == len(chosen) == len(rejected):
            shared -= 1  # they are equal, which the caller counts
    context = [*_context(example, system, chosen[:shared]), *chosen[:shared]]
    return context, (chosen[shared:], rejected[shared:])


def _read_singles(example: Example, system: str) -> tuple[Messages, list[tuple[Messages, bool]]]:
    """What is answered, and the messages and the label of each response."""
    if "response" not in example:
        context, (chosen, rejected) = _read_pair(example, system)
        return context, [(chosen, True), (rejected, False)]
    label = example.get("label")
    if not isinstance(label, bool):
        raise ValueError(
            f"example {example.get('id')!r} has the label {label!r}; expected true (desirable) or "
            "false"
        )
    turns = _turns(example["response"])
    asked = next((i for i, m in enumerate(turns) if m["role"] == "assistant"), 0)
    context = [*_context(example, system, turns[:asked]), *turns[:asked]]
    return context, [(turns[asked:], label)]


def _context(example: Example, system: str, first: Messages) -> Messages:
    """The conversation that a response goes on with; only a system prompt, where it has its own."""
    if first and first[0]["role"] != "assistant":
        own = first[0]["role"] == "system" or not system
        return [] if own else [{"role": "system", "content": system}]
    return messages(example, system=system)


def _turns(side: Any) -> Messages:
    if isinstance(side, str):
        return [{"role": "assistant", "content": side}]
    return [side] if isinstance(side, Mapping) else list(side)


def _useless(turns: Messages, side: Side, length: int) -> str:
    """Why nothing can be learnt from a side; empty where something can."""
    if not any((m.get("content") or "").strip() or m.get("tool_calls") for m in turns):
        return "empty_response"
    if not (side.said & ~side.template).any():
        return "all_masked"
    return "too_long" if len(side.tokens) > length else ""


def _encode(
    example: Example,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    context: Messages,
    turns: Messages,
) -> Side:
    """A conversation whose response is what the assistant says after the context."""
    whole = [*context, *turns]
    try:
        if not turns or turns[0]["role"] != "assistant":
            raise ValueError(
                "a response begins with a message of the assistant, got "
                f"{[m['role'] for m in turns]} after {len(context)} messages in common"
            )
        # Earlier turns need no mask, and some templates render them in another form.
        answers = any(message["role"] == "user" for message in turns)
        ids, spoken = encode_chat(tokenizer, template, whole, turns="all" if answers else "last")
        start = len(encode_prompt(tokenizer, template, context))
        tokens = np.array(ids, np.int32)
        said = np.array(spoken, bool) & (np.arange(len(ids)) >= start)
        marks = said & np.isin(tokens, [tokenizer.eos_id, *tokenizer.markers.values()])
        for i in range(len(context), len(whole)):
            if whole[i]["role"] == "assistant":
                before = tokenizer.encode(template.render(whole[:i]))
                asked = encode_prompt(tokenizer, template, whole[:i])
                marks[_common(before, asked) : len(asked)] = True
    except ValueError as error:
        raise ValueError(f"example {example.get('id')!r}: {error}") from error
    return Side(tokens, said, marks)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _mismatched(sides: Sequence[Side], number: int, length: int) -> Side:
    """The prompt of a response with the response to another prompt."""
    own = sides[number]
    prompt = own.tokens[: own.prompt]
    for back in range(1, len(sides)):
        other = sides[number - back]
        if not np.array_equal(other.tokens[: other.prompt], prompt):
            break
    else:
        raise ValueError("all examples have one prompt: no response answers another one")
    join = lambda mine, theirs: np.concatenate([mine, theirs])[:length]  # noqa: E731
    none = np.zeros(len(prompt), bool)
    return Side(
        join(prompt, other.tokens[other.prompt :]),
        join(none, other.said[other.prompt :]),
        join(none, other.template[other.prompt :]),
    )

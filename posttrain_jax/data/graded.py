"""Responses with grades: what reward models learn from, in groups of one prompt.

An example gives its responses in one of three forms:
  chosen, rejected, and edited where somebody improved the chosen one: grades 1, 0 and 2
    (Llama 3, arXiv 2407.21783, section 4.1.2: edited > chosen > rejected);
  responses, a list of texts, and labels, a grade each (or ratings, as below);
  response, one a row as a `generate` artifact has them, and its grade in a field that a setting
    names (`label`, `scores.accuracy`); the rows of one prompt are a group.
A response is a text, one message of the assistant, or a list of messages that ends with one and
begins with the conversation, which is the same for all responses of an example.
Where several objectives are rated, a response has `ratings`, {objective: number}; what is not
rated is left out of the loss. The rows of a `generate` artifact that its verifier failed on
(`masked`) are left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Example = Mapping[str, Any]
RANKED = ("rejected", "chosen", "edited")


class Graded(NamedTuple):
    """The responses to one prompt.

    Attributes:
      grades: of each response a number an objective; one number where none are named. Higher is
        better, NaN is not rated.
      margin: how far apart a better and a worse response should score at least.
    """

    example: Example
    responses: tuple[str, ...]
    grades: tuple[tuple[float, ...], ...]
    margin: float = 0.0

    def apart(self) -> list[Graded]:
        """Every response as a group of its own."""
        pairs = zip(self.responses, self.grades, strict=True)
        return [self._replace(responses=(r,), grades=(g,)) for r, g in pairs]


def read_graded(
    examples: Iterable[Example],
    *,
    label: str = "label",
    objectives: Sequence[str] = (),
    margin: float = 0.0,
    margin_field: str = "",
) -> tuple[list[Graded], Counter[str]]:
    """All examples as groups, in the order of their first rows, and what was left out.

    Args:
      label: the field of a row that holds its grade; dots lead into it.
      objectives: read `ratings` of these names instead.
      margin, margin_field: each group's margin is the first, plus the number in that field.

    Raises:
      ValueError: an example without responses or grades, or whose grade or margin is no number.
    """
    groups: dict[Any, Graded] = {}
    counts = Counter(dropped_masked=0)
    for example in examples:
        if example.get("masked"):
            counts["dropped_masked"] += 1
            continue
        said, grades = _graded(example, label, objectives)
        example, responses = _last_messages(example, said)
        room = margin + (_number(example, margin_field) if margin_field else 0.0)
        key = len(groups) if len(responses) > 1 else _prompt_of(example)
        if key in groups:
            before = groups[key]
            groups[key] = before._replace(
                responses=before.responses + responses, grades=before.grades + grades
            )
        else:
            groups[key] = Graded(example, responses, grades, room)
    return list(groups.values()), counts


def _prompt_of(example: Example) -> tuple:
    """What the rows of one prompt have in common."""
    asked = example["prompt"] if "prompt" in example else repr(example["messages"])
    return example.get("source", ""), example.get("index", -1), asked


def _last_messages(example: Example, responses: Sequence[Any]) -> tuple[Example, tuple[str, ...]]:
    """Responses as texts, and the example with the conversation that they answer.

    Raises:
      ValueError: messages that don't end with a text of the assistant, or different conversations.
    """
    if all(isinstance(response, str) for response in responses):
        return example, tuple(responses)
    name, texts, asked = example.get("id"), [], []
    for response in responses:
        turns = [response] if isinstance(response, str | Mapping) else list(response)
        last = turns[-1] if turns else None
        if isinstance(last, Mapping) and last.get("role") == "assistant":
            last = last.get("content")
        if not isinstance(last, str):
            raise ValueError(
                f"example {name!r}: a response is a text, or messages of which the last is a text "
                f"of the assistant; got {response!r}"
            )
        texts.append(last)
        asked.append(turns[:-1])
    if any(turns != asked[0] for turns in asked):
        raise ValueError(
            f"example {name!r}: its responses answer different conversations, which a reward model "
            "can't compare; up to the last message they must be the same"
        )
    if asked[0]:
        example = {k: v for k, v in example.items() if k != "prompt"} | {"messages": asked[0]}
    return example, tuple(texts)


def _graded(example: Example, label: str, objectives: Sequence[str]):
    if "responses" in example:
        texts, name = example["responses"], "ratings" if objectives else "labels"
        said = example.get(name)
        if not isinstance(said, list) or len(said) != len(texts):
            raise ValueError(
                f"example {example.get('id')!r}: {len(texts)} responses need as many {name}, "
                f"got {said!r}"
            )
        rows = [{**example, "label": value, "ratings": value} for value in said]
        return tuple(texts), tuple(_grades(row, "label", objectives) for row in rows)
    if "response" in example:
        return (example["response"],), (_grades(example, label, objectives),)
    if objectives or "chosen" not in example or "rejected" not in example:
        wanted = "ratings" if objectives else "label"
        raise ValueError(
            f"example {example.get('id')!r} has no chosen and rejected response; it may also have "
            f"response with {wanted}, or responses with {wanted}{'' if objectives else 's'}"
        )
    found = [(example[name], (float(i),)) for i, name in enumerate(RANKED) if name in example]
    texts, grades = zip(*reversed(found), strict=True)  # the better ones first
    return texts, grades


def _grades(row: Example, label: str, objectives: Sequence[str]) -> tuple[float, ...]:
    if not objectives:
        return (_number(row, label),)
    ratings = row.get("ratings")
    if not isinstance(ratings, Mapping) or not set(objectives) & set(ratings):
        raise ValueError(
            f"example {row.get('id')!r} has ratings {ratings!r}: expected some of {objectives}"
        )
    return tuple(
        _number({"id": row.get("id"), **ratings}, name) if name in ratings else math.nan
        for name in objectives
    )


def _number(row: Example, field: str) -> float:
    value: Any = row
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError(f"example {row.get('id')!r}: {field} is {value!r}, expected a number")
    return float(value)

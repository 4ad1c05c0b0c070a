"""The reference answers of an example, as the data sets write them."""

from collections.abc import Mapping
from typing import Any

from posttrain_jax.verifiers.formulas.answer_text import find_answer, is_prose

_FIELDS = ("gold", "answer")
_STATED = ("boxed", "phrase", "tag")
_SOLUTION = 200


def stated(example: Mapping[str, Any]) -> tuple[str, Any]:
    """The field that holds the reference, `gold` or else `answer`, and what stands there.

    Raises:
      KeyError: the example has neither.
    """
    for field in _FIELDS:
        if field in example:
            return field, example[field]
    raise KeyError(f"example: no field 'gold' (or 'answer'), got {', '.join(example) or 'none'}")


def raw_references(example: Mapping[str, Any]) -> list[str]:
    """`example["gold"]`, else `example["answer"]`: the texts of one or of several accepted answers.

    Raises:
      KeyError: the example has neither field.
      TypeError: it isn't a text, a number or a list of those.
      ValueError: a text or the list is empty.
    """
    field, value = stated(example)
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError(f"example[{field!r}] is an empty list, expected at least one answer")
    for item in values:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise TypeError(
                f"example[{field!r}] holds a {type(item).__name__}, expected a text, a number or a "
                "list of those"
            )
        if not str(item).strip():
            raise ValueError(f"example[{field!r}] is empty, expected an answer")
    return [str(item).strip() for item in values]


def references(example: Mapping[str, Any]) -> list[str]:
    """The accepted answers; of a whole solution its final one (boxed, or behind `####`).

    Words in more than 200 characters count as a solution whatever they say.

    Raises:
      KeyError, TypeError, ValueError: as `raw_references`.
    """
    texts = []
    for text in raw_references(example):
        found = find_answer(text)
        solution = len(text) > _SOLUTION and is_prose(text)
        stated = found and found.text and (found.how in _STATED or solution)
        texts.append(found.text if found and stated else text)
    return texts

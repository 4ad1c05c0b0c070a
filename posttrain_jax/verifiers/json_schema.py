"""Whether a response gives valid JSON, and JSON that a schema allows.

Source: RFC 8259 (so NaN and Infinity aren't JSON) and JSON Schema, the draft that `$schema` names,
else 2020-12, by the package jsonschema. Nothing is fetched: a `$ref` to elsewhere is an error.

Not covered: `format` is an annotation, as the drafts have it; a `pattern` that takes exponential
time is stopped by the deadline of the pool only.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NoReturn

from jsonschema import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, extend, validator_for
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers import tags


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    schema: Mapping[str, Any] | None = None,
    max_chars: int = 200_000,
    max_depth: int = 50,
    max_values: int = 20_000,
    answer_tag: str = "answer",
    think_tag: str = "think",
) -> Verdict:
    """1 where the JSON of a response is valid and follows the schema, 0 otherwise.

    Args:
      response: the completion; `find_json` finds the JSON in it.
      example: `example["schema"]` is the schema, an object or one as JSON text.
      schema: the schema of every example that has none. Without any, valid JSON is enough.
      max_chars, max_depth, max_values: longer JSON, deeper JSON and JSON of more values fails.
      answer_tag, think_tag: the names of the tags.

    Raises:
      ValueError: the schema isn't one, or refers to one that isn't there.
    """
    wanted = example.get("schema", schema)
    validator = None if wanted is None else _validator(_text_of(wanted))
    text = find_json(response, answer_tag=answer_tag, think_tag=think_tag)
    if len(text) > max_chars:
        return Verdict(0.0, "fail", f"{len(text)} characters of JSON, at most {max_chars} are read")
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return Verdict(0.0, "fail", f"not JSON: {error}"[:300])
    if too_large := _excess(value, max_depth, max_values):
        return Verdict(0.0, "fail", too_large)
    if validator is not None and (violation := _violation(validator, value)):
        return Verdict(0.0, "fail", violation)
    return Verdict(1.0, "pass", text[:200])


def find_json(response: str, *, answer_tag: str = "answer", think_tag: str = "think") -> str:
    """The JSON of a response: the last fenced block of its answer, or all of the answer.

    The answer is the last tagged one after the chain of thought, else all the text after it.
    """
    text = tags.answer(response, answer_tag, think_tag)
    if text.lstrip()[:1] in ("{", "[", '"'):
        return text.strip()
    blocks = text.split("```")
    if len(blocks) < 3:
        return text.strip()
    block = blocks[(len(blocks) - 1) // 2 * 2 - 1].lstrip()
    return (block[4:] if block[:4].lower() == "json" else block).strip()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _excess(value: Any, max_depth: int, max_values: int) -> str:
    """What is too large about a value; empty where nothing is."""
    level, count, depth = [value], 0, 0
    while level:
        count += len(level)
        depth += 1
        if depth > max_depth:
            return f"nested deeper than {max_depth}"
        if count > max_values:
            return f"more than {max_values} values"
        below = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = below
    return ""


def _text_of(schema: Any) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True)


@lru_cache(256)
def _validator(text: str) -> Validator:
    """The validator of a schema."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ValueError(f"schema: expected JSON, got {text[:200]!r}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"schema: expected an object, got {text[:200]!r}")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"schema: {error.json_path}: {error.message[:200]}") from error
    return extend(kind, {"uniqueItems": _unique_items})(schema, registry=REGISTRY)


def _unique_items(
    validator: Validator, wanted: bool, items: Any, schema: Any
) -> Iterator[ValidationError]:
    """`uniqueItems` in linear time; the package compares each two items that can't be sorted."""
    if wanted and isinstance(items, list) and len({_key(item) for item in items}) < len(items):
        yield ValidationError("the items aren't unique")


def _key(value: Any) -> Any:
    """A hashable value, equal for what JSON Schema calls equal: 1 is 1.0 and isn't true."""
    if isinstance(value, dict):
        return "object", frozenset((name, _key(item)) for name, item in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_key, value))
    return type(value) is bool, value


def _violation(validator: Validator, value: Any) -> str:
    """The first rule of the schema that a value breaks; empty where there is none."""
    try:
        error = next(iter(validator.iter_errors(value)), None)
    except Unresolvable as error:
        raise ValueError(f"schema: nothing stands at the $ref {error.ref!r}") from error
    except (ArithmeticError, RecursionError) as error:
        # Of the model's making: a number beyond floats, or values nested through many references.
        return f"cannot be checked: {type(error).__name__}"
    return "" if error is None else f"{error.json_path}: {error.message}"[:300]

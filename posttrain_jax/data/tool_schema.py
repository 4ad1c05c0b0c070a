"""A Python function as the JSON schema of a tool, as transformers' `get_json_schema` writes it.

The description, one line an argument and the return value come from a Google-style docstring
(`Args:`, `Returns:`), the types from the annotations. `(choices: ["a", "b"])` at the end of an
argument's line becomes an enum.
"""

import inspect
import json
import re
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_NAMES |= {list: "array", tuple: "array", dict: "object"}


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of one tool.

    Raises:
      ValueError: no docstring, an argument without annotation or description, or a type that JSON
        has no name for.
    """
    name = getattr(function, "__name__", "operation")
    about, arguments, returned = _sections(name, inspect.getdoc(function))
    hints = get_type_hints(function)
    properties, required = {}, []
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            raise ValueError(f"tool {name}: argument {key} has no annotation")
        if key not in arguments:
            raise ValueError(f"tool {name}: its docstring does not describe the argument {key}")
        properties[key] = _described(_type(name, hints[key]), arguments[key])
        if parameter.default is inspect.Parameter.empty:
            required.append(key)
    parameters = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    schema = {"name": name, "description": about, "parameters": parameters}
    if "return" in hints:
        schema["return"] = _type(name, hints["return"])
        if returned is not None:
            schema["return"]["description"] = returned
    return {"type": "function", "function": schema}


def _sections(name: str, doc: str | None) -> tuple[str, dict[str, str], str | None]:
    if not doc:
        raise ValueError(f"tool {name} has no docstring to describe it by")
    heads = list(re.finditer(r"^(Args|Returns|Raises):[ \t]*\n", doc, re.MULTILINE))
    about = doc[: heads[0].start() if heads else len(doc)].strip()
    bodies = {}
    for head, after in zip(heads, [*heads[1:], None], strict=False):
        bodies[head[1]] = doc[head.end() : after.start() if after else len(doc)]
    arguments: dict[str, str] = {}
    key = ""
    for line in filter(str.strip, bodies.get("Args", "").split("\n")):
        if entry := re.match(r"[ \t]+(\w+)[^:]*:(.*)", line):
            key = entry[1]
            arguments[key] = entry[2].strip()
        elif key:
            arguments[key] += " " + line.strip()
    returned = bodies.get("Returns")
    return about, arguments, None if returned is None else returned.strip()


def _described(schema: dict[str, Any], text: str) -> dict[str, Any]:
    choices = re.search(r"\(choices:\s*(.*?)\)\s*$", text, re.IGNORECASE)
    if choices:
        schema["enum"] = json.loads(choices[1])
        text = text[: choices.start()].strip()
    return {**schema, "description": text}


def _type(name: str, hint: Any) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _NAMES:
        return {"type": _NAMES[hint]}
    if origin in (Union, types.UnionType):
        return _union(name, inner)
    if origin is Literal:
        kinds = list(dict.fromkeys(_NAMES[type(value)] for value in inner))
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": _type(name, inner[0])}
    if origin is tuple and ... not in inner:
        return {"type": "array", "prefixItems": [_type(name, one) for one in inner]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(name, inner[1])}
    raise ValueError(f"tool {name}: JSON has no type for {hint}; write the schema by hand")


def _union(name: str, hints: tuple[Any, ...]) -> dict[str, Any]:
    schemas = [_type(name, hint) for hint in hints if hint is not type(None)]
    if len(schemas) == 1:
        union = schemas[0]
    elif all(schema.keys() == {"type"} for schema in schemas):
        kinds = sorted({schema["type"] for schema in schemas})
        union = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        union = {"anyOf": schemas}
    return {**union, "nullable": True} if type(None) in hints else union

"""Defaults of the stages and `--config.a.b=value` overrides, with the checks on both.

A stage file may declare its settings as one literal, which is read here without importing it:

    DEFAULTS = {"lr": 1e-4, "steps": ..., "rewards": {}}

`...` marks a setting that the recipe must give, `None` one of any type, an empty dict an open
group (any keys), a dict with keys a closed one. A stage that shares another's settings names it,
alone or with settings of its own: `DEFAULTS = "sft"`, `DEFAULTS = ("sft", {"k": 0})`. The recipe's
settings are laid over it, so the resolved config names every setting, an unknown key raises before
anything starts, and each can be overridden on the command line. No jax, directly or not.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from posttrain_jax.recipe import (
    COMMON,
    PACKAGE,
    RecipeError,
    did_you_mean,
    find_recipe,
    read_recipe,
    stage_kinds,
    validate,
)

PREFIX = "--config."
TRUTH = {"true": True, "1": True, "false": False, "0": False}


def load_recipe(spec: str, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Find, read, resolve and validate `"r1.py:tiny"`: the config, and remarks on it.

    Raises:
      RecipeError: whatever is wrong with it.
    """
    path, arg = find_recipe(spec)
    config = resolve(read_recipe(path, arg), overrides)
    return config, validate(config)


def resolve(
    config: ConfigDict, overrides: Iterable[str] = (), package: Path = PACKAGE
) -> dict[str, Any]:
    """The config, as plain dicts, with stage defaults filled in and overrides applied.

    Args:
      config: what the recipe's `get_config` returned.
      overrides: `--config.a.b=value` strings (or `a.b=value`), applied in their order.
      package: the folder whose stages/ holds the defaults.

    Raises:
      RecipeError: an unknown or missing key, or a value of another type.
    """
    tree = config.to_dict()
    kinds = stage_kinds(package)
    for name, stage in tree["stages"].items():
        kind = stage.get("kind", "")
        defaults = stage_defaults(package / "stages" / f"{kind}.py") if kind in kinds else None
        if defaults is not None:
            own = {key: stage[key] for key in COMMON if key in stage}
            rest = {key: value for key, value in stage.items() if key not in COMMON}
            tree["stages"][name] = own | fill(defaults, rest, f"stages.{name}")
    for override in overrides:
        apply_override(tree, override)
    for name in tree["order"]:
        _check_given(tree["stages"].get(name, {}), f"stages.{name}")
    return tree


def defaults_of(kind: str) -> dict[str, Any]:
    """The settings of a kind of stage, to be changed."""
    return copy.deepcopy(stage_defaults(PACKAGE / "stages" / f"{kind}.py") or {})


@cache
def stage_defaults(path: Path) -> dict[str, Any] | None:
    """The literal `DEFAULTS` of a stage file, after those of a stage it names; None for none.

    Raises:
      ValueError: DEFAULTS is not a literal.
    """
    if not path.is_file():
        return None
    for node in ast.parse(path.read_text("utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is not None and any(getattr(t, "id", "") == "DEFAULTS" for t in targets):
            found = ast.literal_eval(value)
            if isinstance(found, dict):
                return found
            other, own = (found, {}) if isinstance(found, str) else found
            return {**(stage_defaults(path.with_stem(other)) or {}), **own}
    return None


def fill(defaults: dict, given: dict, where: str) -> dict:
    """`given` over `defaults`, group by group.

    Raises:
      RecipeError: a key that `defaults` does not have, or a value of another type.
    """
    if not defaults:
        return dict(given)
    for key in given:
        if key not in defaults:
            raise RecipeError(
                f"{where}.{key}: no such setting.{did_you_mean(key, defaults)} "
                f"There are: {', '.join(sorted(defaults))}."
            )
    filled = {}
    for key, default in defaults.items():
        value = given.get(key, default)
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise RecipeError(f"{where}.{key} is {value!r}; expected a dict of settings")
            value = fill(default, value if key in given else {}, f"{where}.{key}")
        elif key in given:
            value = _same_type(default, value, f"{where}.{key}")
        filled[key] = value
    return filled


def apply_override(tree: dict, override: str) -> None:
    """Set one value of a nested dict in place: `--config.stages.sft.lr=1e-4`.

    Raises:
      RecipeError: no such key (with the nearest), a group of keys, or a value of another type.
    """
    path, equals, text = override.removeprefix(PREFIX).partition("=")
    if not equals:
        raise RecipeError(f"{override!r}: expected {PREFIX}key=value")
    *groups, last = path.split(".")
    node: Any = tree
    for depth, key in enumerate([*groups, last]):
        if not isinstance(node, dict) or key not in node:
            known = [".".join([*groups[:depth], k]) for k in node] if isinstance(node, dict) else []
            raise RecipeError(
                f"{PREFIX}{path}: no such setting."
                f"{did_you_mean('.'.join([*groups[:depth], key]), known)}"
                f"{' There are: ' + ', '.join(sorted(known)) + '.' if known else ''}"
            )
        if depth < len(groups):
            node = node[key]
    node[last] = parse_value(node[last], text, f"{PREFIX}{path}")


def parse_value(old: Any, text: str, where: str) -> Any:
    """The value that `text` spells, of the type that `old` has; any type where `old` is None.

    Raises:
      RecipeError: it does not spell a value of that type.
    """
    if isinstance(old, dict):
        keys = ", ".join(sorted(old)) or "empty"
        raise RecipeError(f"{where} is a group of settings ({keys}); set one of them by its name")
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        if text.lower() not in TRUTH:
            raise RecipeError(f"{where}={text}: expected true or false")
        return TRUTH[text.lower()]
    if isinstance(old, tuple | list) and text[:1] not in ("(", "["):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        first = old[0] if old else None
        return type(old)(parse_value(first, part, where) for part in parts)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return _same_type(old, value, where)


def _same_type(expected: Any, value: Any, where: str) -> Any:
    """`value`, as the type of `expected` where nothing is lost (1e3 for an int, 1 for a float)."""
    if expected is None or expected is ... or value is ... or type(value) is type(expected):
        return value
    if isinstance(expected, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(expected) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(expected, tuple | list) and isinstance(value, tuple | list):
        return type(expected)(value)
    raise RecipeError(
        f"{where} is {value!r}; expected {type(expected).__name__}, as in {expected!r}"
    )


def _check_given(settings: Any, where: str) -> None:
    for key, value in settings.items():
        if value is ...:
            raise RecipeError(f"{where}.{key} is not set, and its stage needs it")
        if isinstance(value, dict):
            _check_given(value, f"{where}.{key}")

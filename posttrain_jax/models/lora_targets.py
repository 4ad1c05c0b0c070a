"""Which weights of a model can have adapters, and which of them a setting names."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import jax

from posttrain_jax import registry
from posttrain_jax.api import Model
from posttrain_jax.mesh import is_axes
from posttrain_jax.models.adapters import Project, record_projections, under


class Target(NamedTuple):
    """A weight of a layer, without its stack's axis: inputs are summed over.

    Attributes:
      inputs, outputs: sizes.
      inputs_axes, outputs_axes: logical axes.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs_axes: tuple[str | None, ...]
    outputs_axes: tuple[str | None, ...]


def targets(model: Model, expression: str) -> dict[str, Target]:
    """The weights that get adapters, by path ("layers/q").

    Args:
      model: without adapters.
      expression: see `LoraConfig.targets`.

    Raises:
      ValueError: it matches none, or names one that can't have an adapter.
    """
    able = projections(model)
    if not expression:
        return able
    everything = [path for path, _ in leaves(model.axes())]
    found = [path for path in everything if _matches(path, model, expression)]
    wrong = [path for path in found if path not in able]
    if wrong or not found:
        what = f"names {', '.join(wrong)}, which can't have" if wrong else "is no name of"
        raise ValueError(f"lora.targets={expression!r} {what} an adapter; these can: {list(able)}")
    return {path: able[path] for path in found}


@functools.lru_cache(maxsize=64)
def projections(model: Model) -> dict[str, Target]:
    """Every weight that can have an adapter, by path."""
    seen: dict[str, Project] = {}
    init = lambda key: under(record_projections(seen), model.init, key)  # noqa: E731
    jax.eval_shape(init, jax.random.key(0))
    seen.pop("router", None)
    found = {}
    for path, _ in leaves(model.axes()):
        call = seen.get(last(path)) if "/" in path else None
        if call is not None:
            of_weight, out = call.equation.split(",")[1].split("->")
            n = sum(letter not in out for letter in of_weight)
            assert not set(of_weight[:n]) & set(out), call.equation
            shape, axes = tuple(call.shape), tuple(call.axes)
            found[path] = Target(shape[:n], shape[n:], axes[:n], axes[n:])
    return found


def last(path: str) -> str:
    """The name of a parameter in its layer."""
    return path.rpartition("/")[2]


def _matches(path: str, model: Model, expression: str) -> bool:
    table = registry.load("models", model.config.family).WEIGHTS
    theirs = table[path][0].removesuffix(".weight") if path in table else path
    names = (path, last(path), theirs.rpartition(".")[2])
    return any(re.fullmatch(expression, name) for name in names)


def leaves(axes: Any) -> list[tuple[str, tuple[str | None, ...]]]:
    """(path, logical axes) of every parameter."""
    paths = jax.tree.leaves_with_path(axes, is_leaf=is_axes)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), names) for p, names in paths]

"""Arithmetic and hashing over trees of arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def where(condition: jax.Array, a: Any, b: Any) -> Any:
    """Leaf by leaf `a` where the scalar condition holds, else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def digest(tree: Any) -> str:
    """A hex digest of all leaves, bit for bit, with their paths, types and shapes."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def split(tree: Any, chosen: Callable[[str], bool], path: str = "") -> tuple[dict, dict]:
    """Two nested dicts: what is chosen by its path ("layers/q"), and the rest; `join` undoes it."""
    parts: tuple[dict, dict] = ({}, {})
    for key, value in tree.items():
        here = f"{path}{key}"
        if isinstance(value, dict):
            for part, inner in zip(parts, split(value, chosen, f"{here}/"), strict=True):
                part.update({key: inner} if inner else {})
        else:
            parts[0 if chosen(here) else 1][key] = value
    return parts


def join(a: dict, b: dict) -> dict:
    """The nested dict that has the leaves of both."""
    both = a.keys() & b.keys()
    return {**a, **b, **{key: join(a[key], b[key]) for key in both}}

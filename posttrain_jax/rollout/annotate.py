"""What models say of a rollout before it is learnt from, in parts that fit the memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.api import Batch


@jax.jit
def _rows(batch: Batch, rows) -> Batch:
    return jax.tree.map(lambda x: x[rows], batch)


@functools.partial(jax.jit, static_argnums=1)
def _joined(found: list[Any], together: int) -> Any:
    def join(*parts):
        each = [x.reshape(-1, together, *x.shape[1:]) for x in parts]
        return jnp.stack(each, axis=1).reshape(-1, *parts[0].shape[1:])

    return jax.tree.map(join, *found)


def in_parts(find: Callable[[Batch], Any], batch: Batch, parts: int, together: int = 1) -> Any:
    """`find` of equal parts of a batch's rows, one after the other, as of the whole.

    Args:
      find: `part -> arrays`, rows first.
      parts: row i is in part i // together % parts, so that each is spread over the mesh as the
        batch is.
    """
    if parts == 1:
        return find(batch)
    rows = np.arange(batch.tokens_BT.shape[0]).reshape(-1, parts, together).swapaxes(0, 1)
    return _joined([find(_rows(batch, part)) for part in rows.reshape(parts, -1)], together)

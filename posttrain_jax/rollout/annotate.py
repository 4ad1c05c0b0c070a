"""What models say of a rollout before it is learnt from, in parts that fit the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.api import Batch


@jax.jit
def _rows(batch: Batch, rows) -> Batch:
    return jax.tree.map(lambda x: x[rows], batch)


@jax.jit
def _together(found: list[Any]) -> Any:
    """Row r of part p is row r * parts + p of the whole."""
    join = lambda *parts: jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])  # noqa: E731
    return jax.tree.map(join, *found)


def in_parts(find: Callable[[Batch], Any], batch: Batch, parts: int) -> Any:
    """`find` of equal parts of a batch's rows, one after the other, as of the whole.

    Args:
      find: `part -> arrays`, rows first.
      parts: row i is in part i % parts, so that each part is spread over the mesh as the batch is.
    """
    if parts == 1:
        return find(batch)
    count = batch.tokens_BT.shape[0]
    return _together([find(_rows(batch, rows)) for rows in np.arange(count).reshape(-1, parts).T])

"""Rows that begin with the same prompt go through the layers with that prompt once.

Of a group of R rows [W prompt places | C further places] every layer computes W + R C places, not
R (W + C): all that works on a token by itself sees one row a group, [prompt | completion 1 | ... |
completion R]. Only attention sees the R rows, since a completion attends to the prompt and to
itself. A prompt token's gradient is then the group's sum at once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Model


class Shared(NamedTuple):
    """Each `group` consecutive rows have the same tokens in their first `width` places."""

    group: int
    width: int


def fold(x_BT: jax.Array, shared: Shared) -> jax.Array:
    """[B, W + C, ...] -> [B / R, W + R C, ...]: the prompt of a group's first row, the rest."""
    group, width = shared
    x_PRT = x_BT.reshape(-1, group, *x_BT.shape[1:])
    rest = x_PRT[:, :, width:].reshape(x_PRT.shape[0], -1, *x_BT.shape[2:])
    return jnp.concatenate([x_PRT[:, 0, :width], rest], axis=1)


def unfold(x_PF: jax.Array, shared: Shared) -> jax.Array:
    """The inverse of `fold`: each row with the group's prompt before it."""
    group, width = shared
    first, rest = x_PF[:, None, :width], x_PF[:, width:]
    rest = rest.reshape(x_PF.shape[0], group, -1, *x_PF.shape[2:])
    first = jnp.broadcast_to(first, (*rest.shape[:2], *first.shape[2:]))
    x_PRT = jnp.concatenate([first, rest], axis=2)
    return x_PRT.reshape(-1, *x_PRT.shape[2:])


@functools.cache
def share_prompts(model: Model, group: int, width: int) -> Model:
    """The model on such rows; the same results, with less work. Not with a cache.

    Args:
      group: R; 1 gives the model as it is.
      width: W.
    """
    if group == 1 or not width:
        return model
    shared = Shared(group, width)
    bind = functools.partial
    return model._replace(
        apply=bind(model.apply, shared=shared), routed=bind(model.routed, shared=shared)
    )

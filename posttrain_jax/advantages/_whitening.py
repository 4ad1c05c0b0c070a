"""Mean and variance of what is masked in, over the whole batch or each part of it."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from posttrain_jax.api import Array

SCOPES = ("batch", "local", "none")


def moments(x_BT: Array, mask_BT: Array, ddof: int = 0) -> tuple[Array, Array, Array]:
    """Mean, variance and whether all are equal (a single one too) of what is masked in.

    Over all axes but the first, which counts parts; each of the three has its shape [parts, 1, 1].
    """
    axes = tuple(range(1, x_BT.ndim))
    x_BT, mask = jnp.where(mask_BT, x_BT, 0.0), mask_BT * 1.0
    count = jnp.sum(mask, axis=axes, keepdims=True)
    mean = jnp.sum(x_BT, axis=axes, keepdims=True) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.square(x_BT - mean) * mask, axis=axes, keepdims=True)
    high = jnp.max(jnp.where(mask_BT, x_BT, -jnp.inf), axis=axes, keepdims=True)
    low = jnp.min(jnp.where(mask_BT, x_BT, jnp.inf), axis=axes, keepdims=True)
    return mean, squares / jnp.maximum(count - ddof, 1), high <= low


def whiten(
    x_BT: Array,
    mask_BT: Array,
    *,
    scope: str = "batch",
    parts: int = 1,
    ddof: int = 1,
    eps: float = 1e-8,
) -> Array:
    """(x - mean) / sqrt(variance + eps) of what is masked in, 0 elsewhere.

    The form of PPO's public implementations: `masked_whiten` of TRL and of open-instruct's code for
    Tülu 3 divides by n - 1 (`ddof=1`) and adds 1e-8 below the root. Values that are all equal give
    exact zeros.

    Args:
      scope: `batch`: all rows together. `local`: each of `parts` parts by itself, row i in part
        i % parts, as microbatches are (train_state.py). `none`: x as it is.

    Raises:
      ValueError: an unknown scope, or parts that don't divide the rows.
    """
    chex.assert_equal_shape([x_BT, mask_BT])
    if scope not in SCOPES:
        raise ValueError(f"whiten {scope!r}: expected one of {SCOPES}")
    if scope == "none":
        return jnp.where(mask_BT, x_BT, 0.0)
    parts = parts if scope == "local" else 1
    rows, width = x_BT.shape
    if rows % parts:
        raise ValueError(f"{rows} rows are not {parts} equal parts (advantage parts)")
    x, mask = (a.reshape(-1, parts, width).swapaxes(0, 1) for a in (x_BT, mask_BT))
    mean, variance, equal = moments(x, mask, ddof)
    white = jnp.where(mask & ~equal, (x - mean) / jnp.sqrt(variance + eps), 0.0)
    return white.swapaxes(0, 1).reshape(rows, width)

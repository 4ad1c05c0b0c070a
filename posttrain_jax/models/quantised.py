"""Frozen weights in 8 or 4 bits: stored small, multiplied in the type of the activations.

A weight is seen as a matrix, inputs by outputs (heads and their width as one axis; experts as a
stack of matrices):

  int8   a scale an output: the largest magnitude of its column / 127
  nf4    4-bit NormalFloat (Dettmers et al. 2023, arXiv 2305.14314, section 3): blocks of 64 along
         the outputs, scaled by their largest magnitude; two codes a byte, the first one high

Left out: double quantisation, which would take nf4 from 4.5 to 4.127 bits a weight. Blocks run
along our matrices' rows: the codes are those of bitsandbytes for the matrix as it lies here, which
is not as it lies in a checkpoint of bitsandbytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

KINDS = ("int8", "nf4")
BLOCK = 64
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels (Dettmers et al. 2023, appendix E)."""


class Quantised(NamedTuple):
    """A weight as a matrix [..., inputs, outputs].

    Attributes:
      codes: int8 [..., inputs, outputs], or two nf4 codes a byte: uint8 [..., inputs, outputs / 2].
      scale: float32, what a code's level is multiplied with: int8 [..., 1, outputs], nf4
        [..., inputs, blocks].
    """

    codes: Any
    scale: Any


def matrix_axes(axes: Sequence[str | None]) -> tuple[str | None, ...]:
    """The logical axes of a weight seen as a matrix: `head_dim` goes into the axis before it."""
    return tuple(name for name in axes if name != "head_dim")


def matrix_shape(shape: Sequence[int], axes: Sequence[str | None]) -> tuple[int, ...]:
    """Its shape."""
    merged: list[int] = []
    for size, name in zip(shape, axes, strict=True):
        if name == "head_dim":
            merged[-1] *= size
        else:
            merged.append(size)
    return tuple(merged)


def quantise(weight: jax.Array, axes: Sequence[str | None], kind: str) -> Quantised:
    """Round a weight to the nearest codes.

    Args:
      axes: its logical axes.
      kind: `int8` or `nf4`.

    Raises:
      ValueError: an unknown kind, or an odd number of outputs for nf4.
    """
    matrix = weight.reshape(matrix_shape(weight.shape, axes)).astype(jnp.float32)
    if kind == "int8":
        scale = jnp.max(jnp.abs(matrix), axis=-2, keepdims=True) / 127
        codes = jnp.round(matrix / jnp.where(scale == 0, 1, scale))
        return Quantised(codes.astype(jnp.int8), scale)
    if kind != "nf4":
        raise ValueError(f"unknown quantisation {kind!r}: expected one of {KINDS}")
    if matrix.shape[-1] % 2:
        raise ValueError(f"nf4 packs two codes a byte, and {matrix.shape} has an odd last axis")
    blocks = matrix.reshape(*matrix.shape[:-1], -1, math.gcd(BLOCK, matrix.shape[-1]))
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    levels = jnp.array(NF4, jnp.float32)
    middle = (levels[1:] + levels[:-1]) / 2
    nearest = jnp.searchsorted(middle, blocks / jnp.where(scale == 0, 1, scale)[..., None])
    codes = nearest.reshape(*matrix.shape[:-1], -1, 2).astype(jnp.uint8)
    return Quantised(codes[..., 0] << 4 | codes[..., 1], scale)


def dequantise(stored: Quantised, shape: Sequence[int], dtype: Any) -> jax.Array:
    """The weight that the codes stand for, in the given shape."""
    codes, scale = stored
    if codes.dtype == jnp.int8:
        return (codes * scale).astype(dtype).reshape(shape)
    apart = jnp.stack([codes >> 4, codes & 15], axis=-1)
    levels = jnp.array(NF4, jnp.float32)[apart.reshape(*scale.shape, -1)]
    return (levels * scale[..., None]).astype(dtype).reshape(shape)


def quantised_axes(axes: Sequence[str | None], kind: str) -> Quantised:
    """The logical axes of a quantised weight; a scale's short axis is whole everywhere."""
    *rest, inputs, outputs = matrix_axes(axes)
    short = (None, outputs) if kind == "int8" else (inputs, None)
    return Quantised((*rest, inputs, outputs), (*rest, *short))

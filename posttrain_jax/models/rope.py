"""Rotary positions, rotate-half, and the ways their frequencies are scaled for longer texts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from posttrain_jax.models.config import ModelConfig, RopeScaling


def rope(x_BTNH: jax.Array, positions_BT: jax.Array, inverse: jax.Array, factor: float = 1.0):
    """Rotate the first half of H against the second (Su et al. 2021, arXiv 2104.09864).

    Args:
      inverse: [H / 2] angle a position.
      factor: what sin and cos are multiplied with (YaRN's attention factor).
    """
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * inverse
    # XLA on CPU would work them out anew for each of the heads.
    sin, cos = jax.lax.optimization_barrier((jnp.sin(angle), jnp.cos(angle)))
    if factor != 1.0:
        sin, cos = sin * factor, cos * factor
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def inverse_frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> jax.Array:
    """The angle a position of every pair -> [width / 2], scaled where `scaling` says.

    Raises:
      ValueError: an unknown kind of scaling.
    """
    half = width // 2
    inverse = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return inverse
    if scaling.kind == "linear":
        return inverse / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(inverse, scaling)
    if scaling.kind == "yarn":
        return _yarn(inverse, width, theta, scaling)
    raise ValueError(f"rope scaling {scaling.kind!r}: expected linear, llama3 or yarn")


def local_frequencies(config: ModelConfig, width: int) -> jax.Array:
    """Those of local layers: their own theta, no scaling (Gemma 3, arXiv 2503.19786, section 2)."""
    return inverse_frequencies(width, config.local_rope_theta)


def _llama3(inverse: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Low frequencies are divided by the factor, high ones kept, those between blended.

    Llama 3.1's apply_scaling (meta-llama/llama-models, models/llama3/model.py).
    """
    turns = scaling.original_length * inverse / (2 * math.pi)
    span = scaling.high_factor - scaling.low_factor
    keep = jnp.clip((turns - scaling.low_factor) / span, 0.0, 1.0)
    return (1 - keep) * inverse / scaling.factor + keep * inverse


def _yarn(inverse: jax.Array, width: int, theta: float, scaling: RopeScaling) -> jax.Array:
    """NTK by parts (Peng et al. 2023, arXiv 2309.00071, section 3.2), as DeepSeek-V3 has it."""

    def pair_of(turns: float) -> float:
        """The pair that turns so often over the old length."""
        wavelength = scaling.original_length / (turns * 2 * math.pi)
        return width * math.log(wavelength) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    pairs = jnp.arange(width // 2, dtype=jnp.float32)
    stretch = jnp.clip((pairs - low) / max(high - low, 0.001), 0.0, 1.0)
    return inverse / scaling.factor * stretch + inverse * (1 - stretch)

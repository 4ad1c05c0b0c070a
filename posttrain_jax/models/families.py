"""From a spec such as `llama:smollm2-135m` to its sizes."""

from __future__ import annotations

import dataclasses
import math

import jax

from posttrain_jax import registry
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.transformer import make_model


def find_config(spec: str, **changes) -> ModelConfig:
    """The sizes of `family:size`, with fields replaced by `changes`.

    Raises:
      ValueError: no such family file or no such size in it.
    """
    family, _, size = spec.partition(":")
    sizes = registry.load("models", family).SIZES
    if size not in sizes:
        raise ValueError(f"model {spec!r}: {family} has the sizes {sorted(sizes)}")
    return dataclasses.replace(sizes[size], **changes)


def parameter_count(config: ModelConfig) -> int:
    """The number of parameters, from abstract shapes alone."""
    shapes = jax.eval_shape(make_model(config).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def active_count(config: ModelConfig) -> int:
    """Of these, how many a token makes use of: all but the experts that it doesn't go to."""
    e = config.experts
    if e is None:
        return parameter_count(config)
    idle = (e.count - e.active) * 3 * config.width * e.ffn
    return parameter_count(config) - idle * config.stacks[-1].depth

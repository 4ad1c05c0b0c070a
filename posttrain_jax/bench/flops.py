"""The floating-point operations that a workload needs, and the rate this machine multiplies at.

A product of [m, k] and [k, n] counts 2 m k n. Needed are the products with the weights that a token
meets (the chosen experts only), attention over the keys that a query sees, and the LM head where
its result is used; a gradient costs twice its forward. Element-wise work, recomputation and masked
halves of blocks count nothing, so that doing less of them shows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from posttrain_jax.models import ModelConfig, make_model

SQUARE = 2048
MAX_REPEATS = 50


def weights_met(config: ModelConfig) -> int:
    """The weights of all layers that one token is multiplied with."""
    shapes = jax.eval_shape(make_model(config).init, jax.random.key(0))
    met = 0.0
    for stack in config.stacks:
        for name, leaf in shapes[stack.key].items():
            if "norm" in name or "bias" in name:
                continue
            share = 1.0
            if name.startswith("expert_") and config.experts:
                share = config.experts.active / config.experts.count
            met += share * math.prod(leaf.shape)
    return round(met)


def attention_flops(config: ModelConfig, new: int, before: int = 0) -> float:
    """Scores and weighted values of `new` tokens of a sequence that follow `before` others."""
    wide = 2 * config.head_dim
    if config.latent:
        wide = config.latent.plain_dim + config.latent.rope_dim + config.latent.value_dim
    seen = 0
    for layer in range(config.layers):
        bound = config.window if config.is_local(layer) else before + new
        seen += sum(min(before + t + 1, bound) for t in range(new))
    return 2.0 * config.heads * wide * seen


def forward_flops(
    config: ModelConfig, new: int, *, before: int = 0, head: int | None = None
) -> float:
    """One forward of `new` tokens of a sequence, the LM head on `head` of them (default: all)."""
    head = new if head is None else head
    layers = 2.0 * weights_met(config) * new
    return (
        layers
        + attention_flops(config, new, before)
        + 2.0 * config.width * config.vocab_size * head
    )


def matmul_rates(config: ModelConfig, tokens: int, times: int = 5) -> dict[str, float]:
    """Operations a second of two products, the best of some runs: large and square, and the
    model's own [tokens, width] @ [width, ffn]."""
    shapes = {
        "square": (SQUARE, SQUARE, SQUARE),
        "feed_forward": (tokens, config.width, config.ffn),
    }
    return {name: _rate(shape, config.dtype, times) for name, shape in shapes.items()}


def _rate(shape: tuple[int, int, int], dtype: str, times: int) -> float:
    m, k, n = shape
    a, b = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
    multiply: Callable = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, b))
    repeats = min(MAX_REPEATS, max(1, round(5e10 / (2 * m * k * n))))
    best = math.inf
    for _ in range(times):
        begun = time.monotonic()
        jax.block_until_ready([multiply(a, b) for _ in range(repeats)])
        best = min(best, (time.monotonic() - begun) / repeats)
    return 2 * m * k * n / best

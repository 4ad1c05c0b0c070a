"""What low-rank adapters do to a layer's weights: the maths of `lora.py`.

A matrix W of a layer, its inputs flattened to I and its outputs to O, acts as

  LoRA   y = x W + s (x A) B                    A [I, r], B [r, O]
  DoRA   y = (x W + s (x A) B) m / |W + s A B|  m [O]; the norm, over I, is taken as a constant in
                                                the gradient (arXiv 2402.09353, section 4.3)

Adapters stand beside their weight, named after it ("q": "q_lora_a", "q_lora_b", "q_lora_norm").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from posttrain_jax.models.quantised import Quantised, dequantise
from posttrain_jax.models.transformer import Layer

A, B, NORM = "_lora_a", "_lora_b", "_lora_norm"


class Project(NamedTuple):
    """The arguments of `Layer.project`."""

    equation: str
    x: Any
    name: str
    shape: Any
    axes: Any
    init: Any


class Adapter(NamedTuple):
    """One weight's adapter: A [*inputs, r], B [r, *outputs] and, of DoRA, m [*outputs]."""

    a: jax.Array
    b: jax.Array
    norm: jax.Array | None


def adapter(layer: Any, name: str) -> Adapter | None:
    """The adapter of a weight in a layer's parameters, if it has one."""
    if name + A not in layer:
        return None
    return Adapter(layer[name + A], layer[name + B], layer.get(name + NORM))


def full(stored: Any, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    """A frozen weight as it is multiplied."""
    if isinstance(stored, Quantised):
        return dequantise(stored, shape, dtype)
    return stored.astype(dtype)


def adapted(weight: jax.Array, low: Adapter, scale: float) -> jax.Array:
    """The weight that acts as `weight` and its adapter do, in float32."""
    moved = weight.astype(jnp.float32) + scale * jnp.tensordot(low.a, low.b, 1)
    return moved if low.norm is None else moved * low.norm / _norm(moved, low)


def _norm(moved: jax.Array, low: Adapter) -> jax.Array:
    """|W + s A B|, a constant."""
    square = jnp.sum(jnp.square(moved), axis=tuple(range(low.a.ndim - 1)))
    return jax.lax.stop_gradient(jnp.sqrt(square))


def product(call: Project, stored: Any, low: Adapter | None, scale: float) -> jax.Array:
    """`Layer.project` with a frozen weight and its adapter, if any."""
    dtype = call.x.dtype
    weight = full(stored, call.shape, dtype)
    y = jnp.einsum(call.equation, call.x, weight)
    if low is None:
        return y
    inputs, out = call.equation.split("->")
    of_x, of_weight = inputs.split(",")
    into, outwards = of_weight[: low.a.ndim - 1], of_weight[low.a.ndim - 1 :]
    rest = "".join(letter for letter in of_x if letter not in into)
    small = jnp.einsum(f"{of_x},{into}r->{rest}r", call.x, low.a.astype(dtype))
    y += scale * jnp.einsum(f"{rest}r,r{outwards}->{out}", small, low.b.astype(dtype))
    if low.norm is None:
        return y
    moved = full(stored, call.shape) + scale * jnp.tensordot(low.a, low.b, 1)
    return y * (low.norm / _norm(moved, low)).astype(dtype)


def interceptor(scale: float):
    """For `flax.linen.intercept_methods`: layers act as their frozen weights and adapters do."""

    def intercept(next_fun, args, kwargs, context):
        layer, method = context.module, context.method_name
        if not isinstance(layer, Layer) or method not in ("project", "weight"):
            return next_fun(*args, **kwargs)
        params = layer.variables["params"]
        if method == "project":
            call = Project(*args, **kwargs)
            return product(call, params[call.name], adapter(params, call.name), scale)
        name, shape = args[:2]
        low = adapter(params, name)
        if low is not None:
            return adapted(full(params[name], shape), low, scale).astype(layer.config.dtype)
        if isinstance(params[name], Quantised):
            return full(params[name], shape, layer.config.dtype)
        return next_fun(*args, **kwargs)

    return intercept


def record_projections(seen: dict[str, Project]):
    """An interceptor that notes every weight that activations are multiplied with, by its name."""

    def intercept(next_fun, args, kwargs, context):
        if isinstance(context.module, Layer) and context.method_name == "project":
            call = Project(*args, **kwargs)
            seen[call.name] = call
        return next_fun(*args, **kwargs)

    return intercept


def under(intercept, function, *args, **kwargs):
    """A call with a model's layers intercepted."""
    with nn.intercept_methods(intercept):
        return function(*args, **kwargs)

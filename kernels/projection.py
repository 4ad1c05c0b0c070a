"""The product of activations with a weight, whose gradient reads the larger operand as it lies.

A weight's gradient contracts the rows of both activations, so one of the two has to be transposed.
JAX's own rule always picks the output's gradient; XLA on CPU then fuses that transposition with
whatever made it (the gate's activation function, say) into a loop that strides through memory.
Here it is the smaller of the two.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def project(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """`jnp.einsum(equation, x, weight)` of an equation like "BTD,DNH->BTNH".

    Args:
      equation: the letters of x, the weight, and their product; each letter that is summed over
        stands in both, each other one in the product.
    """
    return jnp.einsum(equation, x, weight)


def _forward(equation: str, x: jax.Array, weight: jax.Array):
    return jnp.einsum(equation, x, weight), (x, weight)


def _backward(equation: str, saved, grad: jax.Array):
    x, weight = saved
    inputs, product = equation.split("->")
    of_x, of_weight = inputs.split(",")
    grad_x = jnp.einsum(f"{product},{of_weight}->{of_x}", grad, weight)
    if x.size <= grad.size:
        grad_weight = jnp.einsum(f"{of_x},{product}->{of_weight}", x, grad)
    else:
        kept = [c for c in of_weight if c in product] + [c for c in of_weight if c not in product]
        turned = jnp.einsum(f"{product},{of_x}->{''.join(kept)}", grad, x)
        grad_weight = turned.transpose([kept.index(c) for c in of_weight])
    return grad_x.astype(x.dtype), grad_weight.astype(weight.dtype)


project.defvjp(_forward, _backward)

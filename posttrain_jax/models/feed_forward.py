"""The gated feed-forward half of a layer: dense ones, and the shared experts of sparse ones."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

ACTIVATIONS = {"silu": nn.silu, "gelu": functools.partial(nn.gelu, approximate=True)}


def feed_forward(layer: Any, y_BTD: jax.Array, ffn: int, prefix: str = "") -> jax.Array:
    """down(activation(gate(y)) * up(y)) (Shazeer 2020, arXiv 2002.05202).

    Args:
      layer: gives the weights (`transformer.Layer`).
      ffn: the width between.
      prefix: of the weights' names.
    """
    c = layer.config
    into, back = c.width**-0.5, (2 * c.layers) ** -0.5
    inwards = ((c.width, ffn), ("embed", "ffn"), nn.initializers.normal(into))
    gate = layer.project("BTD,DF->BTF", y_BTD, f"{prefix}gate", *inwards)
    up = layer.project("BTD,DF->BTF", y_BTD, f"{prefix}up", *inwards)
    return layer.project(
        "BTF,FD->BTD", ACTIVATIONS[c.activation](gate) * up, f"{prefix}down",
        (ffn, c.width), ("ffn", "embed"), nn.initializers.normal(ffn**-0.5 * back),
    )  # fmt: skip

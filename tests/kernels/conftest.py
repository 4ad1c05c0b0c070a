"""What the kernel tests share: rows with packing and padding, and the arrays a program holds."""

import math
import re

import jax
import numpy as np
import pytest


@pytest.fixture
def qkv():
    """make(B, T, N, K, H) -> q, k, v, cotangent (float32) and segments with every kind of row."""

    def make(batch, length, heads, kv_heads, width, seed=0):
        rng = np.random.default_rng(seed)
        draw = lambda n: rng.normal(size=(batch, length, n, width)).astype(np.float32)  # noqa: E731
        q, k, v, cotangent = draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)
        segments = np.ones((batch, length), np.int32)
        third = length // 3
        segments[0, third:] = 2  # packed, with padding on the right
        segments[0, length - third // 2 :] = 0
        segments[1:2, :third] = 0  # padding on the left
        cotangent *= (segments != 0)[:, :, None, None]  # no loss reads padding
        return q, k, v, cotangent, segments

    return make


@pytest.fixture
def largest_array():
    """largest(fn, *args) -> the most elements of any array in the compiled program of fn."""

    def largest(fn, *args):
        text = jax.jit(fn).lower(*args).compile().as_text()
        shapes = re.findall(r"[a-z]\w*\[(\d+(?:,\d+)*)\]", text)
        return max(math.prod(map(int, shape.split(","))) for shape in shapes)

    return largest

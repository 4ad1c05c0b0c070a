"""Scaled rotary frequencies against their definitions, one pair at a time."""

import math

import numpy as np
import pytest

from posttrain_jax.models.config import RopeScaling
from posttrain_jax.models.rope import inverse_frequencies

WIDTH, THETA = 128, 500000.0
PLAIN = [THETA ** (-2 * i / WIDTH) for i in range(WIDTH // 2)]


def test_llama3_by_wavelength():
    """Three ranges of wavelengths (arXiv 2407.21783 has 8192 as the old length)."""
    scaling = RopeScaling("llama3", 8.0, original_length=8192, low_factor=1.0, high_factor=4.0)
    found = np.asarray(inverse_frequencies(WIDTH, THETA, scaling))
    ranges = set()
    for frequency, got in zip(PLAIN, found, strict=True):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected = frequency
        elif wavelength > 8192:
            expected = frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * frequency / 8 + smooth * frequency
        ranges.add("kept" if expected == frequency else expected == frequency / 8)
        assert got == pytest.approx(expected, rel=1e-5)
    assert ranges == {"kept", True, False}


def test_yarn_by_rotations():
    """DeepSeek-V3's: over 4096 tokens, pairs with 32 turns stay, those with 1 are divided."""
    scaling = RopeScaling("yarn", 40.0, original_length=4096, beta_fast=32.0, beta_slow=1.0)
    found = np.asarray(inverse_frequencies(64, 10000.0, scaling))
    plain = 10000.0 ** (-np.arange(32) / 32)
    turns = 4096 * plain / (2 * math.pi)
    first = int(np.searchsorted(-turns, -32.0)) - 1  # the last pair with 32 turns or more
    last = int(np.searchsorted(-turns, -1.0))  # the first with 1 or fewer
    np.testing.assert_allclose(found[: first + 1], plain[: first + 1], rtol=1e-5)
    np.testing.assert_allclose(found[last:], plain[last:] / 40, rtol=1e-5)
    share = (np.arange(first, last + 1) - first) / (last - first)
    between = plain[first : last + 1] * (1 - share + share / 40)
    np.testing.assert_allclose(found[first : last + 1], between, rtol=1e-5)
    assert 0 < first < last < 31


def test_linear_is_the_position_divided():
    found = inverse_frequencies(WIDTH, THETA, RopeScaling("linear", 8.0))
    np.testing.assert_allclose(np.asarray(found) * 8, PLAIN, rtol=1e-5)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="rope scaling 'longrope': expected linear, llama3 or"):
        inverse_frequencies(WIDTH, THETA, RopeScaling("longrope", 8.0))

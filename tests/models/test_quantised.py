"""Frozen weights in 8 and 4 bits: codes, errors, and bytes a weight."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.models.quantised import (
    NF4,
    Quantised,
    dequantise,
    matrix_shape,
    quantise,
    quantised_axes,
)

AXES = ("layers", "embed", "heads", "head_dim")


def weights(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_the_levels_are_quantiles_of_the_normal_distribution():
    """Appendix E: evenly spaced probabilities on either side of 0, scaled into [-1, 1]."""
    normal, edge = statistics.NormalDist(), 0.9677083
    above = [normal.inv_cdf(p) for p in np.linspace(edge, 0.5, 9)[:-1]]
    below = [-normal.inv_cdf(p) for p in np.linspace(edge, 0.5, 8)[:-1]]
    levels = np.array(sorted([*above, 0.0, *below]))
    np.testing.assert_allclose(NF4, levels / levels.max(), atol=1e-6)


def test_nf4_codes_by_hand():
    """A block with every level, scaled by 3, and a tie, which goes down as bitsandbytes' do."""
    wide = np.zeros((1, 64), np.float32)
    wide[0, :16] = np.float32(NF4) * 3
    wide[0, 16:18] = 3 * np.float32((NF4[7] + NF4[8]) / 2), 3 * np.float32(NF4[8] * 1.01)
    codes, scale = quantise(jnp.asarray(wide), ("embed", "ffn"), "nf4")
    high, low = np.asarray(codes) >> 4, np.asarray(codes) & 15
    found = np.stack([high, low], -1).ravel()
    assert found[:18].tolist() == [*range(16), 7, 8] and set(found[18:]) == {7}
    assert np.asarray(scale).tolist() == [[3.0]]


def test_a_short_row_has_shorter_blocks():
    _, scale = quantise(jnp.asarray(weights(1, 48)), ("embed", "ffn"), "nf4")
    expected = np.abs(weights(1, 48)).reshape(1, 3, 16).max(axis=2)  # 16 is what 64 and 48 share
    np.testing.assert_array_equal(scale, expected)


def nearest(weight, kind):
    """The same by brute force in float64: every level tried, row by row."""
    matrix = weight.astype(np.float64)
    found = np.empty_like(matrix)
    if kind == "int8":
        for column in range(matrix.shape[1]):
            scale = np.abs(matrix[:, column]).max() / 127
            found[:, column] = np.clip(np.rint(matrix[:, column] / scale), -127, 127) * scale
        return found
    for row in range(matrix.shape[0]):
        for first in range(0, matrix.shape[1], 64):
            block = matrix[row, first : first + 64]
            scale = np.abs(block).max()
            gaps = np.abs(block[:, None] / scale - np.array(NF4))
            found[row, first : first + 64] = np.array(NF4)[gaps.argmin(1)] * scale
    return found


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_against_brute_force(kind):
    weight = weights(2, 6, 4, 32)
    stored = quantise(jnp.asarray(weight), AXES, kind)
    found = np.asarray(dequantise(stored, weight.shape, "float32"))
    for layer in range(2):
        expected = nearest(weight[layer].reshape(6, 128), kind)
        np.testing.assert_allclose(found[layer].reshape(6, 128), expected, atol=1e-5)
    # a layer of the stack by itself, as a scan slices it
    one = dequantise(Quantised(stored.codes[1], stored.scale[1]), weight.shape[1:], "float32")
    np.testing.assert_array_equal(one, found[1])


def test_errors_are_those_of_the_formats():
    """Root mean square: nf4 0.09226893, what bitsandbytes 0.50.2 gives for these very numbers (its
    codes are the same, all 131,072); int8 the uniform rounding error, step / sqrt(12)."""
    weight = weights(256, 512)[None]
    axes = ("layers", "embed", "ffn")
    nf4 = dequantise(quantise(jnp.asarray(weight), axes, "nf4"), weight.shape, "float32")
    assert np.sqrt(np.mean((nf4 - weight) ** 2)) == pytest.approx(0.09226893, abs=1e-7)
    stored = quantise(jnp.asarray(weight), axes, "int8")
    int8 = dequantise(stored, weight.shape, "float32")
    step = np.asarray(stored.scale)
    assert np.sqrt(np.mean(((int8 - weight) / step) ** 2)) == pytest.approx(12**-0.5, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "most"),
    # a byte and a float32 scale a column of 256; half a byte and a float32 scale a block of 64
    [("int8", 1 + 4 / 256), ("nf4", 0.5 + 4 / 64)],
)
def test_bytes_a_weight(kind, most):
    shape = (2, 256, 4, 64)
    stored = jax.eval_shape(
        lambda w: quantise(w, AXES, kind), jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    )
    held = sum(x.size * x.dtype.itemsize for x in stored) / np.prod(shape)
    print(f"{kind}: {held:.4f} bytes a weight")
    assert held == most


def test_weights_as_matrices_and_their_axes():
    assert matrix_shape((2, 3, 4, 5), AXES) == (2, 3, 20)
    assert matrix_shape((2, 4, 5, 3), ("layers", "heads", "head_dim", "embed")) == (2, 20, 3)
    experts = ("layers", "experts", "embed", "ffn")
    assert matrix_shape((2, 8, 3, 4), experts) == (2, 8, 3, 4)
    assert quantised_axes(AXES, "nf4") == (("layers", "embed", "heads"), ("layers", "embed", None))
    assert quantised_axes(experts, "int8") == (experts, ("layers", "experts", None, "ffn"))


def test_zeros_stay_zeros_and_bad_input_raises():
    zeros = jnp.zeros((1, 4, 64))
    for kind in ("int8", "nf4"):
        stored = quantise(zeros, ("layers", "embed", "ffn"), kind)
        assert not np.asarray(dequantise(stored, zeros.shape, "float32")).any()
    with pytest.raises(ValueError, match=r"unknown quantisation 'fp4': expected one of .*nf4"):
        quantise(zeros, ("layers", "embed", "ffn"), "fp4")
    with pytest.raises(ValueError, match=r"\(1, 4, 3\) has an odd last axis"):
        quantise(jnp.zeros((1, 4, 3)), ("layers", "embed", "ffn"), "nf4")

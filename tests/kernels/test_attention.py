import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.kernels import attention, decode_attention
from posttrain_jax.kernels.attention import attention_ref, attention_xla

# The package exports the function `attention`, which hides its module from `import ... as`.
MODULE = importlib.import_module("posttrain_jax.kernels.attention")

SHAPES = [  # B, T, N, K, H; query blocks have 64 places
    (3, 9, 4, 4, 8),
    (2, 64, 4, 2, 8),
    (3, 150, 6, 2, 16),
    (1, 1, 2, 1, 4),
]


def brute_force(q, k, v, segments):
    """One query at a time in float64; NaN at padding."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, length, heads, width = q.shape
    group = heads // k.shape[2]
    out = np.full(q.shape, np.nan)
    for b in range(batch):
        for t in range(length):
            seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t] != 0]
            for n in range(heads) if seen else ():
                scores = [q[b, t, n] @ k[b, s, n // group] / np.sqrt(width) for s in seen]
                weights = np.exp(np.array(scores) - max(scores))
                values = np.stack([v[b, s, n // group] for s in seen])
                out[b, t, n] = weights @ values / weights.sum()
    return out


@functools.partial(jax.jit, static_argnums=0)
def both_ways(fn, q, k, v, cotangent, segments):
    """Output and gradients; compiled once for each function and shape."""
    out, vjp = jax.vjp(lambda *x: fn(*x, segments), q, k, v)
    return out, *vjp(cotangent)


def gradients(fn, *args):
    return both_ways(fn, *args)[1:]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("impl", ["xla", "reference"])
def test_attention_is_brute_force(qkv, shape, impl):
    q, k, v, _, segments = qkv(*shape)
    out = np.asarray(jax.jit(functools.partial(attention, impl=impl))(q, k, v, segments))
    real = segments != 0
    np.testing.assert_allclose(out[real], brute_force(q, k, v, segments)[real], atol=2e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_gradients_are_those_of_the_reference(qkv, shape):
    args = qkv(*shape)
    got, want = gradients(attention_xla, *args), gradients(attention_ref, *args)
    for g, w in zip(got, want, strict=True):
        assert np.abs(w).max() > 0.1
        np.testing.assert_allclose(g, w, atol=5e-6)


def test_gradient_is_the_slope_of_brute_force(qkv):
    q, k, v, cotangent, segments = qkv(2, 7, 4, 2, 4)
    real, rng, step = segments != 0, np.random.default_rng(1), 1e-5
    directions = [rng.normal(size=x.shape) for x in (q, k, v)]

    def moved(by):
        inputs = [x.astype(np.float64) + by * d for x, d in zip((q, k, v), directions, strict=True)]
        return (brute_force(*inputs, segments)[real] * cotangent[real]).sum()

    slope = (moved(step) - moved(-step)) / (2 * step)
    got = gradients(attention_xla, q, k, v, cotangent, segments)
    total = sum((np.asarray(g) * d).sum() for g, d in zip(got, directions, strict=True))
    np.testing.assert_allclose(total, slope, rtol=1e-5)


def test_uneven_blocks_above_the_most_that_are_unrolled(qkv, monkeypatch):
    q, k, v, cotangent, segments = qkv(2, 70, 4, 2, 8)
    monkeypatch.setattr(MODULE, "QUERY_BLOCK", 16)
    monkeypatch.setattr(MODULE, "MAX_BLOCKS", 3)
    spans = MODULE._spans(70, MODULE._Form(24, 1.0, 0))
    assert spans == [(0, 0, 24), (0, 24, 48), (0, 48, 70)]
    blocks = lambda *x: attention_xla(*x)  # noqa: E731  (traced anew, with these sizes)
    got = both_ways(blocks, q, k, v, cotangent, segments)
    want = both_ways(attention_ref, q, k, v, cotangent, segments)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=5e-6)


def test_padding_gives_and_takes_no_gradient(qkv):
    q, k, v, cotangent, segments = qkv(2, 70, 4, 2, 8)
    padding = segments == 0
    other = [np.where(padding[:, :, None, None], 9.0, x) for x in (q, k, v)]
    for impl in (attention_xla, attention_ref):
        out, *grads = map(np.asarray, both_ways(impl, q, k, v, cotangent, segments))
        moved, *changed = map(np.asarray, both_ways(impl, *other, cotangent, segments))
        np.testing.assert_allclose(out[~padding], moved[~padding], atol=1e-6)
        for g, c in zip(grads, changed, strict=True):
            np.testing.assert_array_equal(g[padding], 0.0)
            np.testing.assert_allclose(g, c, atol=1e-6)


def test_bfloat16_keeps_its_dtype(qkv):
    q, k, v, cotangent, segments = qkv(2, 70, 4, 2, 8)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, cotangent)]
    exact = [x.astype(jnp.float32) for x in low]
    got = both_ways(attention_xla, *low, segments)
    for g, w in zip(got, both_ways(attention_ref, *exact, segments), strict=True):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(g.astype(jnp.float32), w, atol=0.02 * np.abs(w).max())


def test_no_square_of_the_length_is_held(qkv, largest_array):
    args = qkv(1, 256, 4, 2, 8)
    square = 4 * 256 * 256
    # The reference shows that the check sees such an array.
    assert largest_array(functools.partial(both_ways, attention_ref), *args) >= square
    assert largest_array(functools.partial(both_ways, attention_xla), *args) <= square // 4


def test_an_unknown_impl_is_named(qkv):
    q, k, v, _, segments = qkv(1, 4, 2, 2, 4)
    with pytest.raises(ValueError, match="'flash': expected auto, splash, xla or reference"):
        attention(q, k, v, segments, impl="flash")


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_decoding_step_by_step_is_full_attention(qkv, heads, kv_heads):
    length, cache = 11, 16
    q, k, v, _, segments = qkv(2, length, heads, kv_heads, 8)
    segments = np.minimum(segments, 1)  # a cache holds one sequence
    full = np.asarray(jax.jit(attention_ref)(q, k, v, segments))
    rest = ((0, 0), (0, cache - length), (0, 0), (0, 0))
    k, v = (np.pad(x, rest, constant_values=50.0) for x in (k, v))  # not yet written: garbage
    k_BKHS, v_BKSH = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    real, decode = np.pad(segments, rest[:2]) != 0, jax.jit(decode_attention)
    for t in range(length):
        valid = real & (np.arange(cache) <= t)
        step = np.asarray(decode(q[:, t], k_BKHS, v_BKSH, valid))
        here = real[:, t]
        np.testing.assert_allclose(step[here], full[:, t][here], atol=2e-6)
        assert np.isfinite(step).all()

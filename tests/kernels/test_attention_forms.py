"""Windows, other scales and values of another width: every kernel against float64 by hand."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from posttrain_jax.kernels import attention, decode_attention
from posttrain_jax.kernels.splash import attention_splash

BATCH, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 150, 4, 2, 16
KERNELS = {
    "xla": functools.partial(attention, impl="xla"),
    "reference": functools.partial(attention, impl="reference"),
    "splash": functools.partial(attention_splash, interpret=True),
}


class Form(NamedTuple):
    """How a call differs from plain attention; xla's query blocks have 64 places, splash's 128."""

    window: int = 0
    scale: float | None = None
    values: int = WIDTH


FORMS = [
    Form(window=40),  # ends within the block before
    Form(window=100, values=24),  # reaches over a whole block
    Form(window=1, scale=0.7),  # itself alone
    Form(window=1000, scale=0.05),  # longer than the row
    Form(scale=0.6, values=6),
]


@pytest.fixture
def inputs(qkv):
    """make(form) -> q, k, v, cotangent, segments."""

    def make(form):
        q, k, _, _, segments = qkv(BATCH, LENGTH, HEADS, KV_HEADS, WIDTH)
        rng = np.random.default_rng(1)
        draw = lambda n: rng.normal(size=(BATCH, LENGTH, n, form.values))  # noqa: E731
        v, cotangent = draw(KV_HEADS), draw(HEADS) * (segments != 0)[:, :, None, None]
        return q, k, v.astype(np.float32), cotangent.astype(np.float32), segments

    return make


def exact(q, k, v, cotangent, segments, form):
    """Output and gradients in float64, from softmax's derivative: dS = P * (dP - sum(P dP))."""
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    scale = WIDTH**-0.5 if form.scale is None else form.scale
    out, dq, dk, dv = (np.zeros_like(x) for x in (cotangent, q, k, v))
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    near = (distance >= 0) & (distance < (form.window or LENGTH))
    for b, n in np.ndindex(BATCH, HEADS):
        g = n // (HEADS // KV_HEADS)
        seen = near & (segments[b][:, None] == segments[b])
        weight = np.where(seen, np.exp(scale * q[b, :, n] @ k[b, :, g].T), 0.0)
        prob = weight / weight.sum(axis=1, keepdims=True)
        out[b, :, n] = prob @ v[b, :, g]
        dprob = cotangent[b, :, n] @ v[b, :, g].T
        dscore = scale * prob * (dprob - (prob * dprob).sum(axis=1, keepdims=True))
        dq[b, :, n] = dscore @ k[b, :, g]
        dk[b, :, g] += dscore.T @ q[b, :, n]
        dv[b, :, g] += prob.T @ cotangent[b, :, n]
    return out, dq, dk, dv


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_output_and_gradients_are_those_of_float64(inputs, kernel, form):
    *arrays, cotangent, segments = inputs(form)

    @jax.jit
    def both_ways(q, k, v):
        call = functools.partial(KERNELS[kernel], scale=form.scale, window=form.window)
        out, vjp = jax.vjp(lambda *x: call(*x, segments), q, k, v)
        return out, *vjp(cotangent)

    real = segments != 0
    wanted = exact(*arrays, cotangent, segments, form)
    for found, want in zip(both_ways(*arrays), wanted, strict=True):
        assert np.abs(want[real]).max() > 0.1 or form.window == 1  # one key: q, k have no gradient
        np.testing.assert_allclose(np.asarray(found)[real], want[real], atol=3e-5)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[-1]], ids=str)
def test_decoding_over_the_places_of_a_window(inputs, form):
    q, k, v, cotangent, segments = inputs(form)
    segments = np.minimum(segments, 1)  # a cache holds one sequence
    want, *_ = exact(q, k, v, cotangent, segments, form)
    k_BKHS, v_BKSH = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    decode = jax.jit(functools.partial(decode_attention, scale=form.scale))
    places = np.arange(LENGTH)
    for t in (0, 3, form.window, LENGTH // 2, LENGTH - 1):
        near = (places <= t) & (places > t - (form.window or LENGTH))
        found = np.asarray(decode(q[:, t], k_BKHS, v_BKSH, (segments > 0) & near))
        here = segments[:, t] > 0
        np.testing.assert_allclose(found[here], want[:, t][here], atol=1e-5)

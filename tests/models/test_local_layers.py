"""Layers with a window: what they see, in the whole row and token by token."""

import functools

import jax
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, make_model

WINDOW, LENGTH = 4, 14
GEMMA = ModelConfig(  # nothing at its default
    vocab_size=32, layers=3, width=16, heads=4, kv_heads=2, head_dim=12, ffn=24, rope_theta=500.0,
    qk_norm="head", norms="around", norm_offset=1.0, activation="gelu", embed_scale=4.0,
    query_scale=0.4, window=WINDOW, global_every=3, local_rope_theta=20.0,
)  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, positions, segments, cache=None):
    hidden, cache = model.apply(
        params, tokens, positions_BT=positions, segments_BT=segments, cache=cache
    )
    return model.logits(params, hidden), cache


def made(**changes):
    model = make_model(ModelConfig(**{**vars(GEMMA), **changes}))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    draw = lambda leaf: (0.4 * rng.standard_normal(leaf.shape)).astype(np.float32)  # noqa: E731
    return model, jax.tree.map(draw, shapes)


def row(rng):
    tokens = rng.integers(0, 32, (2, LENGTH)).astype(np.int32)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    return tokens, places, np.ones_like(tokens)


@pytest.mark.parametrize(("layers", "every", "reach"), [(1, 2, WINDOW), (2, 3, 2 * WINDOW - 1)])
def test_a_change_shows_as_far_as_the_windows_reach(layers, every, reach):
    """One local layer sees `window` tokens; two of them the windows of what the first saw."""
    model, params = made(layers=layers, global_every=every)
    tokens, places, ones = row(np.random.default_rng(1))
    before, _ = forward(model, params, tokens, places, ones)
    changed = tokens.copy()  # a program that still runs may read `tokens`
    changed[:, 2] = (tokens[:, 2] + 1) % 32
    after, _ = forward(model, params, changed, places, ones)
    moved = np.abs(np.asarray(after) - np.asarray(before)).max(axis=(0, 2)) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(moved), np.arange(2, 2 + reach))


def test_cached_decoding_beyond_the_window():
    """Rows padded on the left by 0 and 3, five tokens prefilled, the rest one by one."""
    model, params = made()
    tokens, places, ones = row(np.random.default_rng(2))
    ones[1, :3] = 0
    places = np.maximum(places - np.array([[0], [3]], np.int32), 0)
    full, _ = forward(model, params, tokens, places, ones)
    cut = lambda here: (x[:, here] for x in (tokens, places, ones))  # noqa: E731
    logits, cache = forward(model, params, *cut(np.s_[:5]), model.init_cache(2, LENGTH))
    np.testing.assert_allclose(logits[:, -1], full[:, 4], atol=1e-5)
    for t in range(5, LENGTH):
        logits, cache = forward(model, params, *cut(np.s_[t : t + 1]), cache)
        np.testing.assert_allclose(logits[:, 0], full[:, t], atol=1e-5)

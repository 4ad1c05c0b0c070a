"""Latent attention: its decode step against its full forward, and its cache. Its numbers are held
against transformers in test_family_goldens.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.models import make_model
from posttrain_jax.models.config import Latent, RopeScaling

SIZES = Latent(query_rank=6, rank=5, rope_dim=4, plain_dim=6, value_dim=3)
LENGTHS, WIDTH, NEW = (6, 3, 1), 6, 3


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, cache, tokens, positions, segments):
    return model.apply(
        params, tokens, positions_BT=positions, segments_BT=segments, cache=cache
    )  # fmt: skip


def batch():
    """Prompts of several lengths, padded on the left, and what comes after them."""
    rng, lengths = np.random.default_rng(0), np.array(LENGTHS)[:, None]
    place = np.arange(WIDTH + NEW)
    segments = (place >= WIDTH - lengths).astype(np.int32)
    positions = np.maximum(place - (WIDTH - lengths), 0).astype(np.int32)
    return segments * rng.integers(1, 32, segments.shape, np.int32), positions, segments


@pytest.mark.parametrize("query_rank", [0, 6])
@pytest.mark.parametrize("rope", [None, RopeScaling("yarn", 4.0, 8, score_factor=1.7)])
def test_absorbed_decoding_equals_the_full_forward(make_small, query_rank, rope):
    latent = dataclasses.replace(SIZES, query_rank=query_rank)
    small = make_small(3, latent=latent, kv_heads=4, rope=rope)
    tokens, positions, segments = batch()
    full, _ = apply(small.model, small.params, None, tokens, positions, segments)
    cache = small.model.init_cache(len(LENGTHS), WIDTH + NEW)
    for here in (np.s_[:, :WIDTH], *(np.s_[:, t : t + 1] for t in range(WIDTH, WIDTH + NEW))):
        step = (x[here] for x in (tokens, positions, segments))
        hidden, cache = apply(small.model, small.params, cache, *step)
        seen = segments[here] > 0
        np.testing.assert_allclose(
            np.asarray(hidden)[seen], np.asarray(full)[here][seen], atol=2e-5
        )  # fmt: skip


def test_the_score_factor_multiplies_scores(make_small):
    """As the root of it does queries and keys: with no rotation it is a factor of `q_b`."""
    plain = make_small(4, latent=SIZES, kv_heads=4)
    scaled = make_small(
        4, latent=SIZES, kv_heads=4, rope=RopeScaling("yarn", 1.0, 8, score_factor=1.7)
    )  # fmt: skip
    louder = dict(plain.params["layers"], q_b=plain.params["layers"]["q_b"] * 1.7)
    expected, _ = apply(plain.model, {**plain.params, "layers": louder}, None, *batch())
    found, _ = apply(scaled.model, scaled.params, None, *batch())
    np.testing.assert_allclose(found, expected, atol=2e-5)
    other, _ = apply(plain.model, plain.params, None, *batch())
    assert np.abs(np.asarray(found - other))[batch()[2] > 0].max() > 1e-2


def test_pairs_side_by_side_are_pairs_in_halves_after_a_permutation_of_weights(make_small):
    beside = make_small(5, latent=SIZES, kv_heads=4)
    halves = make_small(5, latent=dataclasses.replace(SIZES, interleaved=False), kv_heads=4)
    order = np.array([0, 2, 1, 3])
    layers = dict(beside.params["layers"])
    layers["q_b"] = jnp.concatenate(
        [layers["q_b"][..., :6], layers["q_b"][..., 6:][..., order]], axis=-1
    )  # fmt: skip
    layers["kv_a"] = jnp.concatenate(
        [layers["kv_a"][..., :5], layers["kv_a"][..., 5:][..., order]], axis=-1
    )  # fmt: skip
    expected, _ = apply(beside.model, beside.params, None, *batch())
    found, _ = apply(halves.model, {**beside.params, "layers": layers}, None, *batch())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_cache_holds_one_vector_a_token_and_layer():
    """70 kB a token of DeepSeek-V3 in bfloat16, not 4 MB: (512 + 64) * 2 bytes * 61 layers."""
    from posttrain_jax.models.deepseek_v3 import SIZES as PUBLISHED

    model = make_model(PUBLISHED["671b"])
    cache = jax.eval_shape(lambda: model.init_cache(1, 1000))
    held = sum(x.size * x.dtype.itemsize for x in (*cache.k_BKHS, *cache.v_BKSH))
    assert held == 1000 * 576 * 2 * 61

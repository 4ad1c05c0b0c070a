"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1 and appendix C).

Keys and values of all heads are products of one narrow vector a token, and the rotated part of the
keys is one for all heads. Training and prefill make the heads' keys and values. A decode step does
not: what would make keys is applied to the query instead, and what would make values to the mixed
vectors, so that it is attention with one key-value head over the vectors themselves. The cache
holds these: [rank + rope_dim] numbers a token and layer; the values are its first `rank`.

Checkpoints with `interleaved` keep rotary pairs side by side; they are set apart in halves before
the rotation, queries and keys alike, which leaves every score as it was.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from posttrain_jax.kernels import decode_attention, paged_attention
from posttrain_jax.kernels.decode import Prompts
from posttrain_jax.kernels.paged import Scaled, write
from posttrain_jax.models.attention import Place, in_rows
from posttrain_jax.models.rope import inverse_frequencies, rope

EPS = 1e-6
"""Of the norms of compressed vectors, whatever rms_norm_eps is (modeling_deepseek.py)."""


def attend_latent(layer: Any, y_BTD: jax.Array, place: Place, cache):
    """Self-attention before its output projection -> ([B, T, N, value_dim], the new cache or None).

    Args:
      layer: gives the weights (`transformer.Layer`).
      cache: None, or this layer's (k_BKHS, v_BKSH) with K = 1, H = rank + rope_dim, and no values;
        and those of prompts.
    """
    c, sizes = layer.config, layer.config.latent
    scale = c.query_scale or (sizes.plain_dim + sizes.rope_dim) ** -0.5
    scale *= c.rope.score_factor if c.rope else 1.0
    plain_BTNH, turned_BTNH = _queries(layer, y_BTD, place)
    latent_BTC, key_BTH = _latents(layer, y_BTD, place)
    both = sizes.plain_dim + sizes.value_dim
    into = nn.initializers.normal(sizes.rank**-0.5)
    kv_b = ("kv_b", (sizes.rank, c.heads, both), ("latent", "heads", "head_dim"), into)
    if cache is not None:
        kept = jnp.concatenate([latent_BTC, key_BTH], axis=-1).swapaxes(1, 2)[:, None]
        if place.where is not None:
            return _paged(layer, kept, (plain_BTNH, turned_BTNH), kv_b, place, cache, scale)
        k_BKHS, v_BKSH, *prompts = cache
        k_BKHS = jax.lax.dynamic_update_slice(
            k_BKHS, kept.astype(k_BKHS.dtype), (0, 0, 0, place.filled)
        )
        cache = (k_BKHS, v_BKSH)
        if y_BTD.shape[1] == 1:
            assert place.valid_BS is not None
            query_BTNH, to_value = _inward(layer, (plain_BTNH, turned_BTNH), kv_b)
            theirs = None
            if place.valid_PW is not None:
                theirs = Prompts(prompts[0], _values(prompts[0], sizes.rank), place.valid_PW)
            query_BNH, values = query_BTNH[:, 0], _values(k_BKHS, sizes.rank)
            mixed_BNC = decode_attention(
                query_BNH, k_BKHS, values, place.valid_BS, theirs, scale=scale
            )
            return jnp.einsum("BNC,CNH->BNH", mixed_BNC, to_value)[:, None], cache
    made_BTNH = layer.project("BTC,CNH->BTNH", latent_BTC, *kv_b)
    keys, values = jnp.split(made_BTNH, [sizes.plain_dim], axis=-1)
    key_of_all = jnp.broadcast_to(key_BTH[:, :, None], turned_BTNH.shape)
    mixed = in_rows(
        jnp.concatenate([plain_BTNH, turned_BTNH], axis=-1),
        jnp.concatenate([keys, key_of_all], axis=-1),
        values, place, c, scale=scale,
    )  # fmt: skip
    return mixed, cache


def _inward(layer: Any, queries, kv_b):
    """The new tokens' queries for latent vectors, and what makes values of their mixture."""
    plain_BTNH, turned_BTNH = queries
    to_key, to_value = jnp.split(layer.weight(*kv_b), [layer.config.latent.plain_dim], axis=-1)
    inward_BTNC = jnp.einsum("BTNH,CNH->BTNC", plain_BTNH, to_key)
    return jnp.concatenate([inward_BTNC, turned_BTNH], axis=-1), to_value


def _values(k_BKHS: jax.Array, rank: int) -> jax.Array:
    return k_BKHS[:, :, :rank].swapaxes(2, 3)


def _kept_values(keys, rank: int):
    """The values of a pool's keys; a scale is that of the whole vector."""
    if isinstance(keys, Scaled):
        return Scaled(_values(keys.numbers, rank), keys.scale)
    return _values(keys, rank)


def _paged(layer: Any, kept_BKHT, queries, kv_b, place: Place, cache, scale: float):
    """New tokens with their latent vectors in a pool."""
    where, rank, (k_ZKHO, v_ZKOH, k_UKHW, _) = place.where, layer.config.latent.rank, cache
    assert where is not None
    k_ZKHO = write(k_ZKHO, kept_BKHT.transpose(0, 3, 1, 2), where, keys=True, impl="xla")
    query, to_value = _inward(layer, queries, kv_b)
    values = (_kept_values(k_ZKHO, rank), _kept_values(k_UKHW, rank))
    mixed_BTNC = paged_attention(
        query, k_ZKHO, values[0], k_UKHW, values[1], where, scale=scale, impl="xla"
    )
    return jnp.einsum("BTNC,CNH->BTNH", mixed_BTNC, to_value), (k_ZKHO, v_ZKOH)


def _queries(layer: Any, y_BTD, place: Place):
    """Each head's query: (the part that is not rotated, the rotated one)."""
    c, sizes = layer.config, layer.config.latent
    width, axes = sizes.plain_dim + sizes.rope_dim, ("heads", "head_dim")
    init = nn.initializers.normal
    if sizes.query_rank:
        narrow = layer.project(
            "BTD,DC->BTC", y_BTD, "q_a", (c.width, sizes.query_rank), ("embed", "rank"),
            init(c.width**-0.5),
        )  # fmt: skip
        q_BTNH = layer.project(
            "BTC,CNH->BTNH", layer.norm("q_a_norm", narrow, eps=EPS), "q_b",
            (sizes.query_rank, c.heads, width), ("latent", *axes), init(sizes.query_rank**-0.5),
        )  # fmt: skip
    else:
        q_BTNH = layer.project(
            "BTD,DNH->BTNH", y_BTD, "q", (c.width, c.heads, width), ("embed", *axes),
            init(c.width**-0.5),
        )  # fmt: skip
    plain, turning = jnp.split(q_BTNH, [sizes.plain_dim], axis=-1)
    return plain, _rotate(c, turning, place)


def _latents(layer: Any, y_BTD, place: Place):
    """What the cache holds of a token: (the compressed vector, the key's rotated part)."""
    c, sizes = layer.config, layer.config.latent
    both = layer.project(
        "BTD,DC->BTC", y_BTD, "kv_a", (c.width, sizes.rank + sizes.rope_dim), ("embed", "rank"),
        nn.initializers.normal(c.width**-0.5),
    )  # fmt: skip
    latent, key = jnp.split(both, [sizes.rank], axis=-1)
    return layer.norm("kv_a_norm", latent, eps=EPS), _rotate(c, key[:, :, None], place)[:, :, 0]


def _rotate(config, x_BTNH, place: Place):
    """Rotary positions of what is all rotated."""
    width = config.latent.rope_dim
    if config.latent.interleaved:
        x_BTNH = jnp.concatenate([x_BTNH[..., 0::2], x_BTNH[..., 1::2]], axis=-1)
    inverse = inverse_frequencies(width, config.rope_theta, config.rope)
    factor = config.rope.attention_factor if config.rope else 1.0
    return rope(x_BTNH, place.positions_BT, inverse, factor)

"""Grouped-query self-attention of a layer, with its cache (Ainslie et al. 2023, arXiv 2305.13245).

Switches: biases of queries, keys and values (Qwen2), RMSNorm of queries and keys (Qwen3, OLMo 2),
local layers with a window and rotary frequencies of their own (Gemma 3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from posttrain_jax.kernels import attention, decode_attention, paged_attention
from posttrain_jax.kernels.decode import Prompts
from posttrain_jax.kernels.paged import Where, write
from posttrain_jax.models.rope import inverse_frequencies, local_frequencies, rope
from posttrain_jax.models.sharing import Shared, fold, unfold


class Place(NamedTuple):
    """Where the tokens of a call stand, and what of the layer depends on its number.

    Attributes:
      positions_BT, segments_BT: as in `api.Batch`.
      local: whether the layer is local; a traced bool inside a scan over layers.
      filled: with a cache, how many of its places are taken.
      valid_BS: with a cache, the places that hold tokens, the new ones included.
      valid_PW: with a cache behind prompts, theirs.
      where: with a `transformer.Pool`, which of its places are whose.
      shared: tokens and positions are folded (models/sharing.py), segments are not.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array
    local: bool | jax.Array = False
    filled: jax.Array | int = 0
    valid_BS: jax.Array | None = None
    valid_PW: jax.Array | None = None
    where: Where | None = None
    shared: Shared | None = None


def attend(layer: Any, y_BTD: jax.Array, place: Place, cache):
    """Self-attention before its output projection -> ([B, T, N, H], the new cache or None).

    Args:
      layer: gives the weights (`transformer.Layer`).
      cache: None, or this layer's (k_BKHS, v_BKSH), and (k_PKHW, v_PKWH) of prompts.
    """
    c = layer.config
    into = nn.initializers.normal(c.width**-0.5)
    heads, kv = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
    q = layer.project("BTD,DNH->BTNH", y_BTD, "q", (c.width, c.heads, c.head_dim), heads, into)
    k = layer.project("BTD,DKH->BTKH", y_BTD, "k", (c.width, c.kv_heads, c.head_dim), kv, into)
    v = layer.project("BTD,DKH->BTKH", y_BTD, "v", (c.width, c.kv_heads, c.head_dim), kv, into)
    if c.qkv_bias:
        q += layer.weight("q_bias", q.shape[2:], heads[1:], nn.initializers.zeros)
        k += layer.weight("k_bias", k.shape[2:], kv[1:], nn.initializers.zeros)
        v += layer.weight("v_bias", v.shape[2:], kv[1:], nn.initializers.zeros)
    if c.qk_norm == "head":
        q, k = layer.norm("q_norm", q, ("norm",)), layer.norm("k_norm", k, ("norm",))
    elif c.qk_norm == "whole":
        q = layer.norm("q_norm", q, ("heads", "head_dim"))
        k = layer.norm("k_norm", k, ("kv_heads", "head_dim"))
    inverse = inverse_frequencies(c.head_dim, c.rope_theta, c.rope)
    if c.window:
        inverse = jnp.where(place.local, local_frequencies(c, c.head_dim), inverse)
    factor = c.rope.attention_factor if c.rope else 1.0
    q = rope(q, place.positions_BT, inverse, factor)
    k = rope(k, place.positions_BT, inverse, factor)
    return mix(q, k, v, place, cache, c)


def mix(q_BTNH, k_BTKH, v_BTKH, place: Place, cache, config):
    """Attention of new tokens -> ([B, T, N, H], the layer's new keys and values or None).

    Several tokens with a cache are a prefill: it starts empty, so they see only each other.
    """
    if cache is None:
        return among(q_BTNH, k_BTKH, v_BTKH, place, config), None
    if place.where is not None:
        return mix_paged(q_BTNH, k_BTKH, v_BTKH, place, cache, config)
    k_BKHS, v_BKSH, *prompts = cache
    put, filled = jax.lax.dynamic_update_slice, place.filled
    k_BKHS = put(k_BKHS, k_BTKH.transpose(0, 2, 3, 1).astype(k_BKHS.dtype), (0, 0, 0, filled))
    v_BKSH = put(v_BKSH, v_BTKH.transpose(0, 2, 1, 3).astype(v_BKSH.dtype), (0, 0, filled, 0))
    if q_BTNH.shape[1] > 1:
        return among(q_BTNH, k_BTKH, v_BTKH, place, config), (k_BKHS, v_BKSH)
    valid_BS, valid_PW = place.valid_BS, place.valid_PW
    assert valid_BS is not None
    if config.window:
        near = lambda ahead: jnp.logical_not(place.local) | (ahead > filled - config.window)  # noqa: E731
        valid_BS &= near(jnp.arange(valid_BS.shape[1]))
        if valid_PW is not None:  # left-padded: they end where the cache begins
            valid_PW &= near(jnp.arange(-valid_PW.shape[1], 0))
    theirs = None if valid_PW is None else Prompts(prompts[0], prompts[1], valid_PW)
    scale = config.query_scale or None
    mixed = decode_attention(q_BTNH[:, 0], k_BKHS, v_BKSH, valid_BS, theirs, scale=scale)
    return mixed[:, None], (k_BKHS, v_BKSH)


def mix_paged(q_BTNH, k_BTKH, v_BTKH, place: Place, cache, config):
    """As `mix`, with keys and values in a pool."""
    where, (k_ZKHO, v_ZKOH, k_UKHW, v_UKWH) = place.where, cache
    assert where is not None
    impl = config.attention_impl
    k_ZKHO = write(k_ZKHO, k_BTKH, where, keys=True, impl=impl)
    v_ZKOH = write(v_ZKOH, v_BTKH, where, keys=False, impl=impl)
    window = config.window if place.local else 0
    mixed_BTNH = paged_attention(
        q_BTNH, k_ZKHO, v_ZKOH, k_UKHW, v_UKWH, where,
        scale=config.query_scale or None, window=window, impl=impl,
    )  # fmt: skip
    return mixed_BTNH, (k_ZKHO, v_ZKOH)


def among(q_BTNH, k_BTKH, v_BTKH, place: Place, config):
    """Attention of the tokens of a call among each other; a local layer's within its window."""

    def see(window: int):
        scale = config.query_scale or None
        return in_rows(q_BTNH, k_BTKH, v_BTKH, place, config, scale=scale, window=window)

    if not config.window or isinstance(place.local, bool):
        return see(config.window if place.local else 0)
    return jax.lax.cond(place.local, lambda: see(config.window), lambda: see(0))


def in_rows(q_BTNH, k_BTKH, v_BTKH, place: Place, config, *, scale: float | None, window: int = 0):
    """Attention within rows, for whose time what is folded is unfolded."""
    qkv = (q_BTNH, k_BTKH, v_BTKH)
    if place.shared:
        qkv = tuple(unfold(x, place.shared) for x in qkv)
    mixed = attention(
        *qkv, place.segments_BT, scale=scale, window=window, impl=config.attention_impl
    )
    return fold(mixed, place.shared) if place.shared else mixed

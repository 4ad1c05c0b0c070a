"""The decoder: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU (the Llama family).

One Linen module is one layer. Everything outside it is pure functions over a plain dict:

  {"embed" [V,D], "layers" {"attn_norm" [L,D], "q" [L,D,N,H], "k", "v" [L,D,K,H], "o" [L,N,H,D],
   "mlp_norm" [L,D], "gate", "up" [L,D,F], "down" [L,F,D]}, "final_norm" [D], "head" [D,V]}

("head" only where the embeddings are not tied.) Without a cache the layers run as a scan over the
stacked weights, with rematerialisation; with a cache they are unrolled, since a decode step that
indexes stacked weights is 40-50 % slower. Left out: dropout, biases, sliding windows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from posttrain_jax.api import Model, Params
from posttrain_jax.kernels import attention, decode_attention, token_logprobs
from posttrain_jax.mesh import constrain

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a decoder.

    Attributes:
      pad_id: a token id that is never predicted (probability 0), or None.
      embed_init: standard deviation of the embeddings of a new model.
      dtype, param_dtype: of activations and of parameters.
      remat: `none`, `dots` (keep matmul outputs) or `full` (keep layer inputs only).
      attention_impl: see `kernels.attention`.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True
    max_length: int = 2048
    pad_id: int | None = None
    embed_init: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention_impl: str = "auto"


class Cache(NamedTuple):
    """Keys and values of all layers; an argument and a result of `Model.apply`.

    Attributes:
      k_BKHS, v_BKSH: one array a layer; keys lie transposed.
      segments_BS: 0 where nothing was written (or padding was).
      filled: how many places are; the next tokens go there, the same for every row.
    """

    k_BKHS: tuple[jax.Array, ...]
    v_BKSH: tuple[jax.Array, ...]
    segments_BS: jax.Array
    filled: jax.Array


def rms_norm(x: jax.Array, weight_D: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * weight, in float32 (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype) * weight_D.astype(x.dtype)


def rope(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Rotary positions, first half against second half (Su et al. 2021, arXiv 2104.09864)."""
    half = x_BTNH.shape[-1] // 2
    inverse = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * inverse
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def mix(q_BTNH, k_BTKH, v_BTKH, segments_BT, cache, impl: str):
    """Attention of new tokens -> ([B, T, N, H], the layer's new keys and values or None).

    Several tokens with a cache are a prefill: it starts empty, so they see only each other.
    """
    if cache is None:
        return attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, impl=impl), None
    k_BKHS, v_BKSH, filled, valid_BS = cache
    place = jax.lax.dynamic_update_slice
    k_BKHS = place(k_BKHS, k_BTKH.transpose(0, 2, 3, 1).astype(k_BKHS.dtype), (0, 0, 0, filled))
    v_BKSH = place(v_BKSH, v_BTKH.transpose(0, 2, 1, 3).astype(v_BKSH.dtype), (0, 0, filled, 0))
    if q_BTNH.shape[1] == 1:
        mixed = decode_attention(q_BTNH[:, 0], k_BKHS, v_BKSH, valid_BS)[:, None]
    else:
        mixed = attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, impl=impl)
    return mixed, (k_BKHS, v_BKSH)


class Layer(nn.Module):
    """One decoder layer; `cache` is None or this layer's (k_BKHS, v_BKSH, filled, valid_BS)."""

    config: ModelConfig

    def weight(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], scale: float):
        """A parameter with logical axis names, normal with standard deviation `scale`."""
        init = nn.initializers.ones if scale == 0 else nn.initializers.normal(scale)
        boxed = nn.with_logical_partitioning(init, axes)
        value: Any = self.param(name, boxed, shape, self.config.param_dtype)
        return value.astype(self.config.dtype)

    @nn.compact
    def __call__(self, x_BTD, positions_BT, segments_BT, cache=None):
        c = self.config
        into, back = c.width**-0.5, (2 * c.layers) ** -0.5
        heads, kv = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        y = rms_norm(x_BTD, self.weight("attn_norm", (c.width,), ("norm",), 0), c.norm_eps)
        wq = self.weight("q", (c.width, c.heads, c.head_dim), heads, into)
        wk = self.weight("k", (c.width, c.kv_heads, c.head_dim), kv, into)
        wv = self.weight("v", (c.width, c.kv_heads, c.head_dim), kv, into)
        q = rope(jnp.einsum("BTD,DNH->BTNH", y, wq), positions_BT, c.rope_theta)
        k = rope(jnp.einsum("BTD,DKH->BTKH", y, wk), positions_BT, c.rope_theta)
        v = jnp.einsum("BTD,DKH->BTKH", y, wv)
        mixed, new = mix(q, k, v, segments_BT, cache, c.attention_impl)
        wo = self.weight(
            "o", (c.heads, c.head_dim, c.width), ("heads", "head_dim", "embed"),
            (c.heads * c.head_dim) ** -0.5 * back,
        )  # fmt: skip
        x_BTD = x_BTD + jnp.einsum("BTNH,NHD->BTD", mixed, wo)
        y = rms_norm(x_BTD, self.weight("mlp_norm", (c.width,), ("norm",), 0), c.norm_eps)
        gate = jnp.einsum(
            "BTD,DF->BTF", y, self.weight("gate", (c.width, c.ffn), ("embed", "ffn"), into)
        )
        up = jnp.einsum(
            "BTD,DF->BTF", y, self.weight("up", (c.width, c.ffn), ("embed", "ffn"), into)
        )
        down = self.weight("down", (c.ffn, c.width), ("ffn", "embed"), c.ffn**-0.5 * back)
        x_BTD = x_BTD + jnp.einsum("BTF,FD->BTD", nn.silu(gate) * up, down)
        return constrain(x_BTD, "batch", None, None), new


def unstack(params: Params) -> Params:
    """Layers from one stacked dict to a tuple of dicts; do it once, outside the decode loop."""
    if isinstance(params["layers"], tuple):
        return params
    leaves, structure = jax.tree.flatten(params["layers"])
    each = zip(*(tuple(leaf) for leaf in leaves), strict=True)
    layers = tuple(jax.tree.unflatten(structure, layer) for layer in each)
    return {**params, "layers": layers}


def _boxed_layer(config: ModelConfig, key: jax.Array) -> Params:
    x = jnp.zeros((1, 1, config.width), config.dtype)
    ones = jnp.ones((1, 1), jnp.int32)
    return Layer(config).init(key, x, ones, ones)["params"]


def _init(config: ModelConfig, key: jax.Array) -> Params:
    embed_key, head_key, layer_key = jax.random.split(key, 3)
    keys = jax.random.split(layer_key, config.layers)
    params = {
        "embed": jax.random.normal(embed_key, (config.vocab_size, config.width))
        * config.embed_init,
        "layers": jax.vmap(lambda k: nn.unbox(_boxed_layer(config, k)))(keys),
        "final_norm": jnp.ones((config.width,)),
    }
    if not config.tied:
        head = jax.random.normal(head_key, (config.width, config.vocab_size))
        params["head"] = head * config.width**-0.5
    return jax.tree.map(lambda x: x.astype(config.param_dtype), params)


def _axes(config: ModelConfig) -> Any:
    boxed = jax.eval_shape(functools.partial(_boxed_layer, config), jax.random.key(0))
    is_box = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
    layers = jax.tree.map(lambda box: ("layers", *box.names), boxed, is_leaf=is_box)
    axes = {"embed": ("vocab", "embed"), "layers": layers, "final_norm": ("norm",)}
    return axes if config.tied else {**axes, "head": ("embed", "vocab")}


def _apply(config, params, tokens_BT, *, positions_BT, segments_BT, cache: Cache | None = None):
    x_BTD = jnp.take(params["embed"], tokens_BT, axis=0).astype(config.dtype)
    x_BTD = constrain(x_BTD, "batch", None, None)
    layer = lambda p, x, kv: Layer(config).apply(  # noqa: E731
        {"params": p}, x, positions_BT, segments_BT, kv
    )
    if cache is None:
        step = lambda x, p: (layer(p, x, None)[0], None)  # noqa: E731
        if config.remat != "none":
            step = jax.checkpoint(step, policy=REMAT[config.remat], prevent_cse=False)
        x_BTD, _ = jax.lax.scan(step, x_BTD, params["layers"])
    else:
        valid = jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, cache.filled))
        keys, values = [], []
        for p, k, v in zip(unstack(params)["layers"], cache.k_BKHS, cache.v_BKSH, strict=True):
            x_BTD, (k, v) = layer(p, x_BTD, (k, v, cache.filled, valid != 0))
            keys, values = [*keys, k], [*values, v]
        cache = Cache(tuple(keys), tuple(values), valid, cache.filled + tokens_BT.shape[1])
    return rms_norm(x_BTD, params["final_norm"], config.norm_eps), cache


def _head_VD(config: ModelConfig, params: Params) -> jax.Array:
    head = params["embed"] if config.tied else params["head"].T
    return head.astype(config.dtype)


def _logits(config, params, hidden_BTD):
    logits = jnp.einsum(
        "...D,VD->...V", hidden_BTD, _head_VD(config, params), preferred_element_type=jnp.float32
    )
    if config.pad_id is None:
        return logits
    return jnp.where(jnp.arange(config.vocab_size) == config.pad_id, -1e30, logits)


def _logprobs(config, params, hidden_BTD, targets_BT, temperature=1.0):
    head_VD = _head_VD(config, params)
    return token_logprobs(hidden_BTD, head_VD, targets_BT, temperature, never=config.pad_id)


def _init_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    shape_k = (batch, config.kv_heads, config.head_dim, length)
    shape_v = (batch, config.kv_heads, length, config.head_dim)
    return Cache(
        tuple(jnp.zeros(shape_k, config.dtype) for _ in range(config.layers)),
        tuple(jnp.zeros(shape_v, config.dtype) for _ in range(config.layers)),
        jnp.zeros((batch, length), jnp.int32),
        jnp.int32(0),
    )


@functools.lru_cache(maxsize=64)
def make_model(config: ModelConfig) -> Model:
    """The decoder of these sizes; the same config gives the same (hashable) Model.

    Raises:
      ValueError: heads that kv_heads don't divide, or an unknown remat policy.
    """
    if config.heads % config.kv_heads:
        raise ValueError(f"heads={config.heads} is not a multiple of kv_heads={config.kv_heads}")
    if config.remat not in REMAT:
        raise ValueError(f"remat={config.remat!r}: expected one of {sorted(REMAT)} (model.remat)")
    bind = functools.partial
    return Model(
        config=config,
        init=bind(_init, config),
        axes=bind(_axes, config),
        apply=bind(_apply, config),
        logits=bind(_logits, config),
        logprobs=bind(_logprobs, config),
        init_cache=bind(_init_cache, config),
    )

"""The decoder of all families: RMSNorm, rotary positions, attention, gated feed-forward.

One Linen module is one layer. Everything outside it is pure functions over a plain dict:

  {"embed" [V,D], "layers" {"attn_norm" [L,D], "q" [L,D,N,H], "k", "v" [L,D,K,H], "o" [L,N,H,D],
   "mlp_norm" [L,D], "gate", "up" [L,D,F], "down" [L,F,D]}, "final_norm" [D], "head" [D,V]}

("head" only where the embeddings are not tied; what switches of `ModelConfig` add to a layer
stands where it is computed.) Without a cache the layers run as a scan over the stacked weights,
with rematerialisation; with a cache they are unrolled, since a decode step that indexes stacked
weights is 40-50 % slower. Left out: dropout.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.api import Model, Params, Routing
from posttrain_jax.kernels import logprobs_at, project, token_logprobs, top_logprobs
from posttrain_jax.kernels.attention import SAVED
from posttrain_jax.kernels.paged import Kept, Where
from posttrain_jax.mesh import constrain
from posttrain_jax.models import moe
from posttrain_jax.models.attention import Place, attend
from posttrain_jax.models.config import CHOICES, FLOAT32, ModelConfig, Stack
from posttrain_jax.models.feed_forward import feed_forward
from posttrain_jax.models.latent import attend_latent
from posttrain_jax.models.sharing import Shared, fold, unfold

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
}


class Cache(NamedTuple):
    """Keys and values of all layers; an argument and a result of `Model.apply`.

    Attributes:
      k_BKHS, v_BKSH: one array a layer; keys lie transposed. Of latent attention the values are
        a part of the keys: `v_BKSH` have no width.
      segments_BS: 0 where nothing was written (or padding was).
      filled: how many places are; the next tokens go there, the same for every row.
      prompts: what stands before, if anything does: left-padded rows, each that of B / P rows here
        one after the other. It is read, and not written.
    """

    k_BKHS: tuple[jax.Array, ...]
    v_BKSH: tuple[jax.Array, ...]
    segments_BS: jax.Array
    filled: jax.Array
    prompts: Cache | None = None


class Pool(NamedTuple):
    """The cache of rows that come and go, for steps of a few tokens a row (kernels/paged.py).

    Attributes:
      k_ZKHO, v_ZKOH: pages, one array a layer, as `Cache` has them.
      k_UKHW, v_UKWH: prompts.
      where: whose they are, and where the next token's go.
      near: the same of local layers, where these keep only what is within their window.
    """

    k_ZKHO: tuple[Kept, ...]
    v_ZKOH: tuple[Kept, ...]
    k_UKHW: tuple[Kept, ...]
    v_UKWH: tuple[Kept, ...]
    where: Where
    near: Where | None = None


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """x / rms(x) * (weight + offset), in float32 (Zhang & Sennrich 2019, arXiv 1910.07467).

    The mean is over as many of the last axes as `weight` has. With an offset the product is in
    float32 too (Gemma).
    """
    x32 = x.astype(jnp.float32)
    axes = tuple(range(-weight.ndim, 0))
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axes, keepdims=True) + eps)
    if offset:
        return (x32 * scale * (weight.astype(jnp.float32) + offset)).astype(x.dtype)
    return (x32 * scale).astype(x.dtype) * weight.astype(x.dtype)


class Layer(nn.Module):
    """One decoder layer; `sparse`: its feed-forward half is a mixture of experts."""

    config: ModelConfig
    sparse: bool = False

    def weight(self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], init):
        """A parameter with logical axis names."""
        boxed = nn.with_logical_partitioning(init, axes)
        if name in FLOAT32:
            return jnp.asarray(self.param(name, boxed, shape, jnp.float32))
        value: Any = self.param(name, boxed, shape, self.config.param_dtype)
        return value.astype(self.config.dtype)

    def project(self, equation: str, x: jax.Array, name: str, shape, axes, init) -> jax.Array:
        """The product of activations with a weight; every matrix of a layer goes through here."""
        return project(equation, x, self.weight(name, shape, axes, init))

    def norm(
        self, name: str, x: jax.Array, axes: tuple[str, ...] = ("norm",), eps: float | None = None
    ) -> jax.Array:
        """RMSNorm over the last `len(axes)` axes; `eps` where it is not the config's."""
        init = nn.initializers.zeros if self.config.norm_offset else nn.initializers.ones
        weight = self.weight(name, x.shape[x.ndim - len(axes) :], axes, init)
        eps = self.config.norm_eps if eps is None else eps
        return rms_norm(x, weight, eps, self.config.norm_offset)

    def before(self, half: str, x_BTD: jax.Array) -> jax.Array:
        """What a half of the layer ("attn", "mlp") sees."""
        return x_BTD if self.config.norms == "after" else self.norm(f"{half}_norm", x_BTD)

    def after(self, half: str, y_BTD: jax.Array) -> jax.Array:
        """What it adds."""
        return y_BTD if self.config.norms == "before" else self.norm(f"{half}_post_norm", y_BTD)

    @nn.compact
    def __call__(self, x_BTD, place: Place, cache=None, recorded_BTA=None):
        """The layer's output, its new cache or None, and what its router chose or None.

        Args:
          cache: None or this layer's keys and values.
          recorded_BTA: experts to keep in place of the router's choice; see `moe.route`.
        """
        c, routes = self.config, None
        back = (2 * c.layers) ** -0.5
        attention = attend_latent if c.latent else attend
        mixed, new = attention(self, self.before("attn", x_BTD), place, cache)
        size = mixed.shape[2] * mixed.shape[3]
        y_BTD = self.project(
            "BTNH,NHD->BTD", mixed, "o", (*mixed.shape[2:], c.width),
            ("heads", "head_dim", "embed"), nn.initializers.normal(size**-0.5 * back),
        )  # fmt: skip
        x_BTD = x_BTD + self.after("attn", y_BTD)
        y_BTD = self.before("mlp", x_BTD)
        if self.sparse:
            y_BTD, routes = moe.mixture(self, y_BTD, recorded_BTA, resting=cache is None)
        else:
            y_BTD = feed_forward(self, y_BTD, c.ffn)
        x_BTD = x_BTD + self.after("mlp", y_BTD)
        return constrain(x_BTD, "batch", None, None), new, routes


def unstack(params: Params) -> Params:
    """Each stack of layers as a tuple of dicts; do it once, outside the decode loop."""
    apart = dict(params)
    for key, stack in params.items():
        if isinstance(stack, dict):
            leaves, structure = jax.tree.flatten(stack)
            each = zip(*(tuple(leaf) for leaf in leaves), strict=True)
            apart[key] = tuple(jax.tree.unflatten(structure, layer) for layer in each)
    return apart


def _boxed_layer(config: ModelConfig, stack: Stack, key: jax.Array) -> Params:
    x = jnp.zeros((1, 1, config.width), config.dtype)
    ones = jnp.ones((1, 1), jnp.int32)
    return Layer(config, stack.sparse).init(key, x, Place(ones, ones))["params"]


def _init(config: ModelConfig, key: jax.Array) -> Params:
    embed_key, head_key, layer_key = jax.random.split(key, 3)
    keys = jax.random.split(layer_key, config.layers)
    embed = jax.random.normal(embed_key, (config.vocab_size, config.width)) * config.embed_init
    params = {"embed": embed}
    for stack in config.stacks:
        make = lambda k, stack=stack: nn.unbox(_boxed_layer(config, stack, k))  # noqa: E731
        params[stack.key] = jax.vmap(make)(keys[stack.first : stack.first + stack.depth])
    params["final_norm"] = jnp.full((config.width,), 0.0 if config.norm_offset else 1.0)
    if not config.tied:
        head = jax.random.normal(head_key, (config.width, config.vocab_size))
        params["head"] = head * config.width**-0.5
    kind = lambda path: "float32" if path[-1].key in FLOAT32 else config.param_dtype  # noqa: E731
    return jax.tree.map_with_path(lambda path, x: x.astype(kind(path)), params)


def _axes(config: ModelConfig) -> Any:
    is_box = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
    axes: dict[str, Any] = {"embed": ("vocab", "embed"), "final_norm": ("norm",)}
    for stack in config.stacks:
        boxed = jax.eval_shape(functools.partial(_boxed_layer, config, stack), jax.random.key(0))
        named = jax.tree.map(lambda box: ("layers", *box.names), boxed, is_leaf=is_box)
        axes[stack.key] = named
    return axes if config.tied else {**axes, "head": ("embed", "vocab")}


def _apply(config, params, tokens_BT, **places):
    return _routed(config, params, tokens_BT, **places)[:2]


def _routed(
    config, params, tokens_BT, *, positions_BT, segments_BT, cache: Cache | Pool | None = None,
    experts_BTLA=None, shared: Shared | None = None,
):  # fmt: skip
    if shared:
        tokens_BT, positions_BT = fold(tokens_BT, shared), fold(positions_BT, shared)
        experts_BTLA = None if experts_BTLA is None else fold(experts_BTLA, shared)
    x_BTD = jnp.take(params["embed"], tokens_BT, axis=0).astype(config.dtype)
    if config.embed_scale != 1.0:
        x_BTD *= jnp.asarray(config.embed_scale, config.dtype)
    x_BTD, routing = constrain(x_BTD, "batch", None, None), None
    place = Place(positions_BT, segments_BT, shared=shared)
    recorded = None if experts_BTLA is None else jnp.moveaxis(experts_BTLA, 2, 0)
    if cache is None:
        for stack in config.stacks:
            kept = recorded if stack.sparse else None
            x_BTD, routing = _scan(config, stack, params[stack.key], x_BTD, place, kept)
    else:
        x_BTD, cache, routing = _unrolled(config, params, x_BTD, place, cache, recorded)
    x_BTD = rms_norm(x_BTD, params["final_norm"], config.norm_eps, config.norm_offset)
    if shared:
        x_BTD = unfold(x_BTD, shared)
        routing = routing and jax.tree.map(jax.vmap(lambda x: unfold(x, shared)), routing)
    return x_BTD, cache, routing


def _scan(config: ModelConfig, stack: Stack, layers: Params, x_BTD, place: Place, recorded):
    """All layers of a stack without a cache -> (x_BTD, Routing or None)."""
    local = np.array([config.is_local(stack.first + i) for i in range(stack.depth)])

    def step(x_BTD, layer):
        params, is_local, kept = layer
        here = place._replace(local=is_local if config.window else False)
        call: Any = Layer(config, stack.sparse).apply
        x_BTD, _, routes = call({"params": params}, x_BTD, here, recorded_BTA=kept)
        return x_BTD, routes and (routes.choice_BTA, routes.entropy_BT)

    if config.remat != "none":
        step = jax.checkpoint(step, policy=REMAT[config.remat], prevent_cse=False)
    x_BTD, found = jax.lax.scan(step, x_BTD, (layers, local, recorded))
    return x_BTD, found and Routing(*found)


def _unrolled(config: ModelConfig, params: Params, x_BTD, place: Place, cache, recorded):
    """All layers, one by one, with a cache -> (x_BTD, the new cache, Routing or None)."""
    place, cache = _entered(place, cache)
    apart, news, found = unstack(params), [], []
    layers = [(layer, s.sparse) for s in config.stacks for layer in apart[s.key]]
    for number, ((layer, sparse), *old) in enumerate(zip(layers, *_arrays(cache), strict=True)):
        here = place._replace(local=config.is_local(number))
        if here.local and isinstance(cache, Pool) and cache.near is not None:
            here = here._replace(where=cache.near)
        kept = recorded[len(found)] if sparse and recorded is not None else None
        call: Any = Layer(config, sparse).apply
        x_BTD, new, routes = call({"params": layer}, x_BTD, here, tuple(old), kept)
        news.append(new)
        if routes is not None:
            found.append((routes.choice_BTA, routes.entropy_BT))
    keys, values = zip(*news, strict=True)
    routing = Routing(*map(jnp.stack, zip(*found, strict=True))) if found else None
    if isinstance(cache, Pool):
        return x_BTD, cache._replace(k_ZKHO=keys, v_ZKOH=values), routing
    return x_BTD, cache._replace(k_BKHS=keys, v_BKSH=values), routing


def _entered(place: Place, cache):
    """The place of new tokens in a cache, and the cache with all of them but keys and values."""
    if isinstance(cache, Pool):
        return place._replace(where=cache.where), cache
    start = (0, cache.filled)
    segments = jax.lax.dynamic_update_slice(cache.segments_BS, place.segments_BT, start)
    valid_PW = cache.prompts.segments_BS != 0 if cache.prompts else None
    place = place._replace(filled=cache.filled, valid_BS=segments != 0, valid_PW=valid_PW)
    filled = cache.filled + place.segments_BT.shape[1]
    return place, cache._replace(segments_BS=segments, filled=filled)


def _arrays(cache) -> tuple[tuple[Kept, ...], ...]:
    """What a cache has of each layer."""
    if isinstance(cache, Pool):
        return cache[:4]
    return (*cache[:2], *cache.prompts[:2]) if cache.prompts else cache[:2]


def first_places(cache: Cache, length: int) -> Cache:
    """The cache cut to its first places."""
    return cache._replace(
        k_BKHS=tuple(k[..., :length] for k in cache.k_BKHS),
        v_BKSH=tuple(v[:, :, :length] for v in cache.v_BKSH),
        segments_BS=cache.segments_BS[:, :length],
    )


def put_back(cache: Cache, first: Cache) -> Cache:
    """The cache with what became of its `first_places`."""
    put = lambda x, new: jax.lax.dynamic_update_slice(x, new, (0,) * x.ndim)  # noqa: E731
    return jax.tree.map(put, cache, first)


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


def _logprobs(
    config, params, hidden_BTD, targets_BT, temperature=1.0, needed_BT=None, slope_BT=None
):
    return token_logprobs(
        hidden_BTD, _head_VD(config, params), targets_BT, temperature,
        never=config.pad_id, needed_BT=needed_BT, slope_BT=slope_BT,
    )  # fmt: skip


def _logprobs_at(config, params, hidden_BTD, tokens_BTJ, temperature=1.0, needed_BT=None):
    return logprobs_at(
        hidden_BTD, _head_VD(config, params), tokens_BTJ, temperature,
        never=config.pad_id, needed_BT=needed_BT,
    )  # fmt: skip


def _top_logprobs(config, params, hidden_BTD, k, temperature=1.0, needed_BT=None):
    return top_logprobs(
        hidden_BTD, _head_VD(config, params), k, temperature,
        never=config.pad_id, needed_BT=needed_BT,
    )  # fmt: skip


def _init_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    heads, width, values = config.kv_heads, config.head_dim, config.head_dim
    if config.latent:
        heads, width, values = 1, config.latent.rank + config.latent.rope_dim, 0
    split = ("batch", None if config.latent else "kv_heads", None, None)

    def empty(*shape: int):
        zeros = (jnp.zeros((batch, heads, *shape), config.dtype) for _ in range(config.layers))
        return tuple(constrain(x, *split) for x in zeros)

    return Cache(
        empty(width, length),
        empty(length, values),
        jnp.zeros((batch, length), jnp.int32),
        jnp.int32(0),
    )


@functools.cache
def make_model(config: ModelConfig) -> Model:
    """The decoder of these sizes; the same config gives the same (hashable) Model.

    Raises:
      ValueError: heads that kv_heads don't divide, or an unknown word for a switch.
    """
    if config.heads % config.kv_heads:
        raise ValueError(f"heads={config.heads} is not a multiple of kv_heads={config.kv_heads}")
    for name, words in {**CHOICES, "remat": tuple(REMAT)}.items():
        if getattr(config, name) not in words:
            got = getattr(config, name)
            raise ValueError(f"{name}={got!r}: expected one of {sorted(words)} (model.{name})")
    if config.experts:
        moe.check(config.experts, config.layers)
    bind = functools.partial
    return Model(
        config=config,
        init=bind(_init, config),
        axes=bind(_axes, config),
        apply=bind(_apply, config),
        routed=bind(_routed, config),
        logits=bind(_logits, config),
        logprobs=bind(_logprobs, config),
        logprobs_at=bind(_logprobs_at, config),
        top_logprobs=bind(_top_logprobs, config),
        init_cache=bind(_init_cache, config),
    )

"""Low-rank adapters over frozen weights (LoRA, Hu et al. 2021, arXiv 2106.09685; DoRA, Liu et al.
2024, arXiv 2402.09353), laid over any model of ours without its knowing.

The scale of `adapters.py` is s = alpha / r, or alpha / sqrt(r) for `rslora` (Kalajdzievski 2023,
arXiv 2312.03732). A is drawn as PEFT draws it, B is zero and m is |W|: at first adapters change
nothing. They lie beside their weights in the stacked layers, so that scans, unstacking and sharding
treat them as they treat weights. An interceptor (`flax.linen.intercept_methods`) on
`Layer.project` adds their product to that of the weight, which is a constant to the gradient; where
a layer asks for the weight itself, it gets the adapted one. Adapters are float32, whatever the
weights are. What can have one is what goes through `project`, but for the router; experts can't.
Left out: dropout, biases, embeddings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from posttrain_jax import tree
from posttrain_jax.api import Model, Params
from posttrain_jax.models.adapters import (
    NORM,
    A,
    B,
    adapted,
    adapter,
    full,
    interceptor,
    under,
)
from posttrain_jax.models.config import FLOAT32
from posttrain_jax.models.lora_targets import Target, last, leaves, projections, targets
from posttrain_jax.models.quantised import (
    KINDS,
    matrix_axes,
    quantise,
    quantised_axes,
)
from posttrain_jax.models.transformer import make_model

PLAIN = ("float32", "bfloat16")
BASES = ("", *PLAIN, *KINDS)
_quantise = jax.jit(quantise, static_argnums=(1, 2))


@dataclass(frozen=True)
class LoraConfig:
    """What the adapters are.

    Attributes:
      rank: r.
      alpha: the numerator of their scale s (32: Schulman et al. 2025, "LoRA Without Regret").
      targets: a regular expression that the whole of a weight's name has to match: ours ("q"), with
        its stack ("layers/q"), or the last part of the checkpoint's, as in PEFT ("q_proj"); "" for
        every weight that can have an adapter.
      rslora: s is alpha / sqrt(r) instead of alpha / r.
      dora: magnitudes are trained beside directions.
      base: how the frozen weights are kept: `float32`, `bfloat16`, `int8`, `nf4`; "" as they are.
        In 8 and 4 bits only the matrices of layers are, without routers.

    Raises:
      ValueError: a rank below 1, or an unknown base.
    """

    rank: int
    alpha: float = 32.0
    targets: str = ""
    rslora: bool = False
    dora: bool = False
    base: str = ""

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank}: expected at least 1")
        if self.base not in BASES:
            raise ValueError(f"lora.base={self.base!r}: expected one of {BASES}")

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def is_adapter(path: str) -> bool:
    """Whether a parameter's path ("layers/q_lora_a") is that of an adapter."""
    return path.endswith((A, B, NORM))


@functools.cache
def wrap(model: Model, lora: LoraConfig) -> Model:
    """The model with adapters, of which an update trains only them; equal arguments, equal result.

    Raises:
      ValueError: `lora.targets` matches no weight, or one that can't have an adapter.
    """
    chosen = targets(model, lora.targets)
    bind = functools.partial
    return model._replace(
        init=bind(_init, model, lora, chosen),
        axes=bind(_axes, model, lora, chosen),
        apply=bind(under, interceptor(lora.scale), model.apply),
        routed=bind(under, interceptor(lora.scale), model.routed),
        trained=is_adapter,
        lora=lora,
    )


def adapter_count(model: Model, lora: LoraConfig) -> int:
    """The number of parameters that a model's adapters have, from abstract shapes alone."""
    shapes = jax.eval_shape(wrap(model, lora).init, jax.random.key(0))
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    leaves = jax.tree.leaves_with_path(shapes)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if is_adapter(name(path)))


def same(plain: Model, one: Mapping[str, Any], other: LoraConfig) -> bool:
    """Whether settings (fields of `LoraConfig`) are others', however they name the targets."""
    settings = LoraConfig(**one)
    chosen = [targets(plain, each.targets).keys() for each in (settings, other)]
    unnamed = [dataclasses.replace(each, targets="") for each in (settings, other)]
    return chosen[0] == chosen[1] and unnamed[0] == unnamed[1]


def unwrap(model: Model) -> Model:
    """The model without adapters."""
    return make_model(model.config)


def _kept_small(model: Model, lora: LoraConfig) -> dict[str, tuple[str | None, ...]]:
    """The parameters that are quantised -> their logical axes."""
    if lora.base not in KINDS:
        return {}
    return {
        path: names
        for path, names in leaves(model.axes())
        if "/" in path and len(matrix_axes(names)) > 2 and last(path) != "router"
    }


def _map(function, params: Params, path: str = "") -> Params:
    """`function(path, leaf)` on every leaf; a quantised weight is one."""
    if not isinstance(params, dict):
        return function(path.rstrip("/"), params)
    return {key: _map(function, inner, f"{path}{key}/") for key, inner in params.items()}


def freeze(model: Model, base: Params) -> Params:
    """A plain model's weights as a wrapped one keeps them; what stays as it is is not copied."""
    lora = model.lora
    small = _kept_small(unwrap(model), lora)

    def keep(path: str, weight):
        if path in small:
            return _quantise(weight, small[path], lora.base)
        plain = lora.base in PLAIN and last(path) not in FLOAT32
        return weight.astype(lora.base) if plain else weight

    return _map(keep, base)


def _axes(model: Model, lora: LoraConfig, chosen: dict[str, Target]) -> Any:
    small = _kept_small(model, lora)
    axes = _map(
        lambda path, names: quantised_axes(names, lora.base) if path in small else names,
        model.axes(),
    )
    adapters: dict[str, Any] = {}
    for path, target in chosen.items():
        stack, name = path.split("/")
        new = {
            name + A: ("layers", *target.inputs_axes, None),
            name + B: ("layers", None, *target.outputs_axes),
        }
        magnitude = {name + NORM: ("layers", *target.outputs_axes)} if lora.dora else {}
        adapters.setdefault(stack, {}).update({**new, **magnitude})
    return tree.join(axes, adapters)


def _init(model: Model, lora: LoraConfig, chosen: dict[str, Target], key: jax.Array) -> Params:
    base = freeze(wrap(model, lora), model.init(key))
    return tree.join(base, _adapters(lora, chosen, base, key))


def init_adapters(model: Model, base: Params, key: jax.Array) -> Params:
    """New adapters of a wrapped model, without the frozen weights, `base`, that they are for.

    A is uniform in +-1/sqrt(I), each weight of each layer by itself (PEFT's `kaiming_uniform_` with
    a = sqrt(5)).
    """
    return _adapters(model.lora, targets(unwrap(model), model.lora.targets), base, key)


def _adapters(lora: LoraConfig, chosen: dict[str, Target], base: Params, key) -> Params:
    made: dict[str, Any] = {}
    for number, (path, target) in enumerate(sorted(chosen.items())):
        stack, name = path.split("/")
        stored = base[stack][name]
        depth = jax.tree.leaves(stored)[0].shape[0]
        shape = (depth, *target.inputs, lora.rank)
        bound = math.prod(target.inputs) ** -0.5
        own = jax.random.fold_in(key, number)
        new = {
            name + A: jax.random.uniform(own, shape, jnp.float32, -bound, bound),
            name + B: jnp.zeros((depth, lora.rank, *target.outputs)),
        }
        if lora.dora:
            weight = full(stored, (depth, *target.inputs, *target.outputs))
            flat = weight.reshape(depth, -1, *target.outputs)
            new[name + NORM] = jnp.sqrt(jnp.sum(jnp.square(flat), axis=1))
        made.setdefault(stack, {}).update(new)
    return made


def merge(model: Model, params: Params) -> Params:
    """The parameters of the plain model that does what the wrapped one does, in its `param_dtype`.

    A quantised weight is what its codes stand for.
    """
    lora, chosen = model.lora, projections(unwrap(model))
    shapes = jax.eval_shape(unwrap(model).init, jax.random.key(0))

    def one(path: str, stored):
        *stack, name = path.split("/")
        like = functools.reduce(lambda node, key: node[key], [*stack, name], shapes)
        weight = full(stored, like.shape)
        low = adapter(params[stack[0]], name) if path in chosen else None
        if low is not None:
            weight = jax.vmap(lambda w, low: adapted(w, low, lora.scale))(weight, low)
        return weight.astype(like.dtype)

    return _map(one, tree.split(params, is_adapter)[1])


def for_decoding(model: Model, params: Params) -> tuple[Model, Params]:
    """What to sample from: adapters are applied as they are, so that no weight is held twice.

    DoRA's norms would be made anew for every token; its adapters are merged for the rollout, except
    into quantised weights, which are not to be held in full.
    """
    if model.lora is None or not model.lora.dora or model.lora.base in KINDS:
        return model, params
    return merged(model, params)


def merged(model: Model, params: Params) -> tuple[Model, Params]:
    """The plain model and parameters that do what these do; without adapters, these."""
    return (model, params) if model.lora is None else (unwrap(model), _merge(model, params))


_merge = jax.jit(merge, static_argnums=0)

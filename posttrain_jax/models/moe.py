"""Mixture of experts: the feed-forward half of a sparse layer.

Routers: softmax (Qwen3) and sigmoid with a correction bias (DeepSeek-V3), see `route`. Experts run
as ragged products over the choices sorted by expert (`kernels.ragged_matmul`). Nothing is dropped:
there is no capacity.

On a mesh the rows of a batch are split over the `expert` axis as over `data` and `fsdp`, so that
attention isn't repeated on it. Inside the mixture the tokens of an expert group are gathered, every
device works through the choices that fall on its own experts, and the sums are scattered back: the
experts' matrices never move over `expert`; over `fsdp` they are gathered as all weights are. A
token goes to 8 (1 - (7/8)^8) = 5.3 of 8 devices where 8 experts are chosen evenly and to all 8 by
gathering, so that sending only what is needed would save a third at most; that needs
`ragged_all_to_all`, which exists on TPU alone. An axis wider than the experts of a token would
want it: left out, as are the balancing of loads (a loss, or updates of the correction bias) and
capacities.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from posttrain_jax.kernels import ragged_matmul
from posttrain_jax.kernels.axes import BATCH_AXES, dividing_axes, mapped_axes, split_axes
from posttrain_jax.mesh import AXES, RULES, spec
from posttrain_jax.models.config import Experts
from posttrain_jax.models.feed_forward import ACTIVATIONS, feed_forward

ROUTERS = ("softmax", "sigmoid")
GATES = ("experts", "embed", "ffn")
DOWN = ("experts", "ffn", "embed")


def check(e: Experts, layers: int) -> None:
    """Raise ValueError where the sizes of a mixture contradict each other."""
    if not 0 <= e.first_dense < layers:
        raise ValueError(f"experts.first_dense={e.first_dense}: expected less than {layers=}")
    if e.router not in ROUTERS:
        raise ValueError(f"experts.router={e.router!r}: expected one of {sorted(ROUTERS)}")
    if e.count % e.groups or not 0 < e.active_groups <= e.groups:
        raise ValueError(
            f"experts: {e.count} of them in {e.groups} groups, of which {e.active_groups} stay: "
            "groups must divide the count and be at least as many as active_groups"
        )
    a_group = e.count // e.groups
    if not 0 < e.active <= a_group * e.active_groups or (e.groups > 1 and a_group < 2):
        raise ValueError(
            f"experts: {e.active} of {a_group * e.active_groups} (active_groups="
            f"{e.active_groups} of {a_group}); a group needs two, a token no more than there are"
        )


class Routes(NamedTuple):
    """What a router says of tokens.

    Attributes:
      choice_BTA: int32, the experts a token goes to, best first.
      weight_BTA: float32, what each one's output counts.
      entropy_BT: float32, of the router's distribution over all experts, in nats.
    """

    choice_BTA: jax.Array
    weight_BTA: jax.Array
    entropy_BT: jax.Array


def mixture(layer: Any, y_BTD: jax.Array, recorded_BTA: jax.Array | None, resting: bool):
    """What the feed-forward half of a sparse layer adds -> ([B, T, D], Routes).

    Args:
      layer: gives the weights (`transformer.Layer`).
      recorded_BTA: as of `route`.
      resting: the weights lie split over `fsdp`, as for training, not as for decoding.
    """
    c, e = layer.config, layer.config.experts
    into, back = c.width**-0.5, (2 * c.layers) ** -0.5
    logits_BTE = layer.project(
        "BTD,DE->BTE", y_BTD.astype(jnp.float32), "router", (c.width, e.count), ("embed", None),
        nn.initializers.normal(into),
    )  # fmt: skip
    bias_E = None
    if e.router == "sigmoid":
        bias_E = layer.weight("router_bias", (e.count,), (None,), nn.initializers.zeros)
    routes = route(e, logits_BTE, bias_E, recorded_BTA)
    own = e.count // mapped_axes(("expert",)).get("expert", 1)
    inwards = ((own, c.width, e.ffn), GATES, nn.initializers.normal(into))
    matrices = (
        layer.weight("expert_gate", *inwards),
        layer.weight("expert_up", *inwards),
        layer.weight(
            "expert_down", (own, e.ffn, c.width), DOWN,
            nn.initializers.normal(e.ffn**-0.5 * back),
        ),
    )  # fmt: skip
    added = apart(y_BTD, routes, matrices, c.activation, resting)
    if e.shared:
        added += feed_forward(layer, y_BTD, e.shared * e.ffn, "shared_")
    return added, routes


def route(e: Experts, logits_BTE, bias_E=None, recorded_BTA=None) -> Routes:
    """Choose experts for every token, and weigh them; equal scores go to the lower number.

    softmax: the likeliest ones; sigmoid: DeepSeek-V3's (arXiv 2412.19437, eqs. 13-16 and section
    2.1.2), where the bias only chooses. Choosing isn't differentiated, the weights are.

    Args:
      recorded_BTA: choices to keep in place of the router's, -1 where there is no record. The
        weights are then those of the current router for these experts: rollout routing replay
        (Ma et al. 2025, arXiv 2510.11370, section 4).
    """
    if e.router == "softmax":
        log_scores_BTE = jax.nn.log_softmax(logits_BTE)
    else:
        log_scores_BTE = jax.nn.log_sigmoid(logits_BTE)
    scores_BTE = jnp.exp(log_scores_BTE)
    deciding_BTE = scores_BTE if bias_E is None else scores_BTE + bias_E
    choice_BTA = choose(e, jax.lax.stop_gradient(deciding_BTE))
    if recorded_BTA is not None:
        recorded_BTA = recorded_BTA.astype(jnp.int32)
        choice_BTA = jnp.where(recorded_BTA >= 0, recorded_BTA, choice_BTA)
    weight_BTA = jnp.take_along_axis(scores_BTE, choice_BTA, axis=-1)
    if e.normalise:
        weight_BTA /= jnp.sum(weight_BTA, axis=-1, keepdims=True) + 1e-20
    logp_BTE = jax.nn.log_softmax(jax.lax.stop_gradient(log_scores_BTE))
    entropy_BT = -jnp.sum(jnp.exp(logp_BTE) * logp_BTE, axis=-1)
    return Routes(choice_BTA, weight_BTA * e.scale, entropy_BT)


def choose(e: Experts, scores_BTE) -> jax.Array:
    """The best `active` experts of the best `active_groups` groups -> int32 [B, T, A].

    A group is as good as its two best experts together.
    """
    if e.groups > 1:
        grouped = scores_BTE.reshape(*scores_BTE.shape[:-1], e.groups, -1)
        quality = jnp.sum(jax.lax.top_k(grouped, 2)[0], axis=-1)
        best = jax.lax.top_k(quality, e.active_groups)[1]
        stays = jnp.any(jax.nn.one_hot(best, e.groups, dtype=bool), axis=-2)
        scores_BTE = jnp.where(stays[..., None], grouped, -jnp.inf).reshape(scores_BTE.shape)
    return jax.lax.top_k(scores_BTE, e.active)[1]


def apart(y_BTD, routes: Routes, matrices, activation: str, resting: bool) -> jax.Array:
    """The weighted sum of each token's experts -> [B, T, D], each device with its own experts."""
    work: Any = functools.partial(own_experts, activation=activation)
    expert, fsdp, tensor = RULES["experts"], RULES["embed"], RULES["ffn"]
    mapped = bool(mapped_axes(("expert",)))  # rows and experts are split by an outer `shard_map`
    if not mapped and not split_axes(AXES):
        return work(y_BTD, routes.choice_BTA, routes.weight_BTA, *matrices, 0)
    rows = dividing_axes(BATCH_AXES, y_BTD.shape[0])
    gather_tokens, gather_weights = mapped or expert in rows, resting and fsdp in rows

    def local(y, choice, weight, gate, up, down):
        if gather_weights:  # here and not at the border, so that gradients are scattered
            gate, up = (jax.lax.all_gather(w, fsdp, axis=1, tiled=True) for w in (gate, up))
            down = jax.lax.all_gather(down, fsdp, axis=2, tiled=True)
        if gather_tokens:
            y, choice, weight = (
                jax.lax.all_gather(x, expert, axis=0, tiled=True) for x in (y, choice, weight)
            )
        out = work(y, choice, weight, gate, up, down, jax.lax.axis_index(expert) * gate.shape[0])
        if gather_tokens:
            out = jax.lax.psum_scatter(out, expert, scatter_dimension=0, tiled=True)
        else:
            out = jax.lax.psum(out, expert)
        return jax.lax.psum(out, tensor)

    by_row = PartitionSpec(rows)
    whole = ("embed",) * (not gather_weights) + ("experts",) * mapped
    home = [spec(*(None if n in whole else n for n in names)) for names in (GATES, GATES, DOWN)]
    placed = jax.shard_map(
        local, in_specs=(by_row, by_row, by_row, *home), out_specs=by_row, check_vma=not mapped
    )
    return placed(y_BTD, routes.choice_BTA, routes.weight_BTA, *matrices)


def own_experts(y_BTD, choice_BTA, weight_BTA, gate_EDF, up_EDF, down_EFD, first, *, activation):
    """What experts `first`, `first + 1` ... add to every token -> [B, T, D]; 0 for the others'."""
    width, active, count = y_BTD.shape[-1], choice_BTA.shape[-1], len(gate_EDF)
    y_MD = y_BTD.reshape(-1, width)
    expert = choice_BTA.reshape(-1) - first
    expert = jnp.where((expert >= 0) & (expert < count), expert, count)  # those of others come last
    order = jnp.argsort(expert, stable=True)
    back = jnp.argsort(order, stable=True)
    order = order[: len(y_MD) * min(active, count)]  # a token's choices are of different experts
    ends = jnp.searchsorted(expert[order], jnp.arange(count), side="right").astype(jnp.int32)
    sizes = jnp.diff(ends, prepend=0)
    ours = (jnp.arange(len(order)) < ends[-1])[:, None]  # other rows hold whatever, NaN included
    x = jnp.where(ours, y_MD[order // active], 0)
    inner = ACTIVATIONS[activation](ragged_matmul(x, gate_EDF, sizes))
    inner *= ragged_matmul(x, up_EDF, sizes)
    out = jnp.where(ours, ragged_matmul(inner, down_EFD, sizes), 0)
    out = out.at[back].get(mode="fill", fill_value=0).reshape(*choice_BTA.shape, width)
    weighted = jnp.einsum(
        "BTAD,BTA->BTD", out, weight_BTA.astype(out.dtype), preferred_element_type=jnp.float32
    )
    return weighted.astype(y_BTD.dtype)

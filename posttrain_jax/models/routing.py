"""What the routers of a mixture of experts did in an update, as metrics.

`counts` are sums over tokens, so that microbatches add up; `summary` makes numbers of the total.
"""

from __future__ import annotations

import jax.numpy as jnp

from posttrain_jax.api import Batch, Metrics, Routing
from posttrain_jax.models.config import ModelConfig

LOAD, ENTROPY, TOKENS = "sum/router_load", "sum/router_entropy", "sum/router_tokens"


def counts(routing: Routing | None, batch: Batch, config: ModelConfig) -> Metrics:
    """Choices of each expert [L, E], entropies and tokens, summed over tokens but padding.

    A dense model has none: its `routing` is None.
    """
    if routing is None or config.experts is None:
        return {}
    real_BT = batch.segments_BT != 0
    hit_LBTAE = routing.experts_LBTA[..., None] == jnp.arange(config.experts.count)
    return {
        LOAD: jnp.sum(hit_LBTAE & real_BT[..., None, None], axis=(1, 2, 3), dtype=jnp.float32),
        ENTROPY: jnp.sum(routing.entropy_LBT * real_BT),
        TOKENS: jnp.sum(real_BT, dtype=jnp.float32),
    }


def summary(metrics: Metrics, config: ModelConfig) -> Metrics:
    """The metrics with numbers in place of the counts; as they are where there are none.

    router_load_max, router_load_min: the busiest and the idlest expert of any layer; 1 is an even
    share. router_entropy: of the router's distribution, in nats, mean over tokens and layers.
    router_dropped: the share of choices that no expert of the model answered to.
    """
    if config.experts is None:
        return metrics
    rest = {name: value for name, value in metrics.items() if not name.startswith("sum/router_")}
    load_LE, tokens = metrics[LOAD], jnp.maximum(metrics[TOKENS], 1.0)
    layers, count = load_LE.shape
    even = tokens * config.experts.active / count
    return {
        **rest,
        "router_load_max": jnp.max(load_LE) / even,
        "router_load_min": jnp.min(load_LE) / even,
        "router_entropy": metrics[ENTROPY] / (tokens * layers),
        "router_dropped": 1.0 - jnp.sum(load_LE) / (even * layers * count),
    }

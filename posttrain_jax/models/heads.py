"""Heads on the decoder: a scalar score read at the end of a sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Model, Params


def init_score_head(key: Array, width: int) -> Params:
    """Weights [D], normal with standard deviation 1 / sqrt(D + 1), and a zero bias.

    The deviation is Tülu 3's (open-instruct, reward_modeling.py; Stiennon et al. 2020, arXiv
    2009.01325, app. B.1).
    """
    return {
        "weight": jax.random.normal(key, (width,)) * (width + 1) ** -0.5,
        "bias": jnp.zeros(()),
    }


def score_sequences(
    model: Model, backbone: Params, head: Params, tokens_BT: Array, segments_BT: Array
) -> Array:
    """The score of each right-padded row, read at its last token -> [B]."""
    positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    hidden, _ = model.apply(backbone, tokens_BT, positions_BT=positions, segments_BT=segments_BT)
    last = jnp.maximum(jnp.sum(segments_BT, axis=1) - 1, 0)
    hidden_BD = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return jnp.sum(hidden_BD.astype(jnp.float32) * head["weight"], axis=1) + head["bias"]

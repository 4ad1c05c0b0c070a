"""The values that PPO subtracts: of a model of its own, or of a head on the policy's backbone.

A value model has the parameters {"backbone", "head"} of models/heads.py and is updated by itself,
with its own optimizer. A head on the policy is one more of the policy's parameters, `value_head`,
and learns in the policy's update; what is sampled from and saved is the policy without it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from posttrain_jax import reward_model
from posttrain_jax.api import Array, Artifact, Batch, Model, Params, PolicyOut
from posttrain_jax.models import heads, make_model

HEAD = "value_head"


def load(
    artifact: Artifact, mesh: Mesh, policy: Model, seed: int, **options: Any
) -> tuple[Model, Params]:
    """The value model to start from: a reward model, head included, or a policy with a new head.

    Args:
      policy: the model whose tokens it reads.
      seed: of a new head.
      options: fields of the model's config that decide how it computes (`remat`, `dtype`).

    Raises:
      ValueError: an artifact of other sizes than it says, of another vocabulary than the policy's,
        or a reward model with several outputs.
    """
    try:
        model, params = reward_model.load_value(artifact, mesh, seed)
    except ValueError as error:
        if "stored shape" not in str(error):  # Orbax's words
            raise
        raise ValueError(
            f"the value model {artifact.stage!r}: the sizes in {artifact.path / 'model.json'} are "
            f"not those of its parameters ({error}); give another artifact as inputs.value"
        ) from error
    if model.config.vocab_size != policy.config.vocab_size:
        raise ValueError(
            f"the value model {artifact.stage!r} reads a vocabulary of {model.config.vocab_size} "
            f"tokens, the policy writes one of {policy.config.vocab_size}: inputs.value needs the "
            "policy's tokenizer"
        )
    return make_model(dataclasses.replace(model.config, **options)), params


def with_head(params: Params, model: Model, mesh: Mesh, seed: int) -> Params:
    """The policy's parameters and a value head that says 0."""
    new = reward_model.add_head(model, {}, mesh, seed, heads.VALUE)["head"]
    return {**params, HEAD: new}


def without_head(params: Params) -> Params:
    """The parameters of the policy alone."""
    return {name: part for name, part in params.items() if name != HEAD}


def value_out(
    model: Model, params: Params, batch: Batch, start: int, temperature: float
) -> PolicyOut:
    """As `train_state.policy_out`, of a value model: values where weights are not 0, no log-probs.

    A place right after a sequence's end has a value too if it bears weight.
    """
    hidden_BTD, _, chosen = model.routed(
        params["backbone"], batch.tokens_BT, positions_BT=batch.positions_BT,
        segments_BT=batch.segments_BT,
    )  # fmt: skip
    value_BT = heads.apply(params["head"], hidden_BTD[:, start - 1 : -1])[..., 0]
    value_BT = jnp.where(batch.weight_BT[:, start:] != 0, value_BT, 0.0)
    nothing = jnp.zeros(batch.tokens_BT.shape, jnp.float32)
    return PolicyOut(nothing, nothing, chosen, jnp.pad(value_BT, ((0, 0), (start, 0))))


@functools.partial(jax.jit, static_argnames=("view", "model", "start"))
def values(view: Callable, model: Model, params: Params, batch: Batch, *, start: int = 1) -> Array:
    """The values of the states in which the tokens that bear weight are chosen -> [B, T].

    Args:
      view: `value_out`, or `train_state.policy_out` where the policy has the head.
    """
    return view(model, params, batch, start, 1.0).value_BT

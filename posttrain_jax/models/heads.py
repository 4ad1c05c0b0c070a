"""Heads on the decoder: rewards of sequences, values of states, verdicts on steps.

One description (`HeadConfig`) and three functions of it: `init`, `axes`, `apply`. A model with a
head has the parameters {"backbone": the decoder's without its LM head, "head": ...}:

  one layer   {"weight" [D, O]}, and "bias" [O] where `bias`
  two layers  {"hidden" [D, D], "hidden_bias" [D], "weight" [D, O], "bias" [O]}, ReLU between them

Where a head is read is said by marks on the tokens: the last token of each sequence of a row
(`last_tokens`: padded or packed), the ends of steps (`step_ends`), or every place (`values`). Head
maths are in float32 at full precision, the parameters are float32 too. Left out: dropout, which
the reward models followed here train without (Tülu 3, arXiv 2411.15124, section 6.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Model, Params


@dataclass(frozen=True)
class HeadConfig:
    """What a head is.

    Attributes:
      layers: 1; or 2 with a ReLU between them (Qwen2.5-Math: modeling_qwen2_rm.py of
        Qwen/Qwen2.5-Math-RM-72B and Qwen/Qwen2.5-Math-PRM-7B).
      outputs: 1 for a score, 2 for the classes wrong and right, k for k scores.
      bias: default as in Hugging Face's forms: two layers have it, one has none. A loss of score
        differences can't learn the bias of a score.
      init_std: standard deviation of new weights (biases start at 0); default 1 / sqrt(D + 1),
        Tülu 3's (open-instruct, reward_modeling.py) after Stiennon et al. 2020, arXiv 2009.01325,
        app. B.1; Qwen's files say 0.02. With 0 all scores start at 0, as values do in Ziegler et
        al. 2019, arXiv 1909.08593 (lm-human-preferences); the hidden layer of two, which could
        not learn from 0, then has the default.

    Raises:
      ValueError: a size that no head has.
    """

    layers: int = 1
    outputs: int = 1
    bias: bool | None = None
    init_std: float | None = None

    def __post_init__(self):
        if self.layers not in (1, 2):
            raise ValueError(f"head.layers={self.layers}: expected 1 or 2")
        if self.outputs < 1:
            raise ValueError(f"head.outputs={self.outputs}: expected at least 1")
        if self.init_std is not None and self.init_std < 0:
            raise ValueError(f"head.init_std={self.init_std}: expected at least 0")
        if self.bias is None:
            object.__setattr__(self, "bias", self.layers == 2)


SCORE = HeadConfig()
"""A reward model's: Tülu 3's, and Hugging Face's sequence classification with one label."""
PROCESS = HeadConfig(layers=2, outputs=2)
"""A process reward model's: Qwen2.5-Math-PRM's."""
VALUE = HeadConfig(init_std=0.0)
"""A value model's that does not start from a reward model."""


def init(key: Array, head: HeadConfig, width: int) -> Params:
    """A new head on hidden states of `width`."""
    default = (width + 1) ** -0.5
    std = default if head.init_std is None else head.init_std
    key, hidden_key = (key, key) if head.layers == 1 else jax.random.split(key)
    params = {"weight": jax.random.normal(key, (width, head.outputs)) * std}
    if head.bias:
        params["bias"] = jnp.zeros(head.outputs)
    if head.layers == 2:
        hidden = jax.random.normal(hidden_key, (width, width))
        params["hidden"] = hidden * (std or default)
        if head.bias:
            params["hidden_bias"] = jnp.zeros(width)
    return params


def axes(head: HeadConfig) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of a head's parameters."""
    two = head.layers == 2
    found: dict[str, tuple[str | None, ...]] = {"weight": ("ffn" if two else "embed", None)}
    if head.bias:
        found["bias"] = (None,)
    if two:
        found["hidden"] = ("embed", "ffn")
        if head.bias:
            found["hidden_bias"] = ("ffn",)
    return found


def apply(head: Params, hidden: Array) -> Array:
    """The outputs of a head on hidden states [..., D] -> float32 [..., O]."""
    x, exact = hidden.astype(jnp.float32), jax.lax.Precision.HIGHEST
    if "hidden" in head:
        x = jax.nn.relu(jnp.matmul(x, head["hidden"], precision=exact) + head.get("hidden_bias", 0))
    return jnp.matmul(x, head["weight"], precision=exact) + head.get("bias", 0)


def without_lm_head(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder's parameters, or their axes, without the LM head, which nothing here reads."""
    return {name: part for name, part in tree.items() if name != "head"}


def last_tokens(segments_BT: Array) -> Array:
    """Marks on the last token of each sequence: of padded rows (on either side) and packed ones."""
    following_BT = jnp.pad(segments_BT[:, 1:], ((0, 0), (0, 1)))
    return (segments_BT > 0) & (segments_BT != following_BT)


def step_ends(tokens_BT: Array, segments_BT: Array, separator: int) -> Array:
    """Marks on the token that ends a step (`<extra_0>` of Qwen2.5-Math-PRM, a new line of TRL)."""
    return (tokens_BT == separator) & (segments_BT > 0)


def places(marks_BT: Array, count: int) -> tuple[Array, Array]:
    """Where the first `count` marks of each row are, in order.

    Returns:
      place_BM, 0 where a row has fewer; and present_BM, whether there is such a mark.
    """
    rank_BT = jnp.where(marks_BT, jnp.cumsum(marks_BT, axis=1), 0)
    hit_BMT = rank_BT[:, None] == jnp.arange(1, count + 1)[:, None]
    return jnp.argmax(hit_BMT, axis=2), jnp.any(hit_BMT, axis=2)


def read(model: Model, params: Params, batch: Batch, place_BM: Array) -> Array:
    """The head's outputs at places of each row -> float32 [B, M, O].

    Of `batch` only tokens, positions and segments are read.
    """
    return apply(params["head"], hidden_at(model, params, batch, place_BM))


def hidden_at(model: Model, params: Params, batch: Batch, place_BM: Array) -> Array:
    """The hidden states at places of each row -> [B, M, D]; see `read`."""
    return jnp.take_along_axis(_hidden(model, params, batch), place_BM[..., None], axis=1)


def values(model: Model, params: Params, batch: Batch) -> Array:
    """The value of the state in which each token is chosen -> [B, T].

    Like all per-token arrays it is aligned with the token: `values_BT[b, t]` is read at the token
    before t (so that what PPO subtracts from the return of t has not seen t). It is 0 at the first
    token of a sequence and at padding.
    """
    value_BT = apply(params["head"], _hidden(model, params, batch))[..., 0]
    segments_BT = batch.segments_BT
    inside = (segments_BT[:, 1:] > 0) & (segments_BT[:, 1:] == segments_BT[:, :-1])
    return jnp.pad(jnp.where(inside, value_BT[:, :-1], 0.0), ((0, 0), (1, 0)))


def right_chance(outputs_BMO: Array) -> Array:
    """The probability that a step is right, from the outputs (wrong, right) of a process head.

    Class 1 is right, in Qwen2.5-Math-PRM (its model card) and in TRL's PRMTrainer.
    """
    return jax.nn.softmax(outputs_BMO, axis=-1)[..., 1]


def _hidden(model: Model, params: Params, batch: Batch) -> Array:
    hidden_BTD, _ = model.apply(
        params["backbone"], batch.tokens_BT, positions_BT=batch.positions_BT,
        segments_BT=batch.segments_BT,
    )  # fmt: skip
    return hidden_BTD

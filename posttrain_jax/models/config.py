"""Sizes and switches of a decoder: what a family file says, and all that a checkpoint's may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pretraining; see `rope.py`.

    Attributes:
      kind: `linear`, `llama3` or `yarn`.
      factor: new length / old length.
      original_length: the old length, in tokens.
      low_factor, high_factor: of `llama3`: wavelengths above original_length / low_factor are
        stretched whole, below original_length / high_factor not at all.
      beta_fast, beta_slow: of `yarn`: rotations over the old length, between which it blends.
      truncate: of `yarn`: whether the bounds of that blend are whole numbers.
      attention_factor: of `yarn`: what sin and cos are multiplied with.
      score_factor: of `yarn`: what attention scores are multiplied with besides.
    """

    kind: str
    factor: float
    original_length: int = 0
    low_factor: float = 1.0
    high_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    score_factor: float = 1.0


@dataclass(frozen=True)
class Latent:
    """Sizes of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
      query_rank: width of the compressed queries; 0 where queries are not compressed.
      rank: width of the compressed keys and values, which is what the cache holds.
      rope_dim: part of a head's query and key that is rotated; the key's is shared by all heads.
      plain_dim: part that is not.
      value_dim: width of a head's values.
      interleaved: the checkpoint keeps rotary pairs side by side, not in halves.
    """

    query_rank: int
    rank: int
    rope_dim: int
    plain_dim: int
    value_dim: int
    interleaved: bool = True


@dataclass(frozen=True)
class Experts:
    """Sizes of a mixture of experts.

    Attributes:
      count, active: experts a layer, and how many each token goes to.
      ffn: feed-forward width of one expert.
      shared: shared experts, which every token goes to, as one of `shared * ffn`.
      first_dense: the first so many layers are dense, `ModelConfig.ffn` wide.
      router: `softmax` (Qwen3) or `sigmoid` with a correction bias that only chooses (DeepSeek-V3,
        arXiv 2412.19437, eqs. 13-16).
      normalise: the chosen experts' weights are made to sum to 1.
      scale: what the weights are multiplied with after that.
      groups, active_groups: experts stand in so many groups, of which the best so many stay.
    """

    count: int
    active: int
    ffn: int
    shared: int = 0
    first_dense: int = 0
    router: str = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    active_groups: int = 1


class Stack(NamedTuple):
    """Layers of one kind, one after the other: `params[key]` holds them stacked.

    Attributes:
      first: the number of its first layer in the model.
      depth: how many layers.
      sparse: whether their feed-forward part is a mixture of experts.
    """

    key: str
    first: int
    depth: int
    sparse: bool


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a decoder.

    Attributes:
      family: the file in models/ with the names of its weights in checkpoints.
      pad_id: a token id that is never predicted (probability 0), or None.
      embed_init: standard deviation of the embeddings of a new model.
      rope: how rotary frequencies are scaled, or None.
      qkv_bias: queries, keys and values have a bias.
      qk_norm: RMSNorm of queries and keys: `none`, over a `head`, or over the `whole` of them.
      norms: `before` each half of a layer, `after` it (on what it adds), or `around` it.
      norm_offset: added to every norm's weight (Gemma stores the weight less 1).
      activation: of the gate: `silu` or `gelu` (the tanh form).
      embed_scale: what embeddings are multiplied with on the way in.
      query_scale: what attention scores are multiplied with; 0 is 1 / sqrt(head_dim).
      window: of local layers, how many places a token sees, itself included; 0: none is local.
      global_every: each so many-th layer is not local.
      local_rope_theta: of local layers, which no scaling touches.
      latent: multi-head latent attention, or None; then kv_heads and head_dim say nothing.
      experts: mixture of experts, or None.
      dtype, param_dtype: of activations and of parameters.
      remat: `none`; `dots` (keep what products and attention made; on CPU faster than `none`, since
        less is written and read again); `full` (keep layer inputs only).
      attention_impl: see `kernels.attention`; also that of a queue (`kernels.paged_attention`).
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    family: str = "llama"
    rope_theta: float = 10000.0
    rope: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = True
    max_length: int = 2048
    pad_id: int | None = None
    embed_init: float = 0.02
    qkv_bias: bool = False
    qk_norm: str = "none"
    norms: str = "before"
    norm_offset: float = 0.0
    activation: str = "silu"
    embed_scale: float = 1.0
    query_scale: float = 0.0
    window: int = 0
    global_every: int = 1
    local_rope_theta: float = 10000.0
    latent: Latent | None = None
    experts: Experts | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "dots"
    attention_impl: str = "auto"

    def __post_init__(self):
        for name, kind in (("rope", RopeScaling), ("latent", Latent), ("experts", Experts)):
            value = getattr(self, name)
            if isinstance(value, Mapping):  # as JSON brings it
                object.__setattr__(self, name, kind(**value))

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The layers in order, by kind."""
        dense = self.experts.first_dense if self.experts else 0
        rest = Stack("layers", dense, self.layers - dense, self.experts is not None)
        return (Stack("dense_layers", 0, dense, False), rest) if dense else (rest,)

    def is_local(self, layer: int) -> bool:
        """Whether a layer's attention sees only the nearest `window` places."""
        return self.window > 0 and (layer + 1) % self.global_every != 0


CHOICES: Mapping[str, tuple[Any, ...]] = {
    "qk_norm": ("none", "head", "whole"),
    "norms": ("before", "after", "around"),
    "activation": ("silu", "gelu"),
}
"""What the switches that are words may be."""

FLOAT32 = ("router_bias",)
"""Parameters that stay in float32 whatever `param_dtype` says: it moves by steps of 0.001, and
bfloat16 has fewer digits."""

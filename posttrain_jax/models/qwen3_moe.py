"""Qwen3's mixtures of experts (arXiv 2505.09388), as Hugging Face's Qwen3MoeForCausalLM.

The dense Qwen3 with a softmax router over 128 experts in every layer, of which a token goes to 8;
no shared expert. Refused: models that mix dense layers in (`mlp_only_layers`,
`decoder_sparse_step`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from posttrain_jax.models import hf_config
from posttrain_jax.models.config import Experts, ModelConfig
from posttrain_jax.models.hf_config import LAYER
from posttrain_jax.models.layout import Table

MODEL_TYPE = "qwen3_moe"
ARCHITECTURE = "Qwen3MoeForCausalLM"

# Qwen/Qwen3-30B-A3B and Qwen/Qwen3-235B-A22B, config.json (the -Base models have
# max_position_embeddings 32768).
_30B = ModelConfig(
    vocab_size=151936,
    layers=48,
    width=2048,
    heads=32,
    kv_heads=4,
    head_dim=128,
    ffn=6144,
    family="qwen3_moe",
    rope_theta=1e6,
    norm_eps=1e-6,
    tied=False,
    max_length=40960,
    qk_norm="head",
    experts=Experts(count=128, active=8, ffn=768),
    param_dtype="bfloat16",
    dtype="bfloat16",
)
SIZES: dict[str, ModelConfig] = {
    "30b": _30B,
    "235b": dataclasses.replace(
        _30B, layers=94, width=4096, heads=64, ffn=12288, experts=Experts(128, 8, 1536)
    ),
}

EXPERTS: Table = {
    "layers/router": (LAYER + "mlp.gate.weight", "E D -> D E"),
    "layers/expert_gate": (LAYER + "mlp.experts.{expert}.gate_proj.weight", "f D -> D f"),
    "layers/expert_up": (LAYER + "mlp.experts.{expert}.up_proj.weight", "f D -> D f"),
    "layers/expert_down": (LAYER + "mlp.experts.{expert}.down_proj.weight", "D f -> f D"),
}
"""The sparse half of a layer."""
WEIGHTS: Table = {**hf_config.WEIGHTS, **hf_config.HEAD_NORMS, **EXPERTS}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of config.json."""
    e = config.experts
    assert e is not None
    return {
        **hf_config.write_settings(config, ARCHITECTURE),
        "use_sliding_window": False,
        "max_window_layers": config.layers,
        "num_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": e.ffn,
        "norm_topk_prob": e.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
    }


def from_hf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json says.

    Raises:
      ValueError: a setting that the decoder does not have (dense layers, rope type, windows).
    """
    expected = {
        "hidden_act": "silu",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    hf_config.refuse(settings, MODEL_TYPE, expected)
    hf_config.refuse_windows(settings, MODEL_TYPE)
    said = {name: value for name, value in settings.items() if value is not None}
    count = said.get("num_experts", said.get("num_local_experts"))  # transformers 4 and 5
    if count is None:
        raise KeyError("num_experts")
    defaults = {"max_position_embeddings": 32768}
    experts = Experts(
        count=count,
        active=said.get("num_experts_per_tok", 8),
        ffn=said["moe_intermediate_size"],
        normalise=said.get("norm_topk_prob", False),
    )
    return {
        **hf_config.read_fields(settings, defaults),
        **hf_config.read_rope({**defaults, **settings}, MODEL_TYPE),
        "qk_norm": "head",
        "experts": experts,
    }

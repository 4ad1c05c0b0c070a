"""OLMo 2 (arXiv 2501.00656), as Hugging Face's Olmo2ForCausalLM.

Each half of a layer is normalised behind itself, before it is added (section 3.3.1); queries and
keys are normalised over all heads together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from posttrain_jax.models import hf_config
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.hf_config import LAYER
from posttrain_jax.models.layout import Table

MODEL_TYPE = "olmo2"
ARCHITECTURE = "Olmo2ForCausalLM"

_7B = ModelConfig(
    vocab_size=100352,
    layers=32,
    width=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    ffn=11008,
    family="olmo2",
    rope_theta=500000.0,
    norm_eps=1e-6,
    tied=False,
    max_length=4096,
    qk_norm="whole",
    norms="after",
    param_dtype="bfloat16",
    dtype="bfloat16",
)

# allenai/OLMo-2-0425-1B, OLMo-2-1124-7B, OLMo-2-1124-13B and OLMo-2-0325-32B, config.json.
SIZES: dict[str, ModelConfig] = {
    "1b": dataclasses.replace(_7B, layers=16, width=2048, heads=16, kv_heads=16, ffn=8192),
    "7b": _7B,
    "13b": dataclasses.replace(_7B, layers=40, width=5120, heads=40, kv_heads=40, ffn=13824),
    "32b": dataclasses.replace(_7B, layers=64, width=5120, heads=40, kv_heads=8, ffn=27648),
}

WEIGHTS: Table = {
    **{path: row for path, row in hf_config.WEIGHTS.items() if not path.startswith("layers/")},
    **{f"layers/{name}": hf_config.WEIGHTS[f"layers/{name}"] for name in "qkvo"},
    "layers/q_norm": (LAYER + "self_attn.q_norm.weight", "(N H) -> N H"),
    "layers/k_norm": (LAYER + "self_attn.k_norm.weight", "(K H) -> K H"),
    "layers/attn_post_norm": (LAYER + "post_attention_layernorm.weight", "D -> D"),
    **{f"layers/{name}": hf_config.WEIGHTS[f"layers/{name}"] for name in ("gate", "up", "down")},
    "layers/mlp_post_norm": (LAYER + "post_feedforward_layernorm.weight", "D -> D"),
}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of config.json."""
    return hf_config.write_settings(config, ARCHITECTURE)


def from_hf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json says.

    Raises:
      ValueError: a setting that the decoder does not have (rope type, biases, activation).
    """
    expected = {"hidden_act": "silu", "attention_bias": False, "clip_qkv": None}
    hf_config.refuse(settings, MODEL_TYPE, expected)
    defaults = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
    fields = hf_config.read_fields(settings, defaults)
    rope = hf_config.read_rope({**defaults, **settings}, MODEL_TYPE)
    return {**fields, **rope, "qk_norm": "whole", "norms": "after"}

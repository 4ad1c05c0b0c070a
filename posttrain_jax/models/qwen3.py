"""Qwen3, the dense sizes (arXiv 2505.09388), as Hugging Face's Qwen3ForCausalLM.

Queries and keys are normalised over a head, whose width is not width / heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from posttrain_jax.models import hf_config
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.layout import Table

MODEL_TYPE = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"

_8B = ModelConfig(
    vocab_size=151936,
    layers=36,
    width=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=12288,
    family="qwen3",
    rope_theta=1e6,
    norm_eps=1e-6,
    tied=False,
    max_length=40960,
    qk_norm="head",
    param_dtype="bfloat16",
    dtype="bfloat16",
)

# Qwen/Qwen3-0.6B and so on, config.json (the -Base models have max_position_embeddings 32768).
SIZES: dict[str, ModelConfig] = {
    "0.6b": dataclasses.replace(_8B, layers=28, width=1024, heads=16, ffn=3072, tied=True),
    "1.7b": dataclasses.replace(_8B, layers=28, width=2048, heads=16, ffn=6144, tied=True),
    "4b": dataclasses.replace(_8B, width=2560, ffn=9728, tied=True),
    "8b": _8B,
    "14b": dataclasses.replace(_8B, layers=40, width=5120, heads=40, ffn=17408),
    "32b": dataclasses.replace(_8B, layers=64, width=5120, heads=64, ffn=25600),
}

WEIGHTS: Table = {**hf_config.WEIGHTS, **hf_config.HEAD_NORMS}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of config.json."""
    settings = hf_config.write_settings(config, ARCHITECTURE)
    return {**settings, "use_sliding_window": False, "max_window_layers": config.layers}


def from_hf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json says.

    Raises:
      ValueError: a setting that the decoder does not have (rope type, biases, windows).
    """
    hf_config.refuse(settings, MODEL_TYPE, {"hidden_act": "silu", "attention_bias": False})
    hf_config.refuse_windows(settings, MODEL_TYPE)
    defaults = {"max_position_embeddings": 32768, "head_dim": 128}
    fields = hf_config.read_fields(settings, defaults)
    rope = hf_config.read_rope({**defaults, **settings}, MODEL_TYPE)
    return {**fields, **rope, "qk_norm": "head"}

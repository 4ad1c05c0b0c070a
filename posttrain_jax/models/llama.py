"""The Llama family (and SmolLM2): published sizes, and Hugging Face's LlamaForCausalLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from posttrain_jax.models import hf_config
from posttrain_jax.models.config import ModelConfig, RopeScaling
from posttrain_jax.models.layout import Table

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"

# HuggingFaceTB/SmolLM2-135M, -360M and -1.7B (and -Instruct), config.json; pad_id is
# <|endoftext|>, because the padding id of their tokenizer is its end-of-turn token.
_SMOLLM2 = ModelConfig(
    vocab_size=49152,
    layers=30,
    width=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    rope_theta=100000.0,
    norm_eps=1e-5,
    tied=True,
    max_length=8192,
    pad_id=0,
)
# meta-llama/Llama-2-70b, Meta-Llama-3-8B, Llama-3.1-8B, -70B, -405B, Llama-3.2-1B, -3B and
# Llama-3.3-70B-Instruct, config.json; sizes also in arXiv 2407.21783, Table 3.
_LLAMA31 = ModelConfig(
    vocab_size=128256,
    layers=32,
    width=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    rope_theta=500000.0,
    rope=RopeScaling("llama3", 8.0, original_length=8192),
    norm_eps=1e-5,
    tied=False,
    max_length=131072,
    param_dtype="bfloat16",
    dtype="bfloat16",
)
_LLAMA31_70B = dataclasses.replace(_LLAMA31, layers=80, width=8192, heads=64, ffn=28672)
_LLAMA32_1B = dataclasses.replace(
    _LLAMA31,
    layers=16,
    width=2048,
    head_dim=64,
    ffn=8192,
    rope=RopeScaling("llama3", 32.0, original_length=8192),
    tied=True,
)

_LLAMA2_70B = dataclasses.replace(
    _LLAMA31_70B, vocab_size=32000, rope_theta=10000.0, rope=None, max_length=4096
)

SIZES: dict[str, ModelConfig] = {
    "smollm2-135m": _SMOLLM2,
    "smollm2-360m": dataclasses.replace(
        _SMOLLM2, layers=32, width=960, heads=15, kv_heads=5, ffn=2560
    ),
    "smollm2-1.7b": dataclasses.replace(
        _SMOLLM2, layers=24, width=2048, heads=32, kv_heads=32, ffn=8192, rope_theta=130000.0
    ),
    "2-70b": _LLAMA2_70B,
    "3-8b": dataclasses.replace(_LLAMA31, rope=None, max_length=8192),
    "3.1-8b": _LLAMA31,
    "3.1-70b": _LLAMA31_70B,
    "3.1-405b": dataclasses.replace(_LLAMA31, layers=126, width=16384, heads=128, ffn=53248),
    "3.2-1b": _LLAMA32_1B,
    "3.2-3b": dataclasses.replace(_LLAMA32_1B, layers=28, width=3072, heads=24, head_dim=128),
    "3.3-70b": _LLAMA31_70B,
}

WEIGHTS: Table = hf_config.WEIGHTS


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of config.json."""
    return {**hf_config.write_settings(config, ARCHITECTURE), "mlp_bias": False}


def from_hf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json says.

    Raises:
      ValueError: a setting that the decoder does not have (rope type, biases, activation).
    """
    # rope_interleaved is nanotron's, which made SmolLM2; true is another rotation.
    expected = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    hf_config.refuse(settings, MODEL_TYPE, {**expected, "rope_interleaved": False})
    defaults = {"max_position_embeddings": 2048}
    fields = hf_config.read_fields(settings, defaults)
    return {**fields, **hf_config.read_rope({**defaults, **settings}, MODEL_TYPE)}

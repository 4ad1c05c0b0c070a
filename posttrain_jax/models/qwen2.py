"""Qwen2.5 and Qwen2.5-Math (arXiv 2412.15115, 2409.12122), as Hugging Face's Qwen2ForCausalLM.

Queries, keys and values have biases; the sizes up to 3B tie their embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from posttrain_jax.models import hf_config
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.hf_config import LAYER
from posttrain_jax.models.layout import Table

MODEL_TYPE = "qwen2"
ARCHITECTURE = "Qwen2ForCausalLM"

_7B = ModelConfig(
    vocab_size=152064,
    layers=28,
    width=3584,
    heads=28,
    kv_heads=4,
    head_dim=128,
    ffn=18944,
    family="qwen2",
    rope_theta=1e6,
    norm_eps=1e-6,
    tied=False,
    max_length=131072,
    qkv_bias=True,
    param_dtype="bfloat16",
    dtype="bfloat16",
)
_1_5B = dataclasses.replace(
    _7B, vocab_size=151936, width=1536, heads=12, kv_heads=2, ffn=8960, tied=True
)
_72B = dataclasses.replace(
    _7B, layers=80, width=8192, heads=64, kv_heads=8, ffn=29568, norm_eps=1e-5
)
_14B = dataclasses.replace(_72B, layers=48, width=5120, heads=40, ffn=13824)

_MATH = {"rope_theta": 1e4, "max_length": 4096}

# Qwen/Qwen2.5-0.5B and so on, config.json of the base models (the instruct models from 14B on have
# rms_norm_eps 1e-6, and max_position_embeddings is 32768 in all of them).
SIZES: dict[str, ModelConfig] = {
    "2.5-0.5b": dataclasses.replace(
        _1_5B, layers=24, width=896, heads=14, head_dim=64, ffn=4864, max_length=32768
    ),
    "2.5-1.5b": _1_5B,
    "2.5-3b": dataclasses.replace(
        _1_5B, layers=36, width=2048, heads=16, ffn=11008, max_length=32768
    ),
    "2.5-7b": _7B,
    "2.5-14b": _14B,
    "2.5-32b": dataclasses.replace(_14B, layers=64, ffn=27648),
    "2.5-72b": _72B,
    "2.5-math-1.5b": dataclasses.replace(_1_5B, **_MATH),
    "2.5-math-7b": dataclasses.replace(_7B, **_MATH),
    "2.5-math-72b": dataclasses.replace(_72B, **_MATH),
}

WEIGHTS: Table = {
    **hf_config.WEIGHTS,
    "layers/q_bias": (LAYER + "self_attn.q_proj.bias", "(N H) -> N H"),
    "layers/k_bias": (LAYER + "self_attn.k_proj.bias", "(K H) -> K H"),
    "layers/v_bias": (LAYER + "self_attn.v_proj.bias", "(K H) -> K H"),
}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of config.json."""
    settings = hf_config.write_settings(config, ARCHITECTURE)
    del settings["attention_bias"]  # no setting of this family: its biases are always there
    return {**settings, "use_sliding_window": False, "max_window_layers": config.layers}


def from_hf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json says.

    Raises:
      ValueError: a setting that the decoder does not have (rope type, activation, windows).
    """
    hf_config.refuse(settings, MODEL_TYPE, {"hidden_act": "silu", "use_mrope": False})
    hf_config.refuse_windows(settings, MODEL_TYPE)
    defaults = {"max_position_embeddings": 32768}
    fields = hf_config.read_fields(settings, defaults)
    rope = hf_config.read_rope({**defaults, **settings}, MODEL_TYPE)
    return {**fields, **rope, "qkv_bias": True}

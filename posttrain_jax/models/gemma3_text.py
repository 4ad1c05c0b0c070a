"""Gemma 3's text decoder (arXiv 2503.19786), as Hugging Face's Gemma3ForCausalLM.

Norms around each half of a layer with weights stored less 1, five local layers to one global,
embeddings scaled by sqrt(width). Left out: the vision tower (model_type `gemma3`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from posttrain_jax.models import hf_config
from posttrain_jax.models.config import ModelConfig, RopeScaling
from posttrain_jax.models.hf_config import LAYER
from posttrain_jax.models.layout import Table

MODEL_TYPE = "gemma3_text"
ARCHITECTURE = "Gemma3ForCausalLM"

_1B = ModelConfig(
    vocab_size=262144,
    layers=26,
    width=1152,
    heads=4,
    kv_heads=1,
    head_dim=256,
    ffn=6912,
    family="gemma3_text",
    rope_theta=1e6,
    norm_eps=1e-6,
    tied=True,
    max_length=32768,
    qk_norm="head",
    norms="around",
    norm_offset=1.0,
    activation="gelu",
    embed_scale=1152**0.5,
    window=512,
    global_every=6,
    local_rope_theta=1e4,
    param_dtype="bfloat16",
    dtype="bfloat16",
)
_4B = dataclasses.replace(
    _1B,
    vocab_size=262208,
    layers=34,
    width=2560,
    heads=8,
    kv_heads=4,
    ffn=10240,
    rope=RopeScaling("linear", 8.0),
    max_length=131072,
    embed_scale=2560**0.5,
    window=1024,
)

# google/gemma-3-1b-pt, config.json, and text_config in that of -4b-pt, -12b-pt and -27b-pt.
SIZES: dict[str, ModelConfig] = {
    "1b": _1B,
    "4b": _4B,
    "12b": dataclasses.replace(
        _4B, layers=48, width=3840, heads=16, kv_heads=8, ffn=15360, embed_scale=3840**0.5
    ),
    "27b": dataclasses.replace(
        _4B,
        layers=62,
        width=5376,
        heads=32,
        kv_heads=16,
        head_dim=128,
        ffn=21504,
        embed_scale=5376**0.5,
        query_scale=168**-0.5,
    ),
}

WEIGHTS: Table = {
    **hf_config.WEIGHTS,
    **hf_config.HEAD_NORMS,
    "layers/attn_post_norm": (LAYER + "post_attention_layernorm.weight", "D -> D"),
    "layers/mlp_norm": (LAYER + "pre_feedforward_layernorm.weight", "D -> D"),
    "layers/mlp_post_norm": (LAYER + "post_feedforward_layernorm.weight", "D -> D"),
}

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of config.json.

    Raises:
      ValueError: a scale of the scores that is not 1 / sqrt of a whole number.
    """
    settings = hf_config.write_settings(config, ARCHITECTURE)
    local = {"rope_theta": config.local_rope_theta, "rope_type": "default"}
    scalar = round(config.query_scale**-2) if config.query_scale else config.head_dim
    if config.query_scale and abs(scalar**-0.5 / config.query_scale - 1) > 1e-6:
        raise ValueError(
            f"query_scale={config.query_scale}: expected 1 / sqrt of a whole number, which is what "
            "config.json of gemma3_text can say (model.query_scale)"
        )
    del settings["hidden_act"]
    return {
        **settings,
        "rope_parameters": {_GLOBAL: settings["rope_parameters"], _LOCAL: local},
        "rope_local_base_freq": config.local_rope_theta,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": config.window,
        "sliding_window_pattern": config.global_every,
        "layer_types": [_LOCAL if config.is_local(i) else _GLOBAL for i in range(config.layers)],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def from_hf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json says.

    Raises:
      ValueError: a setting that the decoder does not have (rope type, soft caps, layer types).
    """
    expected = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }
    hf_config.refuse(settings, MODEL_TYPE, expected)
    defaults = {"max_position_embeddings": 131072, "tie_word_embeddings": True, "head_dim": 256}
    fields = hf_config.read_fields(settings, defaults)
    scalar = settings.get("query_pre_attn_scalar") or 256
    return {
        **fields,
        **_read_rope({**defaults, **settings}),
        "qk_norm": "head",
        "norms": "around",
        "norm_offset": 1.0,
        "activation": "gelu",
        "embed_scale": fields["width"] ** 0.5,
        "query_scale": 0.0 if scalar == fields["head_dim"] else scalar**-0.5,
        "window": settings["sliding_window"],
        "global_every": _global_every(settings),
    }


def _read_rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary fields: of global layers, which alone are scaled, and of local ones."""
    newer = settings.get("rope_parameters") or {}
    both = {kind: newer.get(kind) or {} for kind in (_GLOBAL, _LOCAL)}
    said = {**both[_GLOBAL], **(settings.get("rope_scaling") or {})}
    length = settings["max_position_embeddings"]
    hf_config.read_scaling(both[_LOCAL], f"{MODEL_TYPE} ({_LOCAL})", length, ())
    theta = said.get("rope_theta") or settings.get("rope_theta") or 1e6
    local = both[_LOCAL].get("rope_theta") or settings.get("rope_local_base_freq") or 1e4
    return {
        "rope_theta": float(theta),
        "rope": hf_config.read_scaling(said, MODEL_TYPE, length, ("linear",)),
        "local_rope_theta": float(local),
    }


def _global_every(settings: Mapping[str, Any]) -> int:
    """The period of the global layers.

    Raises:
      ValueError: layer types without a period.
    """
    types, layers = settings.get("layer_types"), settings["num_hidden_layers"]
    if types is None:
        return settings.get("sliding_window_pattern") or 6
    every = types.index(_GLOBAL) + 1 if _GLOBAL in types else layers + 1
    expected = [_LOCAL if (i + 1) % every else _GLOBAL for i in range(layers)]
    if types != expected:
        raise ValueError(
            f"config.json: layer_types is {types}; the {MODEL_TYPE} family has {_GLOBAL!r} at "
            f"every n-th of its {layers} layers and {_LOCAL!r} elsewhere"
        )
    return every

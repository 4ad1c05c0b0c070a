"""The Llama family: published sizes, and its weights and config under Hugging Face's names.

The decoder itself is `transformer.py`. Left out: Llama 3.1's rope scaling (`rope_type` "llama3"),
which changes the low frequencies at every position: its sizes serve planning, and reading such a
checkpoint is refused.
"""

from collections.abc import Mapping
from typing import Any

from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.layout import Table

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"

SIZES: dict[str, ModelConfig] = {
    # HuggingFaceTB/SmolLM2-135M(-Instruct), config.json; pad_id is <|endoftext|>, because the
    # padding id of its tokenizer is its end-of-turn token.
    "smollm2-135m": ModelConfig(
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
    ),
    # Llama 3 (arXiv 2407.21783), Table 3 and section 3.2; context before 3.1's rope scaling.
    "3.1-8b": ModelConfig(
        vocab_size=128256,
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        rope_theta=500000.0,
        tied=False,
        max_length=8192,
        param_dtype="bfloat16",
        dtype="bfloat16",
    ),
    "3.1-70b": ModelConfig(
        vocab_size=128256,
        layers=80,
        width=8192,
        heads=64,
        kv_heads=8,
        head_dim=128,
        ffn=28672,
        rope_theta=500000.0,
        tied=False,
        max_length=8192,
        param_dtype="bfloat16",
        dtype="bfloat16",
    ),
}

_LAYER = "model.layers.{layer}."
WEIGHTS: Table = {
    "embed": ("model.embed_tokens.weight", "V D -> V D"),
    "layers/attn_norm": (_LAYER + "input_layernorm.weight", "D -> D"),
    "layers/q": (_LAYER + "self_attn.q_proj.weight", "(N H) D -> D N H"),
    "layers/k": (_LAYER + "self_attn.k_proj.weight", "(K H) D -> D K H"),
    "layers/v": (_LAYER + "self_attn.v_proj.weight", "(K H) D -> D K H"),
    "layers/o": (_LAYER + "self_attn.o_proj.weight", "D (N H) -> N H D"),
    "layers/mlp_norm": (_LAYER + "post_attention_layernorm.weight", "D -> D"),
    "layers/gate": (_LAYER + "mlp.gate_proj.weight", "F D -> D F"),
    "layers/up": (_LAYER + "mlp.up_proj.weight", "F D -> D F"),
    "layers/down": (_LAYER + "mlp.down_proj.weight", "D F -> F D"),
    "final_norm": ("model.norm.weight", "D -> D"),
    "head": ("lm_head.weight", "V D -> D V"),
}
"""Our tree <-> Hugging Face's LlamaForCausalLM (layouts: see `layout.py`)."""

_FIELDS = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "max_length": "max_position_embeddings",
}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of config.json."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        # transformers 4 reads rope_theta, transformers 5 rope_parameters.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": config.param_dtype,
    }


def from_hf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json says.

    Raises:
      ValueError: a setting that the decoder does not have (rope scaling, biases, activation).
    """
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    has = {
        "rope type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "hidden_act": (settings.get("hidden_act", "silu"), "silu"),
        "attention_bias": (settings.get("attention_bias", False), False),
        "mlp_bias": (settings.get("mlp_bias", False), False),
    }
    for name, (got, expected) in has.items():
        if got != expected:
            raise ValueError(f"config.json: {name} is {got!r}; the llama family has {expected!r}")
    heads = settings["num_attention_heads"]
    defaults = {
        "num_key_value_heads": heads,
        "head_dim": settings["hidden_size"] // heads,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
    }
    # An explicit null means the default too (transformers 4 wrote "head_dim": null).
    said = {name: value for name, value in settings.items() if value is not None}
    merged = {**defaults, **said}
    fields = {ours: merged[theirs] for ours, theirs in _FIELDS.items()}
    theta = rope.get("rope_theta", settings.get("rope_theta")) or 10000.0
    return {**fields, "rope_theta": float(theta)}

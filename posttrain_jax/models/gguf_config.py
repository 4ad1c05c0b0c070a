"""The `ModelConfig` fields in a GGUF file's metadata, by architecture.

Names of keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what is not in the
metadata is as llama.cpp has it (`src/models/<architecture>.cpp`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from posttrain_jax.data.gguf_file import GGUFFile
from posttrain_jax.models.config import RopeScaling
from posttrain_jax.models.dequantise import dequantise
from posttrain_jax.models.rope import inverse_frequencies

FACTORS = "rope_freqs.weight"
LLAMA3_LENGTH = 8192
"""`original_max_position_embeddings` of every Llama 3.1, 3.2 and 3.3."""


def _gemma3(said: Callable[..., Any], width: int) -> dict[str, Any]:
    # 27B, the one with 62 layers, scales scores by width / heads.
    per_head = width // said("attention.head_count")
    scale = per_head**-0.5 if said("block_count") == 62 else 0.0
    return {
        "norms": "around",
        "norm_offset": 1.0,
        "qk_norm": "head",
        "activation": "gelu",
        "embed_scale": width**0.5,
        "query_scale": scale,
        "window": said("attention.sliding_window"),
        "global_every": 6,
        "local_rope_theta": 10000.0,
    }


def _qwen3moe(said: Callable[..., Any], width: int) -> dict[str, Any]:
    experts = {
        "count": said("expert_count"),
        "active": said("expert_used_count"),
        "ffn": said("expert_feed_forward_length"),
    }
    return {"qk_norm": "head", "experts": experts}


SWITCHES: Mapping[str, tuple[str, Callable[[Callable[..., Any], int], dict[str, Any]]]] = {
    "llama": ("llama", lambda said, width: {}),
    "qwen2": ("qwen2", lambda said, width: {"qkv_bias": True}),
    "qwen3": ("qwen3", lambda said, width: {"qk_norm": "head"}),
    "qwen3moe": ("qwen3_moe", _qwen3moe),
    "olmo2": ("olmo2", lambda said, width: {"qk_norm": "whole", "norms": "after"}),
    "gemma3": ("gemma3_text", _gemma3),
}
"""Architecture -> (our family, what it sets besides the sizes)."""


def config_fields(file: GGUFFile) -> dict[str, Any]:
    """The `ModelConfig` fields in the file's metadata.

    Raises:
      ValueError: another architecture, a missing key, or rope scaling that is not known.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in SWITCHES:
        hint = (
            " (it keeps one of the projections of latent attention in two halves; use the model's "
            "folder of safetensors)"
            if architecture == "deepseek2"
            else ""
        )
        raise ValueError(
            f"{file.path}: architecture is {architecture!r}, which is not read{hint}; there are: "
            f"{', '.join(SWITCHES)}"
        )

    def said(key: str, *default: Any) -> Any:
        full = f"{architecture}.{key}"
        if full not in file.metadata and not default:
            raise ValueError(f"{file.path}: expected the key {full} in its metadata, got none")
        return file.metadata.get(full, *default)

    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path}: 1 tensors missing: token_embd.weight")
    family, switches = SWITCHES[str(architecture)]
    width, heads = said("embedding_length"), said("attention.head_count")
    fields = {
        "family": family,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "layers": said("block_count"),
        "width": width,
        "heads": heads,
        "kv_heads": said("attention.head_count_kv", heads),
        "head_dim": said("attention.key_length", width // heads),
        "ffn": said("feed_forward_length"),
        "rope_theta": said("rope.freq_base", 10000.0),
        "norm_eps": said("attention.layer_norm_rms_epsilon"),
        "tied": "output.weight" not in file.tensors,
        "max_length": said("context_length"),
        **switches(said, width),
    }
    rotated = said("rope.dimension_count", fields["head_dim"])
    if rotated != fields["head_dim"]:
        raise ValueError(
            f"{file.path}: {architecture}.rope.dimension_count: expected the head's width "
            f"{fields['head_dim']}, got {rotated}"
        )
    scaling = _scaling(file, said, fields)
    return {**fields, "rope": scaling} if scaling else fields


def _scaling(file: GGUFFile, said: Callable[..., Any], fields: Mapping[str, Any]):
    """How the file scales its rotary frequencies, or None."""
    if FACTORS in file.tensors:
        return _llama3(file, fields)
    kind, factor = said("rope.scaling.type", "none"), said("rope.scaling.factor", 1.0)
    if kind == "none" or factor == 1.0:
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind == "yarn":
        length = said("rope.scaling.original_context_length")
        return RopeScaling("yarn", factor, length, attention_factor=1 + 0.1 * math.log(factor))
    raise ValueError(f"{file.path}: rope scaling {kind!r}: expected none, linear or yarn")


def _llama3(file: GGUFFile, fields: Mapping[str, Any]) -> RopeScaling:
    """The Llama 3 scaling whose factors, one a pair, the file holds.

    Raises:
      ValueError: they are not those of any such scaling.
    """
    info = file.tensors[FACTORS]
    factors = dequantise(file.raw(FACTORS), info.kind, info.shape).astype(np.float32)
    scaling = RopeScaling("llama3", round(float(factors.max()), 3), LLAMA3_LENGTH)
    head, theta = fields["head_dim"], fields["rope_theta"]
    plain, scaled = (inverse_frequencies(head, theta, s) for s in (None, scaling))
    expected = np.asarray(plain / scaled)
    if expected.shape != factors.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise ValueError(
            f"{file.path}: tensor {FACTORS}: expected the factors of Llama 3's scaling by "
            f"{scaling.factor} from {LLAMA3_LENGTH} tokens, got others"
        )
    return scaling

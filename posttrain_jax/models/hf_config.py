"""What families share of Hugging Face's config.json and tensor names.

Both dialects of rotary settings are read, and both are written, so that transformers 4 and 5 and
vLLM read the file:

  transformers 4   "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", ...} (once "type")
  transformers 5   "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", ...}

A setting that the decoder does not have is refused by name: see `refuse`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.models.config import ModelConfig, RopeScaling

LAYER = "model.layers.{layer}."
WEIGHTS: dict[str, tuple[str, str]] = {
    "embed": ("model.embed_tokens.weight", "V D -> V D"),
    "layers/attn_norm": (LAYER + "input_layernorm.weight", "D -> D"),
    "layers/q": (LAYER + "self_attn.q_proj.weight", "(N H) D -> D N H"),
    "layers/k": (LAYER + "self_attn.k_proj.weight", "(K H) D -> D K H"),
    "layers/v": (LAYER + "self_attn.v_proj.weight", "(K H) D -> D K H"),
    "layers/o": (LAYER + "self_attn.o_proj.weight", "D (N H) -> N H D"),
    "layers/mlp_norm": (LAYER + "post_attention_layernorm.weight", "D -> D"),
    "layers/gate": (LAYER + "mlp.gate_proj.weight", "F D -> D F"),
    "layers/up": (LAYER + "mlp.up_proj.weight", "F D -> D F"),
    "layers/down": (LAYER + "mlp.down_proj.weight", "D F -> F D"),
    "final_norm": ("model.norm.weight", "D -> D"),
    "head": ("lm_head.weight", "V D -> D V"),
}
"""The decoder of Llama, which the other families extend (layouts: see `layout.py`)."""

HEAD_NORMS: dict[str, tuple[str, str]] = {
    "layers/q_norm": (LAYER + "self_attn.q_norm.weight", "H -> H"),
    "layers/k_norm": (LAYER + "self_attn.k_norm.weight", "H -> H"),
}
"""Norms of queries and keys over a head."""

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


def refuse(settings: Mapping[str, Any], family: str, expected: Mapping[str, Any]) -> None:
    """Raise ValueError where a setting is neither absent, nor null, nor what the family has."""
    for name, value in expected.items():
        got = settings.get(name)
        if got is not None and got != value:
            raise ValueError(f"config.json: {name} is {got!r}; the {family} family has {value!r}")


def refuse_windows(settings: Mapping[str, Any], family: str) -> None:
    """Raise ValueError where layers have a sliding window (Qwen has the settings, unused)."""
    refuse(settings, family, {"use_sliding_window": False})
    for kind in settings.get("layer_types") or ():
        if kind != "full_attention":
            raise ValueError(
                f"config.json: layer_types has {kind!r}; the {family} family has 'full_attention' "
                "only"
            )


def read_fields(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that all families have.

    Args:
      settings: config.json; null is as good as absent (transformers 4 wrote "head_dim": null).
      defaults: what the family's own class in transformers takes where a setting is absent.

    Raises:
      KeyError: a setting that has no default.
    """
    said = {name: value for name, value in settings.items() if value is not None}
    heads = said["num_attention_heads"]
    merged = {
        "num_key_value_heads": heads,
        "head_dim": said["hidden_size"] // heads,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        **defaults,
        **said,
    }
    return {ours: merged[theirs] for ours, theirs in _FIELDS.items()}


def write_settings(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """The settings that all families have, and the rotary ones in both dialects."""
    return {
        "architectures": [architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": config.param_dtype,
    }


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `rope_parameters`."""
    scaling = None if config.rope is None else write_scaling(config.rope)
    parameters = {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": parameters,
    }


def read_rope(
    settings: Mapping[str, Any], family: str, kinds: Sequence[str] = ("linear", "llama3", "yarn")
) -> dict[str, Any]:
    """`rope_theta` and `rope` of `ModelConfig`, from either dialect or both.

    Raises:
      ValueError: a rope type that the family does not have, or a setting of it that is missing.
    """
    newer = settings.get("rope_parameters") or {}
    said = {**newer, **(settings.get("rope_scaling") or {})}
    theta = newer.get("rope_theta") or settings.get("rope_theta") or 10000.0
    rope = read_scaling(said, family, settings["max_position_embeddings"], kinds)
    return {"rope_theta": float(theta), "rope": rope}


def read_scaling(
    said: Mapping[str, Any], family: str, length: int, kinds: Sequence[str]
) -> RopeScaling | None:
    """One rotary dict (its theta is not looked at).

    Args:
      said: `rope_type` or `type`, and what that type needs.
      family: for messages.
      length: `max_position_embeddings`, which transformers takes for the old length if none is
        said.
      kinds: the types besides "default" that the family has.

    Raises:
      ValueError: see `read_rope`.
    """
    kind = said.get("rope_type") or said.get("type") or "default"
    if kind not in ("default", *kinds):
        has = ", ".join(map(repr, ("default", *kinds)))
        raise ValueError(f"config.json: rope type is {kind!r}; the {family} family has {has}")
    if (part := said.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(
            f"config.json: partial_rotary_factor is {part!r}; the {family} family has 1.0"
        )
    if kind == "default":
        return None
    needed = {"factor": "factor"}
    if kind == "llama3":
        needed |= {"low_factor": "low_freq_factor", "high_factor": "high_freq_factor"}
    for name in needed.values():
        if said.get(name) is None:
            raise ValueError(f"config.json: rope type {kind!r} needs {name}, got {dict(said)}")
    fields: dict[str, Any] = {ours: float(said[theirs]) for ours, theirs in needed.items()}
    if kind == "linear":
        return RopeScaling(kind, **fields)
    fields["original_length"] = int(said.get("original_max_position_embeddings") or length)
    if kind == "yarn":
        fields |= _read_yarn(said, fields["factor"])
    return RopeScaling(kind, **fields)


def _read_yarn(said: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The fields of YaRN alone (DeepSeek-V3's modeling_deepseek.py, yarn_get_mscale)."""
    mscale, all_dim = said.get("mscale"), said.get("mscale_all_dim")
    attention = said.get("attention_factor")
    if attention is None and mscale and all_dim:
        attention = _mscale(factor, mscale) / _mscale(factor, all_dim)
    return {
        "beta_fast": float(said.get("beta_fast") or 32),
        "beta_slow": float(said.get("beta_slow") or 1),
        "truncate": said.get("truncate", True) is not False,
        "attention_factor": float(_mscale(factor) if attention is None else attention),
        "score_factor": float(_mscale(factor, all_dim) ** 2) if all_dim else 1.0,
    }


def write_scaling(rope: RopeScaling) -> dict[str, Any]:
    """The rotary dict of a scaling, without theta."""
    said: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "linear":
        return said
    said["original_max_position_embeddings"] = rope.original_length
    if rope.kind == "llama3":
        return {**said, "low_freq_factor": rope.low_factor, "high_freq_factor": rope.high_factor}
    said |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
    if not rope.truncate:
        said["truncate"] = False
    if rope.score_factor != 1.0:
        scores = math.sqrt(rope.score_factor)
        said["mscale"] = _inverse_mscale(rope.factor, rope.attention_factor * scores)
        said["mscale_all_dim"] = _inverse_mscale(rope.factor, scores)
    elif rope.attention_factor != _mscale(rope.factor):
        said["attention_factor"] = rope.attention_factor
    return said


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _inverse_mscale(factor: float, value: float) -> float:
    """The weight that `_mscale` makes `value` of; people choose it with few digits."""
    return round((value - 1.0) / (0.1 * math.log(factor)), 9)

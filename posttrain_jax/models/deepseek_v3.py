"""DeepSeek-V3 and R1 (arXiv 2412.19437), as Hugging Face's DeepseekV3ForCausalLM.

Latent attention, the first layers dense, then a sigmoid router over experts in groups beside shared
experts; Moonlight (arXiv 2502.16982) has the same layers in small. Left out: the layers for
multi-token prediction, which published checkpoints have behind the last one. Refused: other
routers (`topk_method`, `scoring_func`) and sparse layers apart from each other (`moe_layer_freq`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_jax.models import hf_config
from posttrain_jax.models.config import Experts, Latent, ModelConfig, RopeScaling
from posttrain_jax.models.hf_config import LAYER
from posttrain_jax.models.layout import Table
from posttrain_jax.models.qwen3_moe import EXPERTS

MODEL_TYPE = "deepseek_v3"
ARCHITECTURE = "DeepseekV3ForCausalLM"

SIZES: dict[str, ModelConfig] = {
    # deepseek-ai/DeepSeek-V3(-Base) and DeepSeek-R1(-Zero), config.json; mscale and mscale_all_dim
    # are 1, and 0.1 ln 40 + 1 squared is what scores are multiplied with.
    "671b": ModelConfig(
        vocab_size=129280,
        layers=61,
        width=7168,
        heads=128,
        kv_heads=128,
        head_dim=64,
        ffn=18432,
        family="deepseek_v3",
        rope_theta=10000.0,
        rope=RopeScaling(
            "yarn", 40.0, original_length=4096, attention_factor=1.0,
            score_factor=1.8738542070926265,
        ),
        norm_eps=1e-6,
        tied=False,
        max_length=163840,
        latent=Latent(query_rank=1536, rank=512, rope_dim=64, plain_dim=128, value_dim=128),
        experts=Experts(
            count=256, active=8, ffn=2048, shared=1, first_dense=3, router="sigmoid", scale=2.5,
            groups=8, active_groups=4,
        ),
        param_dtype="bfloat16",
        dtype="bfloat16",
    ),
    # moonshotai/Moonlight-16B-A3B, config.json.
    "moonlight-16b": ModelConfig(
        vocab_size=163840,
        layers=27,
        width=2048,
        heads=16,
        kv_heads=16,
        head_dim=64,
        ffn=11264,
        family="deepseek_v3",
        rope_theta=50000.0,
        norm_eps=1e-5,
        tied=False,
        max_length=8192,
        latent=Latent(query_rank=0, rank=512, rope_dim=64, plain_dim=128, value_dim=128),
        experts=Experts(
            count=64, active=6, ffn=1408, shared=2, first_dense=1, router="sigmoid", scale=2.446,
        ),
        param_dtype="bfloat16",
        dtype="bfloat16",
    ),
}  # fmt: skip

_ATTENTION = {
    "attn_norm": ("input_layernorm.weight", "D -> D"),
    "q": ("self_attn.q_proj.weight", "(N h) D -> D N h"),
    "q_a": ("self_attn.q_a_proj.weight", "q D -> D q"),
    "q_a_norm": ("self_attn.q_a_layernorm.weight", "q -> q"),
    "q_b": ("self_attn.q_b_proj.weight", "(N h) q -> q N h"),
    "kv_a": ("self_attn.kv_a_proj_with_mqa.weight", "a D -> D a"),
    "kv_a_norm": ("self_attn.kv_a_layernorm.weight", "c -> c"),
    "kv_b": ("self_attn.kv_b_proj.weight", "(N b) c -> c N b"),
    "o": ("self_attn.o_proj.weight", "D (N v) -> N v D"),
    "mlp_norm": ("post_attention_layernorm.weight", "D -> D"),
}
_DENSE = {
    "gate": ("mlp.gate_proj.weight", "F D -> D F"),
    "up": ("mlp.up_proj.weight", "F D -> D F"),
    "down": ("mlp.down_proj.weight", "D F -> F D"),
}
_SPARSE = {
    "router_bias": ("mlp.gate.e_score_correction_bias", "E -> E"),
    "shared_gate": ("mlp.shared_experts.gate_proj.weight", "s D -> D s"),
    "shared_up": ("mlp.shared_experts.up_proj.weight", "s D -> D s"),
    "shared_down": ("mlp.shared_experts.down_proj.weight", "D s -> s D"),
}
WEIGHTS: Table = {
    **{name: hf_config.WEIGHTS[name] for name in ("embed", "final_norm", "head")},
    **{f"dense_layers/{n}": (LAYER + t, form) for n, (t, form) in (_ATTENTION | _DENSE).items()},
    **{f"layers/{n}": (LAYER + t, form) for n, (t, form) in (_ATTENTION | _SPARSE).items()},
    **EXPERTS,
}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of config.json."""
    e, latent = config.experts, config.latent
    assert e is not None and latent is not None
    return {
        **hf_config.write_settings(config, ARCHITECTURE),
        "q_lora_rank": latent.query_rank or None,
        "kv_lora_rank": latent.rank,
        "qk_rope_head_dim": latent.rope_dim,
        "qk_nope_head_dim": latent.plain_dim,
        "v_head_dim": latent.value_dim,
        "rope_interleave": latent.interleaved,
        "n_routed_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": e.ffn,
        "n_shared_experts": e.shared,
        "first_k_dense_replace": e.first_dense,
        "moe_layer_freq": 1,
        "norm_topk_prob": e.normalise,
        "routed_scaling_factor": e.scale,
        "n_group": e.groups,
        "topk_group": e.active_groups,
        "scoring_func": e.router,
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0,
    }


def from_hf(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelConfig` fields that a config.json says.

    Raises:
      ValueError: a setting that the decoder does not have (another router, biases, rope type).
    """
    expected = {
        "hidden_act": "silu",
        "attention_bias": False,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
    hf_config.refuse(settings, MODEL_TYPE, expected)
    said = {name: value for name, value in settings.items() if value is not None}
    latent = Latent(
        query_rank=said.get("q_lora_rank", 0),  # null: not compressed
        rank=said["kv_lora_rank"],
        rope_dim=said["qk_rope_head_dim"],
        plain_dim=said["qk_nope_head_dim"],
        value_dim=said["v_head_dim"],
        interleaved=said.get("rope_interleave", True),
    )
    experts = Experts(
        count=said["n_routed_experts"],
        active=said["num_experts_per_tok"],
        ffn=said["moe_intermediate_size"],
        shared=said.get("n_shared_experts", 0),
        first_dense=said.get("first_k_dense_replace", 0),
        router="sigmoid",
        normalise=said.get("norm_topk_prob", True),
        scale=float(said.get("routed_scaling_factor", 1.0)),
        groups=said.get("n_group", 1),
        active_groups=said.get("topk_group", 1),
    )
    defaults = {"max_position_embeddings": 4096}
    fields = hf_config.read_fields(settings, defaults)
    rope = hf_config.read_rope({**defaults, **settings}, MODEL_TYPE, ("yarn",))
    turned = {"kv_heads": fields["heads"], "head_dim": latent.rope_dim}
    return {**fields, **rope, **turned, "latent": latent, "experts": experts}

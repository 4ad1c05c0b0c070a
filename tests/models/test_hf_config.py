"""config.json: both dialects there and back, published files, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from posttrain_jax import registry
from posttrain_jax.models import ModelConfig, find_config
from posttrain_jax.models.config import RopeScaling
from posttrain_jax.models.hf_files import model_settings

FOLDERS = Path(__file__).parents[1] / "golden" / "families"
FAMILIES = ("llama", "qwen2", "qwen3", "olmo2", "gemma3_text")
MODULES = {name: registry.load("models", name) for name in FAMILIES}
ALL = [f"{family}:{size}" for family, module in MODULES.items() for size in module.SIZES]
OURS = {"dtype", "param_dtype", "pad_id"}  # not of the architecture

QWEN_72B = {  # Qwen/Qwen2.5-72B/config.json
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 8192, "initializer_range": 0.02,
    "intermediate_size": 29568, "max_position_embeddings": 131072, "max_window_layers": 80,
    "model_type": "qwen2", "num_attention_heads": 64, "num_hidden_layers": 80,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
LLAMA_32_3B = {  # meta-llama/Llama-3.2-3B/config.json
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 24, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 128256,
}  # fmt: skip
OLMO_32B = {  # allenai/OLMo-2-0325-32B/config.json
    "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 27648,
    "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 40,
    "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False,
    "torch_dtype": "float32", "use_cache": True, "vocab_size": 100352,
}  # fmt: skip
QWEN3_32B = {  # Qwen/Qwen3-32B/config.json
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 25600,
    "max_position_embeddings": 40960, "max_window_layers": 64, "model_type": "qwen3",
    "num_attention_heads": 64, "num_hidden_layers": 64, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GEMMA_27B = {  # the text_config of google/gemma-3-27b-pt/config.json, its defaults said
    "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504,
    "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
    "head_dim": 128, "query_pre_attn_scalar": 168, "sliding_window": 1024, "vocab_size": 262208,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "max_position_embeddings": 131072,
}  # fmt: skip


def read(settings):
    family = settings["model_type"]
    return ModelConfig(family=family, **MODULES[family].from_hf(settings))


def same(found, expected):
    return {k: v for k, v in vars(found).items() if k not in OURS} == {
        k: v for k, v in vars(expected).items() if k not in OURS
    }


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        (QWEN_72B, "qwen2:2.5-72b"), (LLAMA_32_3B, "llama:3.2-3b"), (OLMO_32B, "olmo2:32b"),
        (QWEN3_32B, "qwen3:32b"), (GEMMA_27B, "gemma3_text:27b"),
    ],
)  # fmt: skip
def test_published_config(settings, spec):
    assert same(read(settings), find_config(spec))


def only_older(settings):
    """As transformers 4 writes it, and before that ("type")."""
    settings = {k: v for k, v in settings.items() if k not in ("rope_parameters", "layer_types")}
    if settings["rope_scaling"]:
        scaling = dict(settings["rope_scaling"])
        settings["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
    return settings


def only_newer(settings):
    """As transformers 5 writes it."""
    gone = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
    return {k: v for k, v in settings.items() if k not in gone}


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("dialect", [dict, only_older, only_newer])
def test_round_trip_in_every_dialect(spec, dialect):
    config, module = find_config(spec), MODULES[spec.partition(":")[0]]
    assert same(read(json.loads(json.dumps(dialect(module.to_hf(config))))), config)


@pytest.mark.parametrize("folder", sorted(FOLDERS.iterdir()), ids=lambda folder: folder.name)
def test_what_transformers_wrote_comes_back_from_ours(folder):
    settings = json.loads((folder / "config.json").read_text())
    module = registry.load("models", settings["model_type"])
    fields = module.from_hf(settings)
    config = ModelConfig(family=settings["model_type"], **fields)
    assert module.from_hf(json.loads(json.dumps(module.to_hf(config)))) == fields
    newest = module.to_hf(config)
    if settings["model_type"] == "gemma3_text":  # its linear scaling is stored without a length
        assert newest["layer_types"] == settings["layer_types"]
        assert newest["query_pre_attn_scalar"] == settings["query_pre_attn_scalar"]
    assert newest["architectures"] == settings["architectures"]
    sizes = {k: v for k, v in settings.items() if k.startswith(("num_", "hidden_", "head_dim"))}
    said = {k: v for k, v in sizes.items() if k in newest}
    assert len(said) >= 5 and said == {k: newest[k] for k in said}


def test_yarn_of_qwen():
    """What Qwen2.5's model cards say to add for texts beyond 32768 tokens."""
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    rope = read({**QWEN_72B, "rope_scaling": scaling}).rope
    assert rope == RopeScaling(
        "yarn", 4.0, original_length=32768, beta_fast=32.0, beta_slow=1.0,
        attention_factor=pytest.approx(1.138629436),  # 0.1 ln 4 + 1 (arXiv 2309.00071, eq. 22)
    )  # fmt: skip


LLAMA3 = LLAMA_32_3B["rope_scaling"]


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (LLAMA_32_3B, {"attention_bias": True}, "attention_bias is True; the llama family has"),
        (LLAMA_32_3B, {"mlp_bias": True}, "mlp_bias is True"),
        (LLAMA_32_3B, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; the llama family has 'silu'"),
        (LLAMA_32_3B, {"rope_interleaved": True}, "rope_interleaved is True"),
        (LLAMA_32_3B, {"rope_scaling": {"rope_type": "longrope"}}, "rope type is 'longrope'"),
        (LLAMA_32_3B, {"rope_scaling": {"type": "dynamic", "factor": 2}}, "'dynamic'.*'llama3'"),
        (LLAMA_32_3B, {"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
        (LLAMA_32_3B, {"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor"),
        (LLAMA_32_3B, {"rope_scaling": None, "rope_parameters": {"partial_rotary_factor": 0.5}},
         "partial_rotary_factor is 0.5"),
        (QWEN_72B, {"use_sliding_window": True}, "use_sliding_window is True; the qwen2 family"),
        (QWEN_72B, {"layer_types": ["full_attention", "sliding_attention"]},
         "layer_types has 'sliding_attention'; the qwen2 family"),
        (QWEN3_32B, {"attention_bias": True}, "attention_bias is True; the qwen3 family"),
        (QWEN3_32B, {"use_sliding_window": True}, "use_sliding_window is True"),
        (OLMO_32B, {"attention_bias": True}, "attention_bias is True; the olmo2 family"),
        (OLMO_32B, {"clip_qkv": 8.0}, "clip_qkv is 8.0; the olmo2 family has None"),
        (GEMMA_27B, {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        (GEMMA_27B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        (GEMMA_27B, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (GEMMA_27B, {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        (GEMMA_27B, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type is 'yarn'"),
        (GEMMA_27B, {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
         r"rope type is 'linear'; the gemma3_text \(sliding_attention\) family has 'default'"),
        (GEMMA_27B, {"num_hidden_layers": 3, "layer_types": ["full_attention", "full_attention",
         "sliding_attention"]}, "'full_attention' at every n-th of its 3 layers"),
    ],
)  # fmt: skip
def test_what_the_decoder_does_not_have_is_refused_by_name(settings, change, message):
    with pytest.raises(ValueError, match=message):
        read({**settings, **change})


@pytest.mark.parametrize(("kinds", "every"), [("ssfss", 3), ("ffff", 1), ("sss", 4), ("sfsf", 2)])
def test_period_of_the_global_layers(kinds, every):
    types = [{"s": "sliding_attention", "f": "full_attention"}[kind] for kind in kinds]
    config = read({**GEMMA_27B, "num_hidden_layers": len(kinds), "layer_types": types})
    assert config.global_every == every
    assert [config.is_local(layer) for layer in range(len(kinds))] == [k == "s" for k in kinds]
    assert MODULES["gemma3_text"].to_hf(config)["layer_types"] == types


def test_a_scale_that_gemma_cannot_say_is_refused():
    config = find_config("gemma3_text:1b", query_scale=0.3)
    with pytest.raises(ValueError, match=r"query_scale=0.3: expected 1 / sqrt of a whole number"):
        MODULES["gemma3_text"].to_hf(config)


def test_what_a_family_cannot_say_is_not_written():
    config = find_config("llama:3.1-8b")
    assert model_settings(config)["num_hidden_layers"] == 32
    with pytest.raises(ValueError, match=r"'llama' can't say window=4096: it would be read as 0"):
        model_settings(dataclasses.replace(config, window=4096))

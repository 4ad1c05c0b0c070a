"""config.json of SmolLM2 and Llama, there and back."""

import dataclasses

import pytest

from posttrain_jax.models import ModelConfig
from posttrain_jax.models.llama import SIZES, from_hf, to_hf


@pytest.mark.parametrize("name", sorted(SIZES))
def test_config_json_round_trip(name):
    config = SIZES[name]
    fields = from_hf(to_hf(config))
    again = ModelConfig(
        **fields, pad_id=config.pad_id, dtype=config.dtype, param_dtype=config.param_dtype
    )
    assert again == dataclasses.replace(config)


def test_published_smollm2_config():
    """The relevant lines of HuggingFaceTB/SmolLM2-135M-Instruct/config.json."""
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    }
    assert ModelConfig(**from_hf(settings), pad_id=0) == SIZES["smollm2-135m"]
    newer = {**settings, "rope_theta": None, "head_dim": None}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 100000.0}
    assert from_hf(newer) == from_hf(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "'llama3' needs low_freq_factor",
        ),
        ({"rope_scaling": {"type": "dynamic"}}, "rope type is 'dynamic'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_unsupported_settings_are_refused(change, message):
    settings = to_hf(SIZES["smollm2-135m"])
    settings.pop("rope_parameters")
    with pytest.raises(ValueError, match=message):
        from_hf({**settings, **change})

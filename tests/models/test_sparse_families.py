"""Qwen3-MoE and DeepSeek-V3: published sizes, and config.json there and back."""

import dataclasses
import json
from pathlib import Path

import pytest

from posttrain_jax.models import find_config, parameter_count
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.families import active_count
from posttrain_jax.models.hf_files import config_fields, find_family

FAMILIES = ("qwen3_moe", "deepseek_v3")
GOLDEN = Path(__file__).parents[1] / "golden" / "families"
SPECS = ("qwen3_moe:30b", "qwen3_moe:235b", "deepseek_v3:671b", "deepseek_v3:moonlight-16b")


@pytest.mark.parametrize(
    ("spec", "whole", "active"),
    [
        # model cards: 30.5B and 3.3B; 235B and 22B
        ("qwen3_moe:30b", 30.5, 3.3),
        ("qwen3_moe:235b", 235.1, 22.2),
        # arXiv 2412.19437, abstract: 671B and 37B (the multi-token layer is not among them);
        # 671,026,419,200 by hand in the next test
        ("deepseek_v3:671b", 671.0, 37.6),
        ("deepseek_v3:moonlight-16b", 16.0, 2.9),
    ],
)
def test_published_parameter_counts(spec, whole, active):
    config = find_config(spec)
    assert parameter_count(config) / 1e9 == pytest.approx(whole, abs=0.05)
    assert active_count(config) / 1e9 == pytest.approx(active, abs=0.06)


def test_parameters_of_deepseek_v3_by_hand():
    d, heads = 7168, 128
    queries = d * 1536 + 1536 + 1536 * heads * (128 + 64)
    keys = d * (512 + 64) + 512 + 512 * heads * (128 + 128)
    attention = queries + keys + heads * 128 * d + 2 * d  # and the layer's two norms
    dense, expert = 3 * d * 18432, 3 * d * 2048
    sparse = d * 256 + 256 + (256 + 1) * expert
    expected = 2 * 129280 * d + d + 61 * attention + 3 * dense + 58 * sparse
    assert parameter_count(find_config("deepseek_v3:671b")) == expected == 671_026_419_200


@pytest.mark.parametrize("spec", SPECS)
def test_settings_there_and_back(spec, tmp_path):
    config = find_config(spec)
    settings = json.loads(json.dumps(find_family(config.family, "").to_hf(config)))
    again = ModelConfig(**config_fields(settings, tmp_path))
    assert again == dataclasses.replace(config, dtype="float32", param_dtype="float32")


def settings_of(family):
    return json.loads((GOLDEN / family / "config.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]; the qwen3_moe"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen3_moe", {"moe_intermediate_size": None}, "expected the setting 'moe_intermediate"),
        ("qwen3_moe", {"num_local_experts": None}, "expected the setting 'num_experts'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy'; .*'noaux_tc'"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'; .*'sigmoid'"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ("deepseek_v3", {"attention_bias": True}, "attention_bias is True"),
        ("deepseek_v3", {"rope_parameters": {"rope_type": "llama3"}}, "rope type is 'llama3'"),
    ],
)
def test_what_the_decoder_does_not_have_is_refused(family, changes, message, tmp_path):
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        config_fields({**settings_of(family), **changes}, tmp_path)


def test_experts_are_counted_under_the_name_of_either_version_of_transformers(tmp_path):
    newer = settings_of("qwen3_moe")
    older = {**newer, "num_experts": newer["num_local_experts"]}
    del older["num_local_experts"]
    assert config_fields(older, tmp_path) == config_fields(newer, tmp_path)

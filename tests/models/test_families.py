"""Specs such as `tiny:base` to sizes, and the published sizes by their parameter counts."""

import pytest

from posttrain_jax import registry
from posttrain_jax.models import find_config, parameter_count
from posttrain_jax.models.tiny import SIZES


def test_changes_replace_fields():
    config = find_config("tiny:base", vocab_size=511, remat="full")
    assert (config.vocab_size, config.remat, config.width) == (511, "full", SIZES["base"].width)
    assert find_config("tiny:student") == SIZES["student"]


def test_one_more_token_is_one_more_embedding():
    counts = [parameter_count(find_config("tiny:base", vocab_size=n)) for n in (511, 512)]
    assert counts[1] - counts[0] == SIZES["base"].width


# To the last parameter: the totals of the published safetensors files (Qwen2.5-14B: of its GGUF
# files). A second count, keras-team/keras-hub's models/*/*_presets.py ("params"), says the same of
# Qwen3, Gemma 3 1B, Qwen2.5 0.5B, 3B, 32B, 72B and Math; for Llama 3.2 it has an untied head on
# top, for Gemma 3 from 4B on a vocabulary of 262144, 64 rows fewer than the checkpoints' 262208.
COUNTS = {
    "llama:smollm2-135m": 134_515_008,
    "llama:smollm2-360m": 361_821_120,
    "llama:smollm2-1.7b": 1_711_376_384,
    "llama:2-70b": 68_976_648_192,
    "llama:3-8b": 8_030_261_248,
    "llama:3.1-8b": 8_030_261_248,
    "llama:3.1-70b": 70_553_706_496,
    "llama:3.1-405b": 405_853_388_800,
    "llama:3.2-1b": 1_235_814_400,
    "llama:3.2-3b": 3_212_749_824,
    "llama:3.3-70b": 70_553_706_496,
    "qwen2:2.5-0.5b": 494_032_768,
    "qwen2:2.5-1.5b": 1_543_714_304,
    "qwen2:2.5-3b": 3_085_938_688,
    "qwen2:2.5-7b": 7_615_616_512,
    "qwen2:2.5-14b": 14_770_033_664,
    "qwen2:2.5-32b": 32_763_876_352,
    "qwen2:2.5-72b": 72_706_203_648,
    "qwen2:2.5-math-1.5b": 1_543_714_304,
    "qwen2:2.5-math-7b": 7_615_616_512,
    "qwen2:2.5-math-72b": 72_706_203_648,
    "qwen3:0.6b": 596_049_920,
    "qwen3:1.7b": 1_720_574_976,
    "qwen3:4b": 4_022_468_096,
    "qwen3:8b": 8_190_735_360,
    "qwen3:14b": 14_768_307_200,
    "qwen3:32b": 32_762_123_264,
    "olmo2:1b": 1_484_916_736,
    "olmo2:7b": 7_298_617_344,
    "olmo2:13b": 13_716_198_400,
    "olmo2:32b": 32_234_279_936,
    "gemma3_text:1b": 999_885_952,
    "gemma3_text:4b": 3_880_099_328 + 64 * 2560,
    "gemma3_text:12b": 11_765_788_416 + 64 * 3840,
    "gemma3_text:27b": 27_009_002_240 + 64 * 5376,
}


@pytest.mark.parametrize("spec", COUNTS)
def test_parameter_counts(spec):
    assert parameter_count(find_config(spec)) == COUNTS[spec]


def test_every_dense_size_is_counted():
    families = ("llama", "qwen2", "qwen3", "olmo2", "gemma3_text")
    specs = {f"{f}:{size}" for f in families for size in registry.load("models", f).SIZES}
    assert specs == COUNTS.keys()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny:huge", r"model 'tiny:huge': tiny has the sizes \['base', 'student'\]"),
        ("tinny:base", "no 'tinny' in posttrain_jax/models/. Did you mean 'tiny'"),
    ],
)
def test_unknown_names_raise(spec, message):
    with pytest.raises(ValueError, match=message):
        find_config(spec)


def test_unknown_fields_raise():
    with pytest.raises(TypeError, match="depth"):
        find_config("tiny:base", depth=3)

"""Every family's checkpoint by transformers -> ours -> files -> ours, bit for bit."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import ModelConfig
from posttrain_jax.models.layout import load
from posttrain_jax.models.safetensors import load_pretrained, open_folder, save_pretrained
from posttrain_jax.models.streaming import put_lazy

FAMILIES = sorted((Path(__file__).parents[1] / "golden" / "families").iterdir())
SPARSE = [folder for folder in FAMILIES if folder.name in ("qwen3_moe", "deepseek_v3")]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def tokenizer():
    """The families' goldens have 64 ids, and no tokenizer."""
    return dataclasses.replace(load_tokenizer("tiny"), vocab_size=64, markers={})


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / WEIGHTS)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert (array.dtype, array.shape) == (b[name].dtype, b[name].shape), name
        assert array.tobytes() == b[name].tobytes(), name


def assert_same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("source", FAMILIES, ids=lambda folder: folder.name)
def test_round_trip(source, tmp_path, tokenizer):
    fields, params = load_pretrained(source)
    config = ModelConfig(**fields)
    save_pretrained(tmp_path / "out", config, params, tokenizer)
    original = tensors_of(source)
    if config.tied:
        original.pop("lm_head.weight", None)
    assert_same(tensors_of(tmp_path / "out"), original)
    again, same = load_pretrained(tmp_path / "out")
    assert ModelConfig(**again) == config
    assert_same_tree(params, same)


@pytest.mark.parametrize("source", FAMILIES, ids=lambda folder: folder.name)
def test_round_trip_in_bfloat16_straight_from_the_files(source, tmp_path, tokenizer):
    """Lazily, as `posttrain import` does it, and by way of the tree: the same bytes."""
    fields, lazy = load(open_folder(source), put_lazy, "bfloat16")
    config = ModelConfig(**fields)
    save_pretrained(tmp_path / "a", config, lazy, tokenizer)
    _, params = load_pretrained(source, dtype="bfloat16")
    save_pretrained(tmp_path / "b", config, params, tokenizer)
    stored = tensors_of(tmp_path / "a")
    assert_same(stored, tensors_of(tmp_path / "b"))
    for name, array in tensors_of(source).items():
        if name in stored:
            kept = np.float32 if "correction_bias" in name else ml_dtypes.bfloat16
            assert stored[name].dtype == kept
            np.testing.assert_array_equal(stored[name], array.astype(kept))
    again, same = load_pretrained(tmp_path / "a")
    assert again["param_dtype"] == "bfloat16"
    assert_same_tree(params, same)


def rewrite(source, target, change):
    """A copy of a folder with its tensors changed; `change(tensors, settings)` in place."""
    shutil.copytree(source, target)
    tensors, settings = tensors_of(source), json.loads((source / "config.json").read_text())
    change(tensors, settings)
    safetensors.numpy.save_file(tensors, target / WEIGHTS)
    (target / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("swapped", [False, True], ids=["transformers5", "swapped"])
@pytest.mark.parametrize("source", SPARSE, ids=lambda folder: folder.name)
def test_fused_experts_are_the_same_model(source, tmp_path, swapped):
    _, params = load_pretrained(source)

    def fuse(tensors, settings):
        layers = {name.split(".experts.")[0] for name in tensors if ".experts." in name}
        assert layers
        for layer in layers:
            count = len([n for n in tensors if n.startswith(layer) and ".up_proj" in n and
                         ".experts." in n])  # fmt: skip
            one = [
                {p: tensors.pop(f"{layer}.experts.{e}.{p}_proj.weight")
                 for p in ("gate", "up", "down")} for e in range(count)
            ]  # fmt: skip
            both = np.stack([np.concatenate([e["gate"], e["up"]]) for e in one])
            down = np.stack([e["down"] for e in one])
            if swapped:
                both, down = both.swapaxes(1, 2).copy(), down.swapaxes(1, 2).copy()
            tensors[f"{layer}.experts.gate_up_proj"] = both
            tensors[f"{layer}.experts.down_proj"] = down

    rewrite(source, tmp_path / "fused", fuse)
    assert_same_tree(params, load_pretrained(tmp_path / "fused")[1])

    def cut(tensors, settings):
        fuse(tensors, settings)
        name = next(name for name in tensors if name.endswith("gate_up_proj"))
        tensors[name] = tensors[name][:, 1:]

    rewrite(source, tmp_path / "cut", cut)
    with pytest.raises(
        ValueError, match=r"safetensors: tensor .*gate_up_proj: expected shape .* or"
    ):
        load_pretrained(tmp_path / "cut")


def to_fp8(tensors, block):
    """Quantise every projection -> the values that the stored form means, in float64."""
    meant = {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        weight = tensors[name]
        blocks = [math.ceil(n / b) for n, b in zip(weight.shape, block, strict=True)]
        scale, small = np.zeros(blocks, np.float32), np.zeros(weight.shape, "float8_e4m3fn")
        exact = np.zeros(weight.shape)
        for i, j in np.ndindex(*blocks):
            part = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale[i, j] = np.abs(weight[part]).max() / 448
            small[part] = (weight[part] / scale[i, j]).astype("float8_e4m3fn")
            exact[part] = small[part].astype(np.float64) * np.float64(scale[i, j])
        tensors[name], tensors[f"{name}_scale_inv"], meant[name] = small, scale, exact
    return meant


@pytest.fixture
def fp8(tmp_path):
    """`(change) -> folder` of DeepSeek-V3 in 8 bits, in blocks that divide no tensor."""
    source, block = next(f for f in FAMILIES if f.name == "deepseek_v3"), (16, 24)

    def make(change=lambda tensors, settings: None):
        def quantise(tensors, settings):
            make.meant = to_fp8(tensors, block)
            said = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
            settings["quantization_config"] = said
            change(tensors, settings)

        shutil.rmtree(tmp_path / "fp8", ignore_errors=True)
        rewrite(source, tmp_path / "fp8", quantise)
        return tmp_path / "fp8"

    return make


def test_fp8_blocks_mean_weight_times_scale(fp8, tmp_path, tokenizer):
    fields, params = load_pretrained(fp8(), dtype="float32")
    save_pretrained(tmp_path / "plain", ModelConfig(**fields), params, tokenizer)
    plain = tensors_of(tmp_path / "plain")
    for name, exact in fp8.meant.items():
        np.testing.assert_allclose(plain[name], exact, rtol=1e-7)  # one rounding to float32
    said = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in said
    assert not any(name.endswith("scale_inv") for name in plain)


FIRST = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, s: t.pop(f"{FIRST}_scale_inv"),
            "up_proj.weight is F8_E4M3: expected its scales",
        ),
        (lambda t, s: t.pop(FIRST), "up_proj.weight_scale_inv scales a weight that is not there"),
        (
            lambda t, s: t.update({f"{FIRST}_scale_inv": np.ones((2, 2), np.float32)}),
            r"expected F32 scales of shape \(3, 2\) for .* weight of \(40, 32\), got F32 \(2, 2\)",
        ),
        (lambda t, s: s.pop("quantization_config"), r"\d+ tensors not understood: .*scale_inv"),
        (
            lambda t, s: s.update(quantization_config={"quant_method": "gptq"}),
            "config.json: quantization_config: expected quant_method 'fp8'.*got 'gptq'",
        ),
    ],
)
def test_fp8_that_does_not_fit_together(fp8, change, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(fp8(change))


def test_multi_token_prediction_layers_are_left_out(tmp_path):
    """DeepSeek-V3's checkpoint has layers behind the last one; config.json says how many."""
    source = next(f for f in FAMILIES if f.name == "deepseek_v3")
    name = "model.layers.3.eh_proj.weight"

    def add(tensors, settings):
        tensors[name] = np.ones((2, 2), np.float32)
        settings["num_nextn_predict_layers"] = 1

    rewrite(source, tmp_path / "more", add)
    assert_same_tree(load_pretrained(source)[1], load_pretrained(tmp_path / "more")[1])
    rewrite(source, tmp_path / "odd", lambda t, s: t.update({name: np.ones(2, np.float32)}))
    with pytest.raises(ValueError, match=r"1 tensors not understood: model\.layers\.3\.eh_proj"):
        load_pretrained(tmp_path / "odd")

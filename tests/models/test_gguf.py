"""GGUF models: architectures, rope scaling, and the rotary permutation by its meaning."""

import math

import numpy as np
import pytest

from posttrain_jax.data.gguf_file import GGUFFile, TensorInfo
from posttrain_jax.models import ModelConfig
from posttrain_jax.models.config import RopeScaling
from posttrain_jax.models.gguf import TABLES, WEIGHTS, config_fields, load_gguf
from posttrain_jax.models.hf_files import find_family
from posttrain_jax.models.layout import (
    Opened,
    check_tensors,
    each,
    letter_sizes,
    relayout,
    shapes,
)
from posttrain_jax.models.stored import Stored

CONFIG = ModelConfig(
    vocab_size=40, layers=3, width=32, heads=4, kv_heads=2, head_dim=8, ffn=64, tied=False
)


def rotate(x_TNH, interleaved):
    """Rotary positions in plain numpy: pairs (2i, 2i+1), or (i, i + H/2)."""
    length, _, width = x_TNH.shape
    out = np.zeros_like(x_TNH)
    for t in range(length):
        for j in range(width // 2):
            a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + width // 2)
            angle = t * 10000.0 ** (-2 * j / width)
            out[t, :, a] = x_TNH[t, :, a] * np.cos(angle) - x_TNH[t, :, b] * np.sin(angle)
            out[t, :, b] = x_TNH[t, :, a] * np.sin(angle) + x_TNH[t, :, b] * np.cos(angle)
    return out


def test_unpermuted_weights_attend_as_the_file_means():
    """Interleaved rope on the file's q and k = rotate-half rope on ours, for every score."""
    rng, sizes = np.random.default_rng(0), letter_sizes(CONFIG)
    x_TD = rng.standard_normal((5, CONFIG.width))
    stored = {
        "q": rng.standard_normal((CONFIG.heads * CONFIG.head_dim, CONFIG.width)),
        "k": rng.standard_normal((CONFIG.kv_heads * CONFIG.head_dim, CONFIG.width)),
    }
    theirs, ours = {}, {}
    for name, heads in (("q", CONFIG.heads), ("k", CONFIG.kv_heads)):
        projected = (x_TD @ stored[name].T).reshape(5, heads, CONFIG.head_dim)
        theirs[name] = rotate(projected, interleaved=True)
        tensor_name, layout = WEIGHTS[f"layers/{name}"]
        w_DNH = relayout(tensor_name, stored[name], layout, sizes, save=False)
        ours[name] = rotate(np.einsum("TD,DNH->TNH", x_TD, w_DNH), interleaved=False)
    groups = CONFIG.heads // CONFIG.kv_heads
    scores = [
        np.einsum("TNH,SNH->NTS", side["q"], np.repeat(side["k"], groups, axis=1))
        for side in (theirs, ours)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-10)


def test_small_file_of_the_gguf_package(tmp_path):
    """Tensors written by the gguf package, in four types, come back in the tree's layout."""
    gguf = pytest.importorskip("gguf", reason="pip install posttrain_jax[smollm2]")
    rng, path = np.random.default_rng(0), tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(CONFIG.layers)
    writer.add_embedding_length(CONFIG.width)
    writer.add_feed_forward_length(CONFIG.ffn)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(5000.0)
    kinds = ["F32", "F16", "Q8_0", "Q4_1"]
    expected = {}
    # q, k, v, o, gate, up, down as the file has them: (out, in).
    shapes = {"q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32), "gate": (64, 32)}
    shapes |= {"up": (64, 32), "down": (32, 64), "embed": (40, 32), "head": (40, 32)}
    for row, (key, (name, _)) in enumerate(WEIGHTS.items()):
        shape = shapes.get(key.split("/")[-1], (32,))
        for layer in range(CONFIG.layers if "{layer}" in name else 1):
            kind = gguf.GGMLQuantizationType[kinds[row % 4]]
            array = rng.standard_normal(shape).astype(np.float32)
            packed = gguf.quantize(array, kind)
            writer.add_tensor(name.format(layer=layer), packed, raw_dtype=kind)
            expected[name.format(layer=layer)] = gguf.dequantize(packed, kind).reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields, params = load_gguf(str(path), dtype="float32")
    assert fields["head_dim"] == 8 and not fields["tied"] and fields["rope_theta"] == 5000.0
    assert (fields["norm_eps"], fields["max_length"]) == (1e-6, 128)
    np.testing.assert_array_equal(params["embed"], expected["token_embd.weight"])
    np.testing.assert_array_equal(params["head"], expected["output.weight"].T)
    layers = params["layers"]
    for layer in range(CONFIG.layers):
        down = expected[f"blk.{layer}.ffn_down.weight"]
        np.testing.assert_array_equal(layers["down"][layer], down.T)
        out = expected[f"blk.{layer}.attn_output.weight"]
        np.testing.assert_array_equal(layers["o"][layer].reshape(32, 32), out.T)
        # The data README's recipe: un-permute the rows, then split into heads.
        q = expected[f"blk.{layer}.attn_q.weight"]
        q = q.reshape(4, 4, 2, 32).swapaxes(1, 2).reshape(32, 32)
        np.testing.assert_array_equal(layers["q"][layer].reshape(32, 32), q.T)


def metadata(architecture, **more):
    """What every architecture says, of a small model."""
    said = {
        "embedding_length": 32, "block_count": 2, "attention.head_count": 4, "context_length": 64,
        "attention.head_count_kv": 2, "feed_forward_length": 64, "attention.key_length": 8,
        "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 5000.0, **more,
    }  # fmt: skip
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in said.items()},
    }


MORE = {
    "qwen3moe": {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32},
    "gemma3": {"attention.sliding_window": 16, "block_count": 6},
}
FAMILY_OF = {"qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}


@pytest.mark.parametrize("architecture", sorted(TABLES))
def test_every_architecture_is_the_same_model_as_its_folder(architecture, tmp_path):
    """A random model of the family, as GGUF (norms of Gemma with 1 added) and as we keep it."""
    gguf = pytest.importorskip("gguf", reason="pip install posttrain_jax[smollm2]")
    path = tmp_path / "small.gguf"
    said = metadata(architecture, **MORE.get(architecture, {}))
    embed = {"token_embd.weight": TensorInfo("F32", (40, 32), 0, 0)}
    fields = config_fields(GGUFFile(path, said, embed))
    assert fields["family"] == FAMILY_OF.get(architecture, architecture)
    config, rng = ModelConfig(**fields), np.random.default_rng(0)
    params, sizes, family = {}, letter_sizes(config), find_family(fields["family"], path)
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in said.items():
        kind = {int: writer.add_uint32, float: writer.add_float32}.get(type(value))
        if kind:
            kind(key, value)
    for key, shaped in shapes(config).items():
        params[key] = rng.standard_normal(shaped.shape).astype(np.float32)
    for key, index, name, layout in each(TABLES[architecture], config):
        stored = relayout(name, params[key][index], layout, sizes, save=True)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            stored = stored + np.float32(1)
        writer.add_tensor(name, np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said_fields, loaded = load_gguf(str(path))
    assert ModelConfig(**said_fields) == config
    for key in params:
        *parents, last = key.split("/")
        got = loaded[parents[0]][last] if parents else loaded[last]
        np.testing.assert_allclose(got, params[key], atol=3e-7 if architecture == "gemma3" else 0)
    # What the file says of the model is what the family's config.json can say.
    again = family.from_hf(family.to_hf(config))
    assert ModelConfig(**{**again, "family": config.family}) == config


def opened(path, architecture="llama", tensors=(), **more):
    embed = {"token_embd.weight": TensorInfo("F32", (40, 32), 0, 0)}
    return GGUFFile(path, metadata(architecture, **more), {**embed, **dict(tensors)})


def llama3_factors(theta, width, factor):
    """convert_hf_to_gguf's rope_freqs, pair by pair."""
    found = []
    for pair in range(width // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / width)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, "<f4")


def test_llama_3s_factors_are_recognised(tmp_path):
    path = tmp_path / "x.gguf"
    factors = llama3_factors(500000.0, 64, 32.0)
    assert 1 in factors and 32 in factors and len(set(factors)) > 3
    path.write_bytes(factors.tobytes())
    tensors = {"rope_freqs.weight": TensorInfo("F32", (32,), 0, 128)}
    sizes = {"attention.key_length": 64, "rope.freq_base": 500000.0}
    fields = config_fields(opened(path, tensors=tensors, **sizes))
    assert fields["rope"] == RopeScaling("llama3", 32.0, 8192, low_factor=1.0, high_factor=4.0)
    path.write_bytes((factors * np.linspace(1, 2, 32, dtype="f4")).tobytes())
    with pytest.raises(
        ValueError, match=r"x\.gguf: tensor rope_freqs\.weight: expected the factors"
    ):
        config_fields(opened(path, tensors=tensors, **sizes))


def test_linear_and_yarn_scaling(tmp_path):
    path, said = tmp_path / "x.gguf", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    assert config_fields(opened(path, **said))["rope"] == RopeScaling("linear", 8.0)
    said = {**said, "rope.scaling.type": "yarn", "rope.scaling.original_context_length": 32}
    yarn = config_fields(opened(path, "qwen2", **said))["rope"]
    assert yarn == RopeScaling("yarn", 8.0, 32, attention_factor=0.1 * math.log(8.0) + 1.0)


@pytest.mark.parametrize(
    ("architecture", "more", "message"),
    [
        ("mamba", {}, r"architecture is 'mamba', which is not read; there are: llama, qwen2"),
        ("deepseek2", {}, r"'deepseek2', which is not read \(.*safetensors\); there are"),
        ("llama", {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0},
         "rope scaling 'longrope': expected none, linear or yarn"),
        ("llama", {"rope.dimension_count": 4}, "expected the head's width 8, got 4"),
        ("qwen3moe", {}, "expected the key qwen3moe.expert_count in its metadata, got none"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, architecture, more, message):
    with pytest.raises(ValueError, match=rf"x\.gguf: .*{message}"):
        config_fields(opened(tmp_path / "x.gguf", architecture, **more))


def test_missing_and_misshapen_tensors(tmp_path):
    path = tmp_path / "x.gguf"
    file = opened(path)
    stored = {n: Stored(path, "F32", i.shape, lambda: None) for n, i in file.tensors.items()}
    checkpoint = Opened(path, config_fields(file), WEIGHTS, stored, {})
    config = ModelConfig(**checkpoint.fields)
    with pytest.raises(ValueError, match=r"x\.gguf: 19 tensors missing: blk\.0\.attn_k\.weight"):
        check_tensors(checkpoint, config)

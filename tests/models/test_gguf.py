"""Dequantisation by hand and by the gguf package; the rotary permutation by its meaning."""

import numpy as np
import pytest

from posttrain_jax.data.gguf_file import GGUFFile, TensorInfo
from posttrain_jax.models import ModelConfig
from posttrain_jax.models.gguf import WEIGHTS, config_fields, load_gguf, tensor
from posttrain_jax.models.layout import letter_sizes, relayout

CONFIG = ModelConfig(
    vocab_size=40, layers=3, width=32, heads=4, kv_heads=2, head_dim=8, ffn=64, tied=False
)


def one_tensor(tmp_path, kind, shape, raw):
    path = tmp_path / "raw.bin"
    path.write_bytes(raw)
    return GGUFFile(path, {}, {"w": TensorInfo(kind, shape, 0, len(raw))})


def test_q4_1_block_by_hand(tmp_path):
    # d = 0.5, m = -2; byte i holds element i in its low half and element i + 16 in its high half.
    nibbles = bytes((15 - i) << 4 | i for i in range(16))
    raw = np.array([0.5, -2], "<f2").tobytes() + nibbles
    expected = [0.5 * i - 2 for i in range(16)] + [0.5 * (15 - i) - 2 for i in range(16)]
    np.testing.assert_array_equal(tensor(one_tensor(tmp_path, "Q4_1", (32,), raw), "w"), expected)


def test_q8_0_blocks_by_hand(tmp_path):
    quants = np.arange(-32, 32, dtype=np.int8)
    raw = b"".join(
        np.array([scale], "<f2").tobytes() + quants[at : at + 32].tobytes()
        for scale, at in ((0.25, 0), (2.0, 32))
    )
    expected = np.stack([0.25 * np.arange(-32, 0), 2.0 * np.arange(32)])
    np.testing.assert_array_equal(tensor(one_tensor(tmp_path, "Q8_0", (2, 32), raw), "w"), expected)


def test_bf16_and_f16(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    np.testing.assert_array_equal(tensor(one_tensor(tmp_path, "BF16", (3,), upper), "w"), values)
    half = values.astype("<f2").tobytes()
    np.testing.assert_array_equal(tensor(one_tensor(tmp_path, "F16", (3,), half), "w"), values)


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


def test_refusals(tmp_path):
    file = GGUFFile(tmp_path / "x.gguf", {"general.architecture": "qwen2"}, {})
    with pytest.raises(ValueError, match=r"x\.gguf: expected architecture 'llama', got 'qwen2'"):
        config_fields(file)
    scaled = {"general.architecture": "llama", "llama.rope.scaling.type": "yarn"}
    with pytest.raises(ValueError, match=r"rope scaling \(yarn\)"):
        config_fields(GGUFFile(tmp_path / "x.gguf", scaled, {}))

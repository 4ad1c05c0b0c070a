"""GGUF's blocks: two by hand, all types bit for bit as the gguf package decodes them."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from posttrain_jax.data.gguf_file import KINDS
from posttrain_jax.models import dequantise as blocks
from posttrain_jax.models.dequantise import dequantise

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_blocks.npz"
QUANTISED = sorted(kind for kind, elements, _ in KINDS.values() if elements > 1)


def decode(kind, raw, shape):
    return dequantise(np.frombuffer(raw, np.uint8), kind, shape)


def test_q4_1_block_by_hand():
    # d = 0.5, m = -2; byte i holds element i in its low half and element i + 16 in its high half.
    nibbles = bytes((15 - i) << 4 | i for i in range(16))
    raw = np.array([0.5, -2], "<f2").tobytes() + nibbles
    expected = [0.5 * i - 2 for i in range(16)] + [0.5 * (15 - i) - 2 for i in range(16)]
    np.testing.assert_array_equal(decode("Q4_1", raw, (32,)), expected)


def test_q8_0_blocks_by_hand():
    quants = np.arange(-32, 32, dtype=np.int8)
    raw = b"".join(
        np.array([scale], "<f2").tobytes() + quants[at : at + 32].tobytes()
        for scale, at in ((0.25, 0), (2.0, 32))
    )
    expected = np.stack([0.25 * np.arange(-32, 0), 2.0 * np.arange(32)])
    np.testing.assert_array_equal(decode("Q8_0", raw, (2, 32)), expected)


def test_plain_types():
    values = np.array([1.0, -2.5, 0.15625], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    bf16 = decode("BF16", upper, (3,))
    assert bf16.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(bf16.astype(np.float32), values)
    np.testing.assert_array_equal(decode("F16", values.astype("<f2").tobytes(), (3,)), values)
    np.testing.assert_array_equal(decode("F32", values.tobytes(), (3,)), values)


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_type_is_decoded_as_by_the_gguf_package(kind, monkeypatch):
    golden = np.load(GOLDEN)
    expected = golden[f"{kind}/values"]
    monkeypatch.setattr(blocks, "CHUNK", 3)  # 8 blocks in three goes
    got = decode(kind, golden[kind].tobytes(), expected.shape)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))

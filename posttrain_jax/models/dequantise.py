"""GGUF's storage types as float32.

Blocks are those of ggml (`ggml-common.h`, decoded as in `ggml-quants.c`; multiplications in the
order of the `gguf` package, with which the results agree bit for bit). Types 4_0 to 8_0 have 32
elements a block; K types have 256, in 16 groups of 16 or 8 of 32, whose scales are quantised too.
A tensor is decoded a few blocks at a time, so that it needs no memory besides the result.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

CHUNK = 1 << 15
"""Blocks decoded at once."""


def dequantise(raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Decode a tensor.

    Args:
      raw: its bytes, uint8.
      kind: the storage type, a name of `gguf_file.KINDS`.
      shape: of the tensor, rows first.
    """
    if kind in _PLAIN:
        return raw.view(_PLAIN[kind]).reshape(shape)
    size, decode = _BLOCKS[kind]
    blocks = raw.reshape(-1, size)
    out = np.empty(shape, np.float32)
    rows = out.reshape(len(blocks), -1)
    for start in range(0, len(blocks), CHUNK):
        part = np.ascontiguousarray(blocks[start : start + CHUNK])
        rows[start : start + CHUNK] = decode(part)
    return out


def _half(data: np.ndarray) -> np.ndarray:
    """[n, 2] bytes -> [n, 1] the float16 they are."""
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)


def _bits(data: np.ndarray, width: int, run: int) -> np.ndarray:
    """Numbers of `width` bits: of each run of bytes first all lowest parts, then the next ones.

    -> [n, numbers], uint8.
    """
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    apart = data.reshape(len(data), -1, 1, run) >> shifts
    return (apart & np.uint8(2**width - 1)).reshape(len(data), -1)


def _top_bit(data: np.ndarray) -> np.ndarray:
    """[n, 4] bytes, one bit an element in order -> [n, 32]."""
    return np.unpackbits(np.ascontiguousarray(data), axis=1, bitorder="little")


def _signed(numbers: np.ndarray, zero: int) -> np.ndarray:
    return (numbers.astype(np.int8) - np.int8(zero)).astype(np.float32)


def _q4_0(b: np.ndarray) -> np.ndarray:
    """fp16 d, 16 bytes with elements i and i + 16: d (q - 8)."""
    return _half(b[:, :2]) * _signed(_bits(b[:, 2:], 4, 16), 8)


def _q4_1(b: np.ndarray) -> np.ndarray:
    """fp16 d, fp16 m, 16 bytes with elements i and i + 16: d q + m."""
    return _half(b[:, :2]) * _bits(b[:, 4:], 4, 16).astype(np.float32) + _half(b[:, 2:4])


def _q5_0(b: np.ndarray) -> np.ndarray:
    """fp16 d, 32 fifth bits, 16 bytes of the other four: d (q - 16)."""
    q = _bits(b[:, 6:], 4, 16) | _top_bit(b[:, 2:6]) << 4
    return _half(b[:, :2]) * _signed(q, 16)


def _q5_1(b: np.ndarray) -> np.ndarray:
    """fp16 d, fp16 m, 32 fifth bits, 16 bytes of the other four: d q + m."""
    q = _bits(b[:, 8:], 4, 16) | _top_bit(b[:, 4:8]) << 4
    return _half(b[:, :2]) * q.astype(np.float32) + _half(b[:, 2:4])


def _q8_0(b: np.ndarray) -> np.ndarray:
    """fp16 d, 32 int8 q: d q."""
    return _half(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


def _grouped(scale: np.ndarray, q: np.ndarray, low: np.ndarray | float = 0.0) -> np.ndarray:
    """scale q - low, both one number a group."""
    groups = q.reshape(*scale.shape, -1).astype(np.float32)
    product = scale[:, :, None] * groups
    if isinstance(low, np.ndarray):
        product -= low[:, :, None]
    return product.reshape(len(q), -1)


def _q2_k(b: np.ndarray) -> np.ndarray:
    """16 bytes of 4-bit scale and minimum, 64 bytes of 2-bit q, fp16 d and dmin."""
    scales, q = b[:, :16], _bits(b[:, 16:80], 2, 32)
    d, dmin = _half(b[:, 80:82]), _half(b[:, 82:84])
    low = dmin * (scales >> 4).astype(np.float32)
    return _grouped(d * (scales & 15).astype(np.float32), q, low)


def _q3_k(b: np.ndarray) -> np.ndarray:
    """32 bytes of third bits, 64 bytes of the lower two, 16 6-bit scales in 12 bytes, fp16 d.

    q is the two bits, less 4 where the third is not set.
    """
    third = _bits(b[:, :32], 1, 32)
    q = _bits(b[:, 32:96], 2, 32).astype(np.int8) - ((third ^ 1) << 2).astype(np.int8)
    scales = _bits(b[:, 96:104], 4, 8) | _bits(b[:, 104:108], 2, 4) << 4
    return _grouped(_half(b[:, 108:110]) * _signed(scales, 32), q)


def _scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes -> 8 scales and 8 minima of 6 bits.

    The first four of each are the low bits of bytes 0-3 and 4-7; the others have their low four
    bits in bytes 8-11, and their high two at the top of bytes 0-3 and 4-7.
    """
    low, mid, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | (mid >> 6) << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(b: np.ndarray) -> np.ndarray:
    """fp16 d and dmin, 12 bytes of scales and minima, 128 bytes of 4-bit q."""
    scales, minima = _scales_and_minima(b[:, 4:16])
    d, dmin = _half(b[:, :2]), _half(b[:, 2:4])
    return _grouped(d * scales, _bits(b[:, 16:], 4, 32), dmin * minima)


def _q5_k(b: np.ndarray) -> np.ndarray:
    """As Q4_K, with 32 bytes of fifth bits before the other four."""
    scales, minima = _scales_and_minima(b[:, 4:16])
    d, dmin = _half(b[:, :2]), _half(b[:, 2:4])
    q = _bits(b[:, 48:], 4, 32) | _bits(b[:, 16:48], 1, 32) << 4
    return _grouped(d * scales, q, dmin * minima)


def _q6_k(b: np.ndarray) -> np.ndarray:
    """128 bytes of the lower four bits, 64 of the upper two, 16 int8 scales, fp16 d: q - 32."""
    q = _bits(b[:, :128], 4, 64) | _bits(b[:, 128:192], 2, 32) << 4
    scales = b[:, 192:208].view(np.int8).astype(np.float32)
    return _grouped(_half(b[:, 208:]) * scales, _signed(q, 32))


_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_BLOCKS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}

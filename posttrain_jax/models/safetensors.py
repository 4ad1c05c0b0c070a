"""Models in Hugging Face's folder layout: safetensors weights, config, tokenizer, chat template.

`transformers`, vLLM and SGLang load the folder as it is. Weights are written and read tensor by
tensor (`write_weights.py`, `streaming.py`). config.json is what makes a folder whole: an export
that was stopped halfway has none (`folders.py`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax

from posttrain_jax import mesh
from posttrain_jax.api import Params
from posttrain_jax.data.chat import ChatTemplate
from posttrain_jax.data.tokenizer import Tokenizer, check_vocabulary
from posttrain_jax.folders import whole_folder
from posttrain_jax.model_card import front_matter, plain_card
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.fp8 import dequantised
from posttrain_jax.models.fused_experts import one_by_one
from posttrain_jax.models.hf_files import config_fields, find_family, json_files, read_settings
from posttrain_jax.models.layout import Opened, load
from posttrain_jax.models.stored import open_weights
from posttrain_jax.models.streaming import Put, put_numpy
from posttrain_jax.models.write_weights import check_tree, write_weights

STALE = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.model",
    "tokenizer.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What an earlier export may have left, and a loader would take for a part of the new one."""


def save_pretrained(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None = None,
    *,
    dtype: str | None = None,
    card: str | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model that `transformers.AutoModelForCausalLM.from_pretrained(folder)` loads.

    With several processes all must call it; the first one writes. Killed at any moment, the folder
    is the old one, the new one, or has no config.json.

    Args:
      folder: made where absent; an earlier model in it is replaced, other files stay.
      config, params: the model; its family names the weights.
      tokenizer: its files are copied.
      chat_template: stored in tokenizer_config.json; default the tokenizer's own.
      dtype: what the weights are written as; default `config.param_dtype`.
      card: README.md (see `model_card.py`); default one that names the architecture only.
      shard_bytes: the largest weights file; more are written, with an index, where needed.

    Raises:
      ValueError: a parameter's shape is not what the config says, or the tokenizer has more ids
        than the model.
    """
    folder, first = Path(folder), jax.process_index() == 0
    check_vocabulary(tokenizer, config.vocab_size, "the model to be saved")
    config = dataclasses.replace(config, param_dtype=dtype or config.param_dtype)
    table = find_family(config.family, "config.family").WEIGHTS
    check_tree(table, config, params)
    if not first:
        write_weights(folder, table, config, params, shard_bytes, write=False)
    else:
        source = tokenizer.chat_template if chat_template is None else chat_template.source
        files = tokenizer.files()
        with whole_folder(folder, "config.json", STALE) as partial:
            for name, data in files.items():
                (partial / name).write_bytes(data)
            write_weights(partial, table, config, params, shard_bytes, write=True)
            (partial / "README.md").write_text(card or plain_card(config.family), "utf-8")
            contents = json_files(config, tokenizer, files, source)
            for name, content in reversed(contents.items()):  # config.json is the last
                text = json.dumps(content, indent=2, ensure_ascii=False)
                (partial / name).write_text(text + "\n", encoding="utf-8")
    mesh.barrier(f"{folder} is written")


def load_pretrained(
    folder: str | Path, put: Put = put_numpy, *, dtype: str | None = None
) -> tuple[dict[str, Any], Params]:
    """Read a model folder; its tokenizer is `load_tokenizer(folder)`.

    Args:
      folder: with config.json and model.safetensors (or its index).
      put: `(path, leaf) -> array`, called once a parameter, for example
        `streaming.put_sharded(shardings)`.
      dtype: of the parameters; default what the weights are stored in.

    Returns:
      The `ModelConfig` fields of config.json, and the params tree.

    Raises:
      FileNotFoundError: no config.json or weights, or a file that the index names is missing.
      ValueError: a damaged file, an unknown family, an unsupported setting, tensors missing, not
        understood, or of another shape or type.
    """
    return load(open_folder(folder), put, dtype)


def open_folder(folder: str | Path) -> Opened:
    """What a model folder holds; only headers are read.

    Raises:
      As `load_pretrained`, but for the tensors' shapes and types.
    """
    folder = Path(folder).expanduser()
    settings = read_settings(folder)
    fields = config_fields(settings, folder)
    config, table = ModelConfig(**fields), find_family(fields["family"], folder).WEIGHTS
    stored = open_weights(folder)
    embed = stored.get(table["embed"][0])
    fields["param_dtype"] = _PLAIN.get(embed.dtype if embed else "", "float32")
    tensors = dequantised(stored, settings, folder / "config.json")
    if config.experts:
        tensors = one_by_one(tensors, config.experts.count, config.width, config.experts.ffn)
    tensors = {n: t for n, t in tensors.items() if not _unused(n, config, settings)}
    return Opened(folder, fields, table, tensors, front_matter(folder / "README.md"))


_PLAIN = {"F16": "float16", "BF16": "bfloat16"}


def _unused(name: str, config: ModelConfig, settings: dict[str, Any]) -> bool:
    """A tied model's head, old rotary tables, the extra layers for multi-token prediction."""
    if (config.tied and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq"):
        return True
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    extra = settings.get("num_nextn_predict_layers") or 0
    return layer is not None and config.layers <= int(layer[1]) < config.layers + extra

"""The small files of a model folder: config.json, generation_config.json, tokenizer_config.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain_jax import registry
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.models.config import ModelConfig

NOT_SAID = ("family", "pad_id", "embed_init", "dtype", "param_dtype", "remat", "attention_impl")
"""The fields of a `ModelConfig` that are not the model's part of config.json."""


def find_family(model_type: str, where: Any) -> ModuleType:
    """The file models/<model_type>.py of a family.

    Raises:
      ValueError: no such family; lists those there are.
    """
    modules = {name: registry.load("models", name) for name in registry.names("models")}
    known = sorted(name for name, module in modules.items() if hasattr(module, "MODEL_TYPE"))
    if model_type not in known:
        raise ValueError(
            f"{where}: model_type is {model_type!r}, which is no family here; there are: "
            f"{', '.join(known)}. Add one by adding the file posttrain_jax/models/<model_type>.py."
        )
    return modules[model_type]


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json.

    Raises:
      FileNotFoundError: there is none.
      ValueError: not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; expected a model folder in Hugging Face's layout (an export that was "
            "stopped halfway has none)"
        )
    try:
        settings = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(settings).__name__}")
    return settings


def config_fields(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The `ModelConfig` fields that config.json says.

    Raises:
      ValueError: an unknown family, an unsupported or a missing setting.
    """
    path = folder / "config.json"
    family = find_family(settings.get("model_type", ""), path)
    try:
        return {"family": family.MODEL_TYPE, **family.from_hf(settings)}
    except KeyError as error:
        raise ValueError(f"{path}: expected the setting {error}, got none") from None
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix('config.json: ')}") from None


def json_files(
    config: ModelConfig, tokenizer: Tokenizer, files: Collection[str], chat_template: str | None
) -> dict[str, dict[str, Any]]:
    """File name -> contents.

    Args:
      config: the model.
      tokenizer: says the special tokens.
      files: the tokenizer's own files, by name.
      chat_template: Jinja text.

    Raises:
      ValueError: the family's config.json can't say what the model's config does.
    """
    ids = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    if tokenizer.bos_token:
        ids["bos_token_id"] = tokenizer.encode(tokenizer.bos_token)[0]
    model_file = "tokenizer.model" if "tokenizer.model" in files else None
    fast = "tokenizer.json" in files
    texts = {i: text for text, i in tokenizer.markers.items()}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast" if fast else "LlamaTokenizer",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokenizer.eos_token,
        "model_max_length": config.max_length,
        **({"pad_token": texts[tokenizer.pad_id]} if tokenizer.pad_id in texts else {}),
        **({"bos_token": tokenizer.bos_token} if tokenizer.bos_token else {}),
        **({"sentencepiece_model_file": model_file} if model_file else {}),
        **({"chat_template": chat_template} if chat_template else {}),
    }
    # The model gives its padding token probability 0; generate() is told the same.
    never = {} if config.pad_id is None else {"suppress_tokens": [config.pad_id]}
    return {
        "config.json": {**model_settings(config), **ids},
        "generation_config.json": {**ids, **never},
        "tokenizer_config.json": tokenizer_config,
    }


def model_settings(config: ModelConfig) -> dict[str, Any]:
    """The model's part of config.json.

    Raises:
      ValueError: what would be read from it is another model.
    """
    family = find_family(config.family, "config.family")
    settings = family.to_hf(config)
    ours = {name: getattr(config, name) for name in NOT_SAID}
    read = dataclasses.asdict(ModelConfig(**{**family.from_hf(settings), **ours}))
    for name, value in dataclasses.asdict(config).items():
        if value != read[name]:
            raise ValueError(
                f"config.json of the family {config.family!r} can't say {name}={value!r}: it would "
                f"be read as {read[name]!r} (model.family)"
            )
    return settings

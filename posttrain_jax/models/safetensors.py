"""Models in Hugging Face's folder layout: safetensors weights, config, tokenizer, chat template.

`transformers`, vLLM and the rest load the folder as it is. Weights are written file by file, each
at most `shard_bytes` of host memory, and read tensor by tensor.
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from posttrain_jax import registry
from posttrain_jax.api import Params
from posttrain_jax.data.chat import ChatTemplate
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.layout import (
    Put,
    check_names,
    letter_sizes,
    put_numpy,
    read_tree,
    relayout,
    rows,
    tensor_names,
)

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


def save_pretrained(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None = None,
    *,
    family: str = "llama",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model that `transformers.AutoModelForCausalLM.from_pretrained(folder)` loads.

    With several processes all must call it; the first one writes.

    Args:
      folder: made where absent; files of the same names are replaced.
      config, params: the model.
      tokenizer: its files are copied.
      chat_template: stored in tokenizer_config.json; default the tokenizer's own.
      family: `models/<family>.py` with the table of weight names.
      shard_bytes: the largest weights file; more are written, with an index, where needed.

    Raises:
      ValueError: a parameter's shape is not what the config says, or the tokenizer has more ids
        than the model.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size is only "
            f"{config.vocab_size}"
        )
    folder, first = Path(folder), jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [*folder.glob("model*.safetensors"), folder / INDEX_FILE]:
            path.unlink(missing_ok=True)
        source = tokenizer.chat_template if chat_template is None else chat_template.source
        files = tokenizer.files()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        for name, content in _json_files(config, tokenizer, files, source, family).items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")
    tensors = _tensors(config, params, family)
    _write_weights(folder, tensors, _file_sizes(config, params, family, shard_bytes), write=first)


def load_pretrained(
    folder: str | Path, put: Put = put_numpy, *, dtype: str | None = None
) -> tuple[dict[str, Any], Params]:
    """Read a model folder; its tokenizer is `load_tokenizer(folder)`.

    Args:
      folder: with config.json and model.safetensors (or its index).
      put: `(path, leaf) -> array`, called once a parameter, for example
        `layout.put_sharded(shardings)`.
      dtype: of the parameters; default what the weights are stored in.

    Returns:
      The `ModelConfig` fields of config.json, and the params tree.

    Raises:
      FileNotFoundError: no config.json or weights.
      ValueError: an unknown family, an unsupported setting, tensors missing or not understood.
    """
    folder = Path(folder)
    fields, family = read_config(folder)
    table = registry.load("models", family).WEIGHTS
    with _open_weights(folder) as files:
        stored = next(iter(files.values())).get_slice(next(iter(files))).get_dtype()
        fields["param_dtype"] = dtype or _DTYPES.get(stored, "float32")
        config = ModelConfig(**fields)
        # Tied models may carry the head again, and old ones the rotary table.
        extra = ("lm_head.weight",) if config.tied else ()
        found = [n for n in files if n not in extra and not n.endswith("rotary_emb.inv_freq")]
        check_names(folder, tensor_names(table, config), found)

        def read(name: str) -> np.ndarray:
            return files[name].get_tensor(name)

        return fields, read_tree(table, config, read, put, fields["param_dtype"])


def read_config(folder: str | Path) -> tuple[dict[str, Any], str]:
    """The `ModelConfig` fields and the family of a model folder, without its weights."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; expected a model folder in Hugging Face's layout")
    settings = json.loads(path.read_text("utf-8"))
    family = settings.get("model_type", "")
    return registry.load("models", family).from_hf(settings), family


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _json_files(
    config: ModelConfig,
    tokenizer: Tokenizer,
    files: Collection[str],
    chat_template: str | None,
    family: str,
) -> dict[str, dict[str, Any]]:
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
        "config.json": {**registry.load("models", family).to_hf(config), **ids},
        "generation_config.json": {**ids, **never},
        "tokenizer_config.json": tokenizer_config,
    }


def _leaf(params: Params, path: str) -> Any:
    node = params
    for step in path.split("/"):
        node = node[step]
    return node


def _tensors(config: ModelConfig, params: Params, family: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in the file's layout, fetched from the devices one at a time."""
    sizes = letter_sizes(config)
    for path, (name, layout) in rows(registry.load("models", family).WEIGHTS, config).items():
        leaf = _leaf(params, path)
        for layer in range(config.layers if "{layer}" in name else 1):
            full = name.format(layer=layer)
            ours = _fetch(_one_layer(leaf, layer) if "{layer}" in name else leaf)
            yield full, np.ascontiguousarray(relayout(full, ours, layout, sizes, save=True))


def _one_layer(leaf: Any, layer: int) -> Any:
    return _index(leaf, layer) if isinstance(leaf, jax.Array) else leaf[layer]


@jax.jit
def _index(leaf: jax.Array, layer: int) -> jax.Array:
    """One program a shape: indexing with a Python number would compile one a layer."""
    return leaf[layer]


def _fetch(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _file_sizes(config: ModelConfig, params: Params, family: str, limit: int) -> list[int]:
    """How many tensors go into each file, in the order of `_tensors`."""
    counts, used = [0], 0
    for path, (name, _) in rows(registry.load("models", family).WEIGHTS, config).items():
        leaf, layers = _leaf(params, path), config.layers if "{layer}" in name else 1
        size = leaf.nbytes // layers
        for _ in range(layers):
            if counts[-1] and used + size > limit:
                counts, used = [*counts, 0], 0
            counts[-1] += 1
            used += size
    return counts


def _write_weights(
    folder: Path, tensors: Iterator[tuple[str, np.ndarray]], counts: list[int], *, write: bool
) -> None:
    index, total = {}, 0
    for number, count in enumerate(counts, 1):
        many = f"model-{number:05d}-of-{len(counts):05d}.safetensors"
        file = WEIGHTS_FILE if len(counts) == 1 else many
        part = dict(next(tensors) for _ in range(count))
        index |= dict.fromkeys(part, file)
        total += sum(array.nbytes for array in part.values())
        if write:
            save_file(part, folder / file, metadata={"format": "pt"})
    if write and len(counts) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _open_weights(folder: Path) -> Iterator[Mapping[str, Any]]:
    """`{tensor name: the open file that holds it}`."""
    index = folder / INDEX_FILE
    names = {WEIGHTS_FILE}
    if index.is_file():
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    with contextlib.ExitStack() as stack:
        files = {}
        for name in sorted(names):
            path = folder / name
            if not path.is_file():
                raise FileNotFoundError(f"no {path}; expected {WEIGHTS_FILE} or {INDEX_FILE}")
            try:
                opened = stack.enter_context(safe_open(path, "numpy"))
            except SafetensorError as error:
                raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
            files |= dict.fromkeys(opened.keys(), opened)
        yield files

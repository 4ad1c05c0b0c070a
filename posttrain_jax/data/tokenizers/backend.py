"""tokenizer.json, and whatever else the `tokenizers` library can hold (rank files, GGUF)."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers

from posttrain_jax.data.tokenizers.base import (
    Tokenizer,
    choose_pad,
    digest,
    is_marker,
    required_eos,
    sibling_config,
    text_of,
)


def from_json(path: Path, eos: str | None) -> Tokenizer:
    """A `tokenizer.json`; eos, bos, padding and template come from the config beside it.

    Raises:
      ValueError: not such a file, no eos.
    """
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from None
    settings = sibling_config(path)
    special = {name: text_of(settings.get(f"{name}_token")) for name in ("eos", "bos", "pad")}
    special["eos"] = eos or special["eos"]
    return from_backend(path, backend, special, settings["chat_template"])


def from_backend(
    path: Path,
    backend: tokenizers.Tokenizer,
    special: Mapping[str, str | None],
    chat_template: str | None,
) -> Tokenizer:
    """A tokenizer of the `tokenizers` library.

    Args:
      path: the file it was made from, for messages.
      backend: the tokenizer.
      special: texts of "eos", "bos" and "pad"; None where there is none.
      chat_template: the template that came with it.
    """
    backend.no_padding()
    backend.no_truncation()
    vocabulary = backend.get_vocab()
    added = backend.get_added_tokens_decoder()
    markers = {t.content: i for i, t in added.items() if t.special or is_marker(t.content)}
    eos_id = required_eos(path, vocabulary, special["eos"])
    bos_id = vocabulary.get(special["bos"] or "")
    pad_id = choose_pad(path, vocabulary.get(special["pad"] or ""), eos_id, bos_id, markers)
    content = json.loads(backend.to_str())
    return Tokenizer(
        encode=partial(_encode, backend),
        decode=partial(_decode, backend, frozenset(markers.values())),
        vocab_size=max(vocabulary.values()) + 1,
        pad_id=pad_id,
        eos_id=eos_id,
        eos_token=special["eos"] or "",
        bos_token=special["bos"] or "",
        markers=markers,
        hash=digest(content, eos_id, pad_id),
        chat_template=chat_template,
        files=partial(_files, backend),
        open_ids=_open_ids(content, vocabulary),
    )


def _open_ids(content: Mapping[str, Any], vocabulary: Mapping[str, int]) -> frozenset[int]:
    """The library's byte-fallback decoder judges a run of bytes whole, once the run has ended."""
    if '"ByteFallback"' not in json.dumps(content["decoder"]):
        return frozenset()
    names = (f"<0x{byte:02X}>" for byte in range(256))
    return frozenset(vocabulary[name] for name in names if name in vocabulary)


def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


def _decode(backend, markers, ids, skip_special: bool = False) -> str:
    kept = [int(i) for i in ids if not (skip_special and int(i) in markers)]
    return backend.decode(kept, skip_special_tokens=False)


def _files(backend: tokenizers.Tokenizer) -> dict[str, bytes]:
    return {"tokenizer.json": backend.to_str(pretty=True).encode()}

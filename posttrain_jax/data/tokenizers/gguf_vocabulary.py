"""The vocabulary inside a GGUF file, encoded as llama.cpp does.

`tokenizer.ggml.model` is "gpt2" (byte-level BPE, with `tokenizer.ggml.pre` naming the split) or
"llama" (SentencePiece BPE: tokens, scores, types), which is written back into a SentencePiece
model. As in llama.cpp, texts are not put into a Unicode normal form (Qwen's own tokenizer does).
Unlike llama.cpp, and like transformers, no space is put before the text after a special token.
Which split a name stands for: llama.cpp, src/llama-vocab.cpp.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from posttrain_jax.data.gguf_file import read_gguf
from posttrain_jax.data.tokenizers import sentencepiece_proto as proto
from posttrain_jax.data.tokenizers.backend import from_backend
from posttrain_jax.data.tokenizers.base import Tokenizer
from posttrain_jax.data.tokenizers.byte_level import (
    CL100K,
    DEEPSEEK_V3,
    QWEN2,
    bpe,
    gpt2_split,
    split_by,
)
from posttrain_jax.data.tokenizers.sentencepiece_model import from_model

GPT2, DIGITS = "gpt2", "digits"
# tokenizer.ggml.pre -> how a text is split; the first two are pre-tokenizers of the library.
SPLITS: dict[str, str | tuple[str, ...]] = {
    "gpt-2": GPT2,
    "olmo": GPT2,
    "smollm": DIGITS,
    "starcoder": DIGITS,
    "llama-bpe": (CL100K,),
    "llama3": (CL100K,),
    "llama-v3": (CL100K,),
    "dbrx": (CL100K,),  # OLMo 2 says this
    "qwen2": (QWEN2,),
    "deepseek-r1-qwen": (QWEN2,),
    "deepseek-v3": DEEPSEEK_V3,
}
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3")


def from_gguf(path: Path, eos: str | None) -> Tokenizer:
    """A `.gguf` file's vocabulary, special tokens and template.

    Raises:
      ValueError: an unknown vocabulary or split, or one that is not whole.
    """
    metadata = read_gguf(path).metadata
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "llama" and not (kind == "gpt2" and pre in SPLITS):
        raise ValueError(
            f"{path}: vocabulary {kind!r} with pre-tokenizer {pre!r} is not read; expected "
            f"'llama', or 'gpt2' with one of {', '.join(SPLITS)}. Use the model's tokenizer.json "
            "instead."
        )
    tokens = _array(path, metadata, "tokens")
    special = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "bos")}
    special["pad"] = metadata.get("tokenizer.ggml.padding_token_id")
    wrong = {name: i for name, i in special.items() if i is not None and i >= len(tokens)}
    if wrong:
        raise ValueError(f"{path}: expected token ids below {len(tokens)}, got {wrong}")
    template = metadata.get("tokenizer.chat_template")
    if kind == "llama":
        return _sentencepiece(path, metadata, special, eos, template)
    texts = {name: None if i is None else tokens[i] for name, i in special.items()}
    texts["eos"] = eos or texts["eos"]
    return from_backend(path, _byte_level(path, metadata, str(pre)), texts, template)


def _array(path: Path, metadata: Mapping[str, Any], name: str, size: int | None = None) -> list:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or size not in (None, len(found)):
        got = f"{len(found)} entries" if isinstance(found, list) else repr(found)
        raise ValueError(
            f"{path}: expected tokenizer.ggml.{name} to be a list"
            f"{'' if size is None else f' of {size} entries, one a token'}, got {got}"
        )
    return found


def _byte_level(path: Path, metadata: Mapping[str, Any], pre: str) -> tokenizers.Tokenizer:
    tokens = _array(path, metadata, "tokens")
    kinds = _array(path, metadata, "token_type", len(tokens))
    merges = [tuple(merge.split(" ")) for merge in _array(path, metadata, "merges")]
    split = SPLITS[pre]
    whole = (proto.CONTROL, proto.USER_DEFINED)
    return bpe(
        {token: i for i, token in enumerate(tokens)},
        merges,
        gpt2_split(digits_alone=split == DIGITS) if isinstance(split, str) else split_by(split),
        {t: k == proto.CONTROL for t, k in zip(tokens, kinds, strict=True) if k in whole},
        ignore_merges=pre in IGNORE_MERGES,
    )


def _sentencepiece(
    path: Path,
    metadata: Mapping[str, Any],
    special: Mapping[str, int | None],
    eos: str | None,
    template: str | None,
) -> Tokenizer:
    tokens = _array(path, metadata, "tokens")
    scores = _array(path, metadata, "scores", len(tokens))
    kinds = _array(path, metadata, "token_type", len(tokens))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    # SentencePiece takes exactly one unknown piece, and none that is empty or there twice.
    pieces = [
        proto.Piece(text, score, proto.UNKNOWN if i == unknown else kind)
        for i, (text, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True))
    ]
    data = proto.write_model(
        pieces,
        {"unk": unknown, **special},
        dummy_prefix=metadata.get("tokenizer.ggml.add_space_prefix", True),
        squeeze_spaces=metadata.get("tokenizer.ggml.remove_extra_whitespaces", False),
    )
    return from_model(path, data, eos, template, [])

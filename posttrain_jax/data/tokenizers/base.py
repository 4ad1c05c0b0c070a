"""What a tokenizer is to the rest of the package, and the rules that all kinds share."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back; picklable.

    Attributes:
      encode: `text -> list of ids`; adds no bos or eos.
      decode: `(ids, skip_special=False) -> text`; `skip_special` leaves the turn markers out.
      vocab_size: number of ids.
      pad_id: the padding id; never the eos id, because the sampler forbids the padding token.
      eos_id: the token that ends an assistant's turn.
      eos_token, bos_token: their texts, for chat templates ("" where there is none).
      markers: turn markers, `{text: id}`.
      hash: hex digest of vocabulary, merges, special tokens, eos and padding.
      chat_template: the template that came with the vocabulary.
      files: `() -> {file name: bytes}`, the files that hold this tokenizer.
      open_ids: byte pieces after which a streamed text may still change as a whole; see
        `tokenizers/streaming.py`. Empty where decoding only ever looks at the last character.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[..., str]
    vocab_size: int
    pad_id: int
    eos_id: int
    eos_token: str
    bos_token: str
    markers: Mapping[str, int]
    hash: str
    chat_template: str | None
    files: Callable[[], dict[str, bytes]]
    open_ids: frozenset[int] = frozenset()


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str | Path) -> None:
    """Every id that the tokenizer can make must have a row in the model's embedding.

    A model may have more rows than the tokenizer has ids: published ones are rounded up.

    Args:
      tokenizer: the text side.
      vocab_size: rows of the model's embedding.
      where: the file or setting that says `vocab_size`, for the message.

    Raises:
      ValueError: the tokenizer has more ids, or a special token's id is not in the model.
    """
    special = {"eos": tokenizer.eos_id, "padding": tokenizer.pad_id} | dict(tokenizer.markers)
    outside = {name: i for name, i in special.items() if not 0 <= i < vocab_size}
    if tokenizer.vocab_size > vocab_size or outside:
        first = "".join(f"; {name!r} has id {i}" for name, i in list(outside.items())[:3])
        raise ValueError(
            f"{where}: expected a vocabulary of at least the tokenizer's {tokenizer.vocab_size} "
            f"ids, got {vocab_size}{first}. Set `tokenizer` to the one that the model was made "
            "with, or the model's vocab_size to the tokenizer's"
        )


def is_marker(piece: str) -> bool:
    """Whether a piece is spelled like a turn marker, `<|…|>`."""
    return re.fullmatch(r"<[|｜].*[|｜]>", piece) is not None


def required_eos(path: Path, vocabulary: Mapping[str, int], eos: str | None) -> int:
    """The id of the end-of-sequence token.

    Raises:
      ValueError: it is not named, or not in the vocabulary.
    """
    if eos is None or eos not in vocabulary:
        raise ValueError(
            f"{path}: the end-of-sequence token is {eos!r}, which is not in the vocabulary; "
            "name it: load_tokenizer(spec, eos='…')"
        )
    return vocabulary[eos]


def choose_pad(
    path: Path, declared: int | None, eos_id: int, bos_id: int | None, spare: Mapping[str, int]
) -> int:
    """The padding id: never the eos, which the model has to be able to say.

    The declared one, unless it is the eos (SmolLM2, DeepSeek). Else, of the special tokens other
    than eos and bos: the first whose name says padding, then the first that the model's makers
    left free (reserved, unused, extra), then the first.

    Args:
      path: for the message.
      declared: from the file or its config; None or negative where there is none.
      eos_id, bos_id: what it must not be.
      spare: the special tokens, `{text: id}`.

    Raises:
      ValueError: no token is left that can serve.
    """
    if declared is not None and declared >= 0 and declared != eos_id:
        return declared
    free = {i: text for text, i in spare.items() if i not in (eos_id, bos_id)}
    for name in (r"(?<![a-z])pad(?![a-z])", r"(?<![a-z])(reserved|unused|extra)(?![a-z])", ""):
        found = [i for i, text in free.items() if re.search(name, text.lower())]
        if found:
            return min(found)
    raise ValueError(f"{path}: the vocabulary has no special token that can serve as padding")


def digest(*parts: Any) -> str:
    """Hex SHA-256 of JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sibling_config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json beside the file, with chat_template.jinja put in its place.

    Raises:
      ValueError: it is not a JSON object.
    """
    file, jinja = path.with_name("tokenizer_config.json"), path.with_name("chat_template.jinja")
    try:
        settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(settings).__name__}")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if jinja.is_file():
        template = jinja.read_text("utf-8")
    return {**settings, "chat_template": template}


def text_of(token: Any) -> str | None:
    """A token in tokenizer_config.json is its text, or an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token


def declared_specials(settings: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """`{text: (id, is special)}` from a config's `added_tokens_decoder`."""
    added = settings.get("added_tokens_decoder") or {}
    return {t["content"]: (int(i), bool(t.get("special"))) for i, t in added.items()}

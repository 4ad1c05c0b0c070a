"""SentencePiece models, through the library itself.

Special tokens written in a text are cut out first, which SentencePiece does not do for control
pieces; after one, no space is put in front of the text.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import sentencepiece

from posttrain_jax.data import fast_tokenizer
from posttrain_jax.data.tokenizers import sentencepiece_proto as proto
from posttrain_jax.data.tokenizers.base import (
    Tokenizer,
    choose_pad,
    declared_specials,
    digest,
    is_marker,
    required_eos,
    sibling_config,
    text_of,
)

# ModelProto.normalizer_spec (field 3) {add_dummy_prefix (field 3): false}; appended to a serialised
# message, a field replaces the earlier value of the same field.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def from_sentencepiece(path: Path, eos: str | None) -> Tokenizer:
    """A `.model` file; what it does not say comes from the tokenizer_config.json beside it.

    Raises:
      ValueError: not such a file, no eos, tokens added outside of the model.
    """
    settings = sibling_config(path)
    specials = declared_specials(settings)
    marked = [text for text, (_, special) in specials.items() if special]
    eos = eos or text_of(settings.get("eos_token"))
    tokenizer = from_model(path, path.read_bytes(), eos, settings["chat_template"], marked)
    beyond = {text: i for text, (i, _) in specials.items() if i >= tokenizer.vocab_size}
    if beyond:
        raise ValueError(
            f"{path}: expected all tokens in the model ({tokenizer.vocab_size} pieces), got added "
            f"ones in tokenizer_config.json: {beyond}; use the model's tokenizer.json"
        )
    return tokenizer


def from_model(
    path: Path, data: bytes, eos: str | None, chat_template: str | None, marked: list[str]
) -> Tokenizer:
    """A SentencePiece model from its bytes.

    Args:
      path: where it is from, for messages.
      data: the serialised model.
      eos: the token that ends a turn, if it is not the model's own.
      chat_template: the template that came with it.
      marked: pieces that are turn markers though their spelling does not show it.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from None
    model = proto.read_model(data)
    pieces = {piece.text: i for i, piece in enumerate(model.pieces)}
    defined = {p.text: i for i, p in enumerate(model.pieces) if p.kind == proto.USER_DEFINED}
    if eos is None and processor.eos_id() >= 0:
        eos = processor.id_to_piece(processor.eos_id())
    eos_id = required_eos(path, pieces, eos)
    markers = {p.text: i for i, p in enumerate(model.pieces) if p.kind == proto.CONTROL}
    names = {p for p in defined if is_marker(p)} | {p for p in (*marked, eos) if p in defined}
    markers |= {p: defined[p] for p in defined if p in names}
    tags = {p: i for p, i in defined.items() if re.fullmatch(r"</?[a-z_]+>", p)} | markers
    bos_id = processor.bos_id() if processor.bos_id() >= 0 else None
    spare = {processor.id_to_piece(processor.unk_id()): processor.unk_id()}
    pad_id = choose_pad(path, processor.pad_id(), eos_id, bos_id, spare)
    # After a special token no space is put in front of the text: a second view of the model.
    inner = sentencepiece.SentencePieceProcessor(model_proto=data + _NO_DUMMY_PREFIX)
    encode = partial(_encode, processor, inner, tags, _splitter(tags))
    decode = partial(_decode, processor, inner, {i: p for p, i in tags.items()}, markers)
    return Tokenizer(
        encode=encode,
        decode=decode,
        vocab_size=len(model.pieces),
        pad_id=pad_id,
        eos_id=eos_id,
        eos_token=processor.id_to_piece(eos_id),
        bos_token="" if bos_id is None else processor.id_to_piece(bos_id),
        markers=markers,
        hash=digest(hashlib.sha256(data).hexdigest(), eos_id, pad_id),
        chat_template=chat_template,
        files=partial(_files, data, encode, decode, tags, markers),
    )


def _files(data: bytes, encode, decode, tags, markers) -> dict[str, bytes]:
    files = {"tokenizer.model": data}
    model, special = proto.read_model(data), frozenset(markers.values())
    backend = fast_tokenizer.from_sentencepiece(model, encode, decode, tags, special)
    if backend is not None:
        files["tokenizer.json"] = backend.to_str(pretty=True).encode()
    return files


def _splitter(tags: Mapping[str, int]) -> re.Pattern[str]:
    longest_first = sorted(tags, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if tags else "(?!)")


def _encode(first, inner, tags, splitter, text: str) -> list[int]:
    ids: list[int] = []
    for part in filter(None, splitter.split(text)):
        if part in tags:
            ids.append(tags[part])
        else:
            ids += (inner if ids else first).encode(part)
    return ids


def _decode(first, inner, names, markers, ids, skip_special: bool = False) -> str:
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

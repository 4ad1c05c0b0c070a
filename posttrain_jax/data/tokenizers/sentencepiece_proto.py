"""The few fields of a SentencePiece model file that the library does not give out.

A model file is a protocol buffer (google/sentencepiece, src/sentencepiece_model.proto): pieces
(field 1: text 1, score 2, type 3), trainer_spec (field 2), normalizer_spec (field 3). Reading and
writing them takes a screenful, and no further package.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces; GGUF's `tokenizer.ggml.token_type` uses the same numbers."""
UNIGRAM, BPE = 1, 2


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


class Model(NamedTuple):
    """What decides how a model is written down elsewhere.

    Attributes:
      pieces: by id.
      kind: UNIGRAM or BPE (3 and 4 are words and characters).
      byte_fallback: unknown characters become bytes.
      charsmap: the compiled normalisation, empty for none.
      dummy_prefix: a space is put before the text.
      squeeze_spaces: runs of spaces become one, outer ones go.
    """

    pieces: tuple[Piece, ...]
    kind: int
    byte_fallback: bool
    charsmap: bytes
    dummy_prefix: bool
    squeeze_spaces: bool


def read_model(data: bytes) -> Model:
    """Parse a model file that the library has already accepted."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append(Piece(piece.get(1, b"").decode(), score, piece.get(3, NORMAL)))
        elif number in (2, 3):  # a later part of the file adds to an earlier one
            (trainer if number == 2 else normalizer).update(_fields(value))
    return Model(
        tuple(pieces),
        trainer.get(3, UNIGRAM),
        bool(trainer.get(35, 0)),
        normalizer.get(2, b""),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
    )


def write_model(
    pieces: Sequence[Piece],
    special: dict[str, int | None],
    *,
    dummy_prefix: bool,
    squeeze_spaces: bool,
) -> bytes:
    """A byte-pair model with byte fallback and no normalisation.

    Args:
      pieces: the vocabulary by id.
      special: ids of "unk", "bos", "eos", "pad"; None or left out where there is none.
      dummy_prefix, squeeze_spaces: as in `Model`.
    """
    parts = []
    for piece in pieces:
        inner = _text(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score)
        parts.append(_text(1, inner + _number(3, piece.kind)))
    trainer = _number(3, BPE) + _number(35, any(p.kind == BYTE for p in pieces))
    for place, name in enumerate(("unk", "bos", "eos", "pad")):
        i = special.get(name)
        trainer += _number(40 + place, -1 if i is None else i)
        if i is not None:
            trainer += _text(45 + place, pieces[i].text.encode())
    spec = _text(1, b"identity") + _number(3, dummy_prefix) + _number(4, squeeze_spaces)
    return b"".join([*parts, _text(2, trainer), _text(3, spec + _number(5, 1))])


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message; fixed-width values stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            size, at = (8, at) if wire == 1 else (4, at) if wire == 5 else _varint(data, at)
            value, at = data[at : at + size], at + size
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _write_varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number is written as its two's complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _write_varint(field << 3) + _write_varint(int(value))


def _text(field: int, value: bytes) -> bytes:
    return _write_varint(field << 3 | 2) + _write_varint(len(value)) + value

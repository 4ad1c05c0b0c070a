"""What each token adds to a text, in bytes, as `decode` puts the text together.

Asked of `decode` itself, token by token, so that every kind of vocabulary is covered: SentencePiece
drops the first space of a text, and where it squeezes spaces also those behind a special token; the
`tokenizers` library judges a run of byte pieces whole. A byte that is part of a character shows as
U+FFFD there; which one it is stands in the vocabulary's file. The result is compared with `decode`
before it is given out.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from posttrain_jax.data.tokenizers import sentencepiece_proto as proto
from posttrain_jax.data.tokenizers.base import Tokenizer
from posttrain_jax.data.tokenizers.byte_level import byte_names
from posttrain_jax.data.tokenizers.streaming import UNFINISHED


class Spelling(NamedTuple):
    """The words of a vocabulary; lists are by id.

    Attributes:
      later: what a token adds after others.
      first: what it adds where the text starts.
      runs: byte pieces, a run of which is text only if all of it makes whole characters.
      keeps: tokens after which a text that has not started has still not.
      reopens: tokens after which the next one is spelled as a first one again.
    """

    later: Sequence[bytes]
    first: Sequence[bytes]
    runs: frozenset[int]
    keeps: frozenset[int]
    reopens: frozenset[int]


@lru_cache(maxsize=8)
def spelling(tokenizer: Tokenizer) -> Spelling:
    """How a tokenizer's tokens are spelled; a second or two for 100,000 of them, the first time.

    Raises:
      ValueError: its texts are not put together token by token (CTC, for one).
    """
    ids, decode = range(tokenizer.vocab_size), tokenizer.decode
    anchor = _anchor(tokenizer)
    before = decode([anchor])
    together = [decode([anchor, i]) for i in ids]
    if not all(text.startswith(before) for text in together):
        raise _refusal(tokenizer)
    later_texts = [text[len(before) :] for text in together]
    first_texts = [decode([i]) for i in ids]
    pieces = _pieces(tokenizer) if any(UNFINISHED in text for text in later_texts) else {}
    later = [_bytes(text, pieces.get(i, text)) for i, text in zip(ids, later_texts, strict=True)]
    first = [later[i] if first_texts[i] == later_texts[i] else first_texts[i].encode() for i in ids]
    keeps, reopens = frozenset(i for i in ids if not later[i]), frozenset()
    differs = [i for i in ids if first[i] != later[i] and i not in tokenizer.open_ids]
    if differs:  # the token that shows where a text starts
        probe = max(differs, key=lambda i: len(first[i]))
        silent = [i for i in differs if not first[i]]
        keeps |= {i for i in silent if decode([i, probe]) == first_texts[probe]}
        reopens = frozenset(
            i for i in ids if decode([anchor, i, probe]) == together[i] + first_texts[probe]
        )
    found = Spelling(later, first, tokenizer.open_ids, keeps, reopens)
    if not _agrees(tokenizer, found):
        raise _refusal(tokenizer)
    return found


def spell(found: Spelling, ids: Sequence[int]) -> str:
    """The text of some tokens; as `decode`, but for how many U+FFFD stand in a row."""
    text, run, start = b"", b"", True
    for i in ids:
        word = (found.first if start else found.later)[i]
        start = i in found.reopens or (start and i in found.keeps)
        if i in found.runs:
            run += word
        elif word:
            text, run = text + _whole(run) + word, b""
    return (text + _whole(run)).decode(errors="replace")


def _whole(run: bytes) -> bytes:
    try:
        run.decode()
    except UnicodeDecodeError:
        return UNFINISHED.encode()
    return run


def _anchor(tokenizer: Tokenizer) -> int:
    """A token with text of its own, to look at others behind it."""
    special = {*tokenizer.markers.values(), *tokenizer.open_ids, tokenizer.pad_id}
    for i in (*tokenizer.encode("a"), *range(tokenizer.vocab_size)):
        text = tokenizer.decode([i])
        if i not in special and text.strip() and UNFINISHED not in text:
            return i
    raise _refusal(tokenizer)


def _refusal(tokenizer: Tokenizer) -> ValueError:
    return ValueError(
        f"tokenizer {tokenizer.hash[:12]}: expected texts that are put together token by token, "
        "got one whose decoder changes what stands before. Strings can't be found in it while "
        "tokens are sampled: use stop token ids in place of stop_strings"
    )


def _pieces(tokenizer: Tokenizer) -> Mapping[int, str]:
    """The vocabulary as its file writes it."""
    files = tokenizer.files()
    if "tokenizer.model" in files:
        pieces = proto.read_model(files["tokenizer.model"]).pieces
        return {i: piece.text for i, piece in enumerate(pieces)}
    content = json.loads(files["tokenizer.json"])
    words = content["model"]["vocab"]
    named = words.items() if isinstance(words, dict) else ((w, i) for i, (w, _) in enumerate(words))
    added = ((token["content"], token["id"]) for token in content["added_tokens"])
    return {i: word for pairs in (named, added) for word, i in pairs}


_BYTES = {name: byte for byte, name in enumerate(byte_names())}


def _bytes(text: str, piece: str) -> bytes:
    """A token's bytes: those of its text, unless that shows only parts of characters."""
    if UNFINISHED not in text:
        return text.encode()
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    if all(letter in _BYTES for letter in piece):
        return bytes(_BYTES[letter] for letter in piece)
    return text.encode()


def _agrees(tokenizer: Tokenizer, found: Spelling) -> bool:
    """Whether three hundred random texts are spelled as they are decoded."""
    rng, ids = random.Random(0), range(tokenizer.vocab_size)
    some = [i for i in ids if found.first[i] != found.later[i]]
    shown = [word.decode(errors="replace") for word in found.later]
    bits = [i for i in ids if i in found.runs or UNFINISHED in shown[i]]
    pools = [pool for pool in (ids, some, bits, [*tokenizer.markers.values()]) if pool]
    squeeze = lambda text: re.sub(f"{UNFINISHED}+", UNFINISHED, text)  # noqa: E731
    for _ in range(300):
        tokens = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 12))]
        if squeeze(spell(found, tokens)) != squeeze(tokenizer.decode(tokens)):
            return False
    return True

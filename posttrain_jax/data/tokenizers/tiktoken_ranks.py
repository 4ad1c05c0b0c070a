"""tiktoken rank files: `base64(token) rank` a line (Llama 3's tokenizer.model, qwen.tiktoken).

Read into the `tokenizers` library, which gives the same ids as tiktoken itself: tiktoken joins the
two neighbours whose union has the lowest rank, leftmost first, so every way to write a token as two
tokens is a merge, ordered by rank; and it takes a whole piece that is a token as it is
(`ignore_merges`). One backend then serves encoding, pickling and the exported tokenizer.json, and
tiktoken is needed in tests only. Qwen's normal form C is that library's, of an older Unicode: some
98 rare combining marks that came later keep the order they are written in.
"""

import base64
import binascii
import re
from pathlib import Path

import tokenizers
from tokenizers import normalizers

from posttrain_jax.data.tokenizers.backend import from_backend
from posttrain_jax.data.tokenizers.base import (
    Tokenizer,
    declared_specials,
    sibling_config,
    text_of,
)
from posttrain_jax.data.tokenizers.byte_level import bpe, byte_names, split_by
from posttrain_jax.data.tokenizers.tiktoken_families import FAMILIES, Family


def is_rank_file(data: bytes) -> bool:
    """Whether the first line is a base64 word and a number (a SentencePiece model's never is)."""
    line = data[:4096].split(b"\n", 1)[0].rstrip(b"\r")
    return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+", line) is not None


def from_ranks(path: Path, eos: str | None, family: str | None) -> Tokenizer:
    """A rank file.

    The special tokens are those of tokenizer_config.json (`added_tokens_decoder`) beside it, else
    the family's.

    Args:
      path: the file.
      eos: the token that ends a turn; default the config's, then the family's.
      family: a name of `FAMILIES`; default the one that has as many ranks.

    Raises:
      ValueError: a malformed line, an unknown family, ids that are taken twice.
    """
    ranks = read_ranks(path)
    about = _family(path, len(ranks), family)
    settings = sibling_config(path)
    specials = declared_specials(settings) or {
        text: (len(ranks) + i, True) for i, text in enumerate(about.specials())
    }
    wrong = {text: i for text, (i, _) in specials.items() if i < len(ranks)}
    if wrong:
        raise ValueError(
            f"{path.with_name('tokenizer_config.json')}: expected added tokens with ids from "
            f"{len(ranks)} on (the ranks in {path.name} end before), got {wrong}"
        )
    kept = {name: text_of(settings.get(f"{name}_token")) for name in ("eos", "bos", "pad")}
    chosen = {
        "eos": eos or kept["eos"] or about.eos,
        "bos": kept["bos"] or about.bos,
        "pad": kept["pad"] or about.pad,
    }
    backend = _backend(ranks, about, specials)
    return from_backend(path, backend, chosen, settings["chat_template"])


def read_ranks(path: Path) -> dict[bytes, int]:
    """`{token: rank}` of a rank file.

    Raises:
      ValueError: a line is malformed, ranks are not 0, 1, 2 …, or a byte has no token.
    """
    ranks: dict[bytes, int] = {}
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            word, rank = line.split()
            ranks[base64.b64decode(word, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: expected a base64 token and its rank, got {line[:60]!r}"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"{path}: expected the ranks 0 to {len(ranks) - 1}, each once, got "
            f"{len(ranks)} tokens with ranks up to {max(ranks.values(), default=-1)}"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{path}: expected a token for each byte, got none for {missing[:5]}")
    return ranks


def _family(path: Path, count: int, name: str | None) -> Family:
    if name is None:
        name = next((n for n, family in FAMILIES.items() if family.ranks == count), None)
    if name not in FAMILIES:
        known = ", ".join(f"{n} ({family.ranks} ranks)" for n, family in FAMILIES.items())
        raise ValueError(
            f"{path}: a rank file does not say how its texts are split. Expected a known family: "
            f"{known}; got {count if name is None else name!r}. Name the family: "
            "load_tokenizer(spec, family='…'), or use the model's tokenizer.json"
        )
    return FAMILIES[name]


def _backend(
    ranks: dict[bytes, int], about: Family, specials: dict[str, tuple[int, bool]]
) -> tokenizers.Tokenizer:
    names = byte_names()
    written = {token: "".join(names[byte] for byte in token) for token in ranks}
    merges = sorted(
        (rank, ranks[token[:cut]], ranks[token[cut:]], token, cut)
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    )
    pairs = [(written[token[:cut]], written[token[cut:]]) for _, _, _, token, cut in merges]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    vocabulary |= {text: i for text, (i, _) in specials.items()}
    matched = {text: special for text, (_, special) in specials.items()}
    backend = bpe(vocabulary, pairs, split_by([about.pattern]), matched, ignore_merges=True)
    if about.nfc:
        backend.normalizer = normalizers.NFC()
    return backend

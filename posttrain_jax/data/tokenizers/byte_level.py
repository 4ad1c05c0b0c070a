"""Byte-level BPE: the alphabet that writes bytes as characters, and what splits a text first.

Split patterns are facts of the published tokenizers. Sources: GPT-2's encoder.py; Llama 3 and
Llama 4: meta-llama/llama-models, tokenizer.py; Qwen: tokenization_qwen.py; DeepSeek-V3: its
tokenizer.json; which of them a GGUF name stands for: llama.cpp, src/llama-vocab.cpp.
"""

from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str) -> str:
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


CL100K = _words(r"\p{N}{1,3}")
"""GPT-4's, as Llama 3, DBRX and OLMo 2 use it: numbers in threes."""
QWEN2 = _words(r"\p{N}")
"""The same with every digit alone."""
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
O200K = (
    f"{_HEAD}[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?|{_HEAD}[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
"""GPT-4o's, as Llama 4 and gpt-oss use it: words split at capitals."""
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
"""Three splits, one after the other."""


def split_by(patterns: Sequence[str]) -> Any:
    """A pre-tokenizer that cuts at the matches of each pattern in turn, then writes bytes."""
    cuts = [pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence([*cuts, _byte_level(use_regex=False)])


def gpt2_split(*, digits_alone: bool) -> Any:
    """GPT-2's pre-tokenizer; SmolLM and StarCoder cut every digit off before it."""
    digits = [pre_tokenizers.Digits(individual_digits=True)] if digits_alone else []
    return pre_tokenizers.Sequence([*digits, _byte_level(use_regex=True)])


def _byte_level(*, use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def byte_names() -> list[str]:
    """The character that stands for each byte: itself where it can be seen, else one from 256 on.

    (GPT-2, encoder.py.)
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(spare)) for byte in range(256)]


def bpe(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    split: Any,
    specials: dict[str, bool],
    *,
    ignore_merges: bool = False,
) -> tokenizers.Tokenizer:
    """A byte-level BPE.

    Args:
      vocabulary: `{token in byte characters: id}`, special tokens included under their own text.
      merges: pairs to join, the first ones first.
      split: the pre-tokenizer.
      specials: `{text: True for a turn marker, False for another token that is matched whole}`.
      ignore_merges: take a piece that is itself a token as it is, as tiktoken does.
    """
    options = {"ignore_merges": True} if ignore_merges else {}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    backend.pre_tokenizer = split
    backend.decoder = tokenizers.decoders.ByteLevel()
    for text, special in specials.items():
        token = tokenizers.AddedToken(text, special=special, normalized=False)
        backend.add_special_tokens([token]) if special else backend.add_tokens([token])
    return backend

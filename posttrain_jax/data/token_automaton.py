"""Strings found in a text while its tokens come, by an automaton that reads tokens.

First an automaton that reads bytes (Aho and Corasick 1975): its state is the longest end of the
text that begins one of the strings. Then every token's bytes are run through it from every state.
Tokens that do the same in every state share a column, so that a vocabulary of 200,000 takes one
small table and one number a token. This module imports no jax.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from posttrain_jax.data.tokenizers.base import Tokenizer
from posttrain_jax.data.tokenizers.spelling import Spelling, spelling
from posttrain_jax.data.tokenizers.streaming import UNFINISHED

FOUND, START = 0, 1
"""The state once a string is in the text, which is never left, and that of an empty text."""


class TokenAutomaton(NamedTuple):
    """The state after a token: `next_SC[state, class_V[token]]`; int32, S states, C classes."""

    next_SC: np.ndarray
    class_V: np.ndarray


def token_automaton(
    tokenizer: Tokenizer, strings: Sequence[str], vocab_size: int, setting: str = "stop_strings"
) -> TokenAutomaton:
    """The automaton that finds any of the strings in `tokenizer.decode` of the tokens so far.

    Exactly when that text first contains one, be it inside of a token, over several, or made of
    bytes; special tokens count as their texts.

    Args:
      vocab_size: of the model, which may have more rows than the tokenizer has ids.
      setting: what the strings are called, for messages.

    Raises:
      ValueError: no strings, an empty one, one that no tokens spell, a tokenizer that can't be
        followed token by token.
    """
    if isinstance(strings, str) or not strings:
        raise ValueError(f"{setting}={strings!r}: expected a tuple of one string or more")
    read, words = [_checked(string, setting) for string in strings], spelling(tokenizer)
    for text, string in zip(strings, read, strict=True):
        table = _tokens(words, [string], tokenizer.vocab_size)
        if FOUND not in _reachable(np.delete(table, tokenizer.pad_id, axis=1)):
            raise ValueError(
                f"{setting}: expected strings that the tokenizer's tokens can spell, got {text!r}, "
                "which none of their sequences contains"
            )
    table = _tokens(words, read, vocab_size)
    kept = sorted({FOUND, *_reachable(table)})
    numbers = np.zeros(len(table), np.int32)
    numbers[kept] = np.arange(len(kept))
    return TokenAutomaton(*_classes(numbers[table[kept]]))


def _checked(string: str, setting: str) -> bytes:
    if not isinstance(string, str) or not string or UNFINISHED in string:
        raise ValueError(
            f"{setting}: expected texts that are not empty and have no U+FFFD (which stands for "
            f"bytes that are no character), got {string!r}"
        )
    return string.encode()


def _tokens(words: Spelling, strings: Sequence[bytes], size: int) -> np.ndarray:
    """The states after every token [S, size]: FOUND, START, and all others."""
    known = min(size, len(words.later))
    by_byte = _bytes(strings, bool(words.runs))
    states = len(by_byte)
    later = _run(by_byte, words.later[:known], words.runs, size)
    if all(a == b for a, b in zip(words.first[:known], words.later[:known], strict=True)):
        return later
    # Twice as many states: texts that have not started, then those that have.
    first = _run(by_byte, words.first[:known], words.runs, size)
    keeps, reopens = np.ones(size, bool), np.zeros(size, bool)
    keeps[:known] = [i in words.keeps for i in range(known)]
    reopens[:known] = [i in words.reopens for i in range(known)]
    first += states * ((first != FOUND) & ~(keeps | reopens))
    later += states * ((later != FOUND) & ~reopens)
    return np.concatenate([first, later])


_ByteState = tuple[bytes, tuple[int, ...] | None]


def _bytes(strings: Sequence[bytes], runs: bool) -> np.ndarray:
    """The states after every byte [S, 256]; with `runs` also after every byte piece [S, 512].

    A state is what is kept of the text, and what a run of byte pieces wants next: see `_wanted`.
    """
    begun = {string[:end] for string in strings for end in range(len(string))}
    states: dict[_ByteState, int] = {(b"", ()): START}
    rows = [[FOUND] * (512 if runs else 256)]

    def after(kept: bytes, wanted: tuple[int, ...] | None, symbol: int) -> _ByteState | None:
        piece, byte = divmod(symbol, 256)
        if piece:
            wanted = None if wanted is None else _wanted(wanted, byte)
        elif wanted != ():  # the run ends as no text
            kept, wanted = b"", ()
        if wanted is None:
            return b"", None
        kept += bytes([byte])
        if any(kept.endswith(string) for string in strings):
            return None
        return next(kept[i:] for i in range(len(kept) + 1) if kept[i:] in begun), wanted

    todo = [*states]
    for state in todo:
        following = [after(*state, symbol) for symbol in range(len(rows[0]))]
        for new in following:
            if new is not None and new not in states:
                states[new] = len(states) + 1
                todo.append(new)
        rows.append([FOUND if new is None else states[new] for new in following])
    return np.array(rows, np.int32)


def _wanted(wanted: tuple[int, ...], byte: int) -> tuple[int, ...] | None:
    """What a run of bytes wants after one more: () at the end of a character, else the least and
    greatest next byte and how many come after it; None: it can't be UTF-8 any more (RFC 3629)."""
    if wanted:
        least, greatest, more = wanted
        if not least <= byte <= greatest:
            return None
        return (0x80, 0xBF, more - 1) if more else ()
    if byte < 0x80:
        return ()
    if not 0xC2 <= byte <= 0xF4:
        return None
    least = {0xE0: 0xA0, 0xF0: 0x90}.get(byte, 0x80)
    greatest = {0xED: 0x9F, 0xF4: 0x8F}.get(byte, 0xBF)
    return least, greatest, (byte >= 0xE0) + (byte >= 0xF0)


def _run(by_byte: np.ndarray, words: Sequence[bytes], runs: frozenset[int], size: int):
    """The states after every word, from every state [S, size]; ids beyond them add nothing."""
    lengths = np.zeros(size, np.int64)
    lengths[: len(words)] = [len(word) for word in words]
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    symbols = np.frombuffer(b"".join(words[i] for i in order if i < len(words)), np.uint8)
    symbols = symbols.astype(np.int64) + 256 * np.repeat([i in runs for i in order], lengths)
    begins = np.cumsum(lengths) - lengths
    states = np.repeat(np.arange(len(by_byte), dtype=np.int32)[:, None], size, axis=1)
    for place in range(lengths[0] if size else 0):
        longer = np.count_nonzero(lengths > place)
        states[:, :longer] = by_byte[states[:, :longer], symbols[begins[:longer] + place]]
    after = np.empty_like(states)
    after[:, order] = states
    return after


def _reachable(table: np.ndarray) -> set[int]:
    """The states that some sequence of tokens leads to."""
    found, new = {START}, [START]
    while new:
        new = [s for s in np.unique(table[new]).tolist() if s not in found]
        found.update(new)
    return found


def _classes(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different columns of a table, and which of them each column is."""
    numbers: dict[bytes, int] = {}
    columns = np.ascontiguousarray(table.T)
    class_V = np.array([numbers.setdefault(c.tobytes(), len(numbers)) for c in columns], np.int32)
    firsts = np.unique(class_V, return_index=True)[1]
    return np.ascontiguousarray(table[:, firsts]), class_V

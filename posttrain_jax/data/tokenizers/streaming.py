"""Text while tokens arrive: never half a character, and together exactly `decode` of all.

    state = Stream()
    for token in tokens:
        state, text = push(tokenizer, state, token)     # text may be empty
    text = finish(tokenizer, state)

A state holds the tokens whose text is not all out yet, and before them enough of the earlier ones
that SentencePiece sees where it stands (it drops the first space of a text).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from posttrain_jax.data.tokenizers.base import Tokenizer

UNFINISHED = "\ufffd"
"""What `decode` writes for a byte that belongs to no character, or not yet."""
LONGEST = 3
"""So many bytes of an unfinished character there can be; SentencePiece writes one mark for each."""


class Stream(NamedTuple):
    """Where a streamed text stands; immutable.

    Attributes:
      tokens: the last tokens; their text is being given out.
      shown: how many characters of it are out.
    """

    tokens: tuple[int, ...] = ()
    shown: int = 0


def push(
    tokenizer: Tokenizer, state: Stream, token: int, *, skip_special: bool = False
) -> tuple[Stream, str]:
    """One more token.

    Args:
      tokenizer: of the stream.
      state: `Stream()` at the start, then what the last call gave.
      token: its id.
      skip_special: as in `tokenizer.decode`; the same in every call of a stream.

    Returns:
      The next state, and the text that is certain now: often a word, "" inside a character.
    """
    tokens = (*state.tokens, int(token))
    if tokenizer.open_ids:  # a run of bytes goes on over what is left out
        left_out = frozenset(tokenizer.markers.values()) if skip_special else frozenset()
        if next((t for t in reversed(tokens) if t not in left_out), None) in tokenizer.open_ids:
            return Stream(tokens, state.shown), ""
    text = tokenizer.decode(tokens, skip_special=skip_special)
    certain = len(text)
    while certain > max(state.shown, len(text) - LONGEST) and text[certain - 1] == UNFINISHED:
        certain -= 1
    new = text[state.shown : certain]
    if certain < len(text):
        return Stream(tokens, max(state.shown, certain)), new
    return _shortened(tokenizer, tokens, len(text), skip_special), new


def finish(tokenizer: Tokenizer, state: Stream, *, skip_special: bool = False) -> str:
    """What was held back: characters that never became whole."""
    return tokenizer.decode(state.tokens, skip_special=skip_special)[state.shown :]


def stream_text(
    tokenizer: Tokenizer, tokens: Iterable[int], *, skip_special: bool = False
) -> Iterator[str]:
    """The non-empty texts of a stream, the held-back one last."""
    state = Stream()
    for token in tokens:
        state, text = push(tokenizer, state, token, skip_special=skip_special)
        if text:
            yield text
    if text := finish(tokenizer, state, skip_special=skip_special):
        yield text


def _shortened(
    tokenizer: Tokenizer, tokens: Sequence[int], length: int, skip_special: bool
) -> Stream:
    """The shortest end of the tokens that has text of its own, all of it out."""
    markers = frozenset(tokenizer.markers.values()) if skip_special else frozenset()
    for start in reversed(range(len(tokens))):
        if tokens[start] not in markers and tokens[start] not in tokenizer.open_ids:
            text = tokenizer.decode(tokens[start:], skip_special=skip_special)
            if text and UNFINISHED not in text:
                return Stream(tuple(tokens[start:]), len(text))
    return Stream(tuple(tokens), length)

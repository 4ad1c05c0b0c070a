"""Conversations as tokens, for models that judge what was said in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain_jax.data.chat import encode_chat
from posttrain_jax.data.examples import messages
from posttrain_jax.policy import Text
from posttrain_jax.verifiers.terms import cut


def without_markers(content: str, text: Text) -> str:
    """A text without the turn markers of a tokenizer, which would forge a turn.

    Where taking them out makes new ones of what stood around them, spaces take their places.
    """
    markers = re.compile("|".join(map(re.escape, text.tokenizer.markers)) or "(?!)")
    content = markers.sub("", content)
    return markers.sub(" ", content)


def encode_parts(
    pairs: Sequence[tuple[Mapping[str, Any], str]], text: Text, length: int, span: str
) -> tuple[list[tuple[np.ndarray, int]], int]:
    """As `encode`; with each conversation the number of tokens before its response."""
    parts, too_long = [], 0
    for example, response in pairs:
        said = cut(without_markers(response, text), span)
        if span != "whole":  # white space at its start could merge with the generation prompt
            said = said.strip()
        ids, spoken = encode_chat(*text, messages(example, said))
        too_long += len(ids) > length
        prompt = spoken.index(True) if True in spoken else len(ids)
        parts.append((np.array(ids[:length], np.int32), min(prompt, length)))
    return parts, too_long


def encode(
    pairs: Sequence[tuple[Mapping[str, Any], str]], text: Text, length: int, span: str
) -> tuple[list[np.ndarray], int]:
    """The tokens of each (example, response), and how many were cut to `length`.

    Turn markers that a policy wrote into its response are taken out: they must not forge a turn.
    """
    parts, too_long = encode_parts(pairs, text, length, span)
    return [tokens for tokens, _ in parts], too_long


def encode_rows(
    pairs: Sequence[tuple[Mapping[str, Any], str]], text: Text, length: int, span: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Conversations as right-padded rows (tokens, segments, tokens before the response), and how
    many were cut to `length`."""
    parts, too_long = encode_parts(pairs, text, length, span)
    tokens = np.full((len(pairs), length), text.tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for row, (ids, _) in enumerate(parts):
        tokens[row, : len(ids)] = ids
        segments[row, : len(ids)] = 1
    return tokens, segments, np.array([prompt for _, prompt in parts], np.int32), too_long

"""Stop strings: found on the device while tokens are sampled, cut off on the host."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from posttrain_jax.api import Array
from posttrain_jax.data.token_automaton import FOUND, TokenAutomaton


def advance(automaton: TokenAutomaton, state_B: Array, token_B: Array) -> Array:
    """The states after one more token a row; `FOUND` once a string is in the row's text."""
    next_SC, class_V = (jnp.asarray(x) for x in automaton)
    return next_SC[state_B, class_V[token_B]]


def completing(automaton: TokenAutomaton, state_B: Array) -> Array:
    """The tokens that would put a string into the text of each row, as bool [B, V]."""
    next_SC, class_V = (jnp.asarray(x) for x in automaton)
    return (next_SC[state_B] == FOUND)[:, class_V]


def trim(text: str, strings: Sequence[str]) -> str:
    """The text before the first of the strings, or all of it.

    The first is the one that ends first (the longest of several that end there), because it would
    have stopped the text however that is cut into tokens.
    """
    ends = [(at + len(string), at) for string in strings if (at := text.find(string)) >= 0]
    return text[: min(ends)[1]] if ends else text

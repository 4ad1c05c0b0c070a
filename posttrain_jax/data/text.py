"""The text format of a stage: its tokenizer and its chat template, from settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from posttrain_jax.data.chat_template import ChatTemplate, load_template
from posttrain_jax.data.tokenizer import Tokenizer, load_tokenizer


class Text(NamedTuple):
    """The two halves of a text format."""

    tokenizer: Tokenizer
    template: ChatTemplate


def open_text(config: Mapping[str, Any]) -> Text:
    """Tokenizer and chat template of a stage's config.

    Raises:
      FileNotFoundError, ValueError: as `load_tokenizer` and `load_template`.
    """
    tokenizer = open_tokenizer(config)
    options = dict(config.get("template_options") or {})
    return Text(tokenizer, load_template(config["chat_template"], tokenizer, options))


def open_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a stage's config.

    Raises:
      FileNotFoundError, ValueError: as `load_tokenizer`; an option that it does not take.
    """
    options = dict(config.get("tokenizer_options") or {})
    if unknown := set(options) - {"eos", "family"}:
        raise ValueError(f"tokenizer_options has {sorted(unknown)}; there are eos and family")
    return load_tokenizer(config["tokenizer"], **options)

"""Texts inside of others: what a tool put into a response, which nobody is to learn to say.

A rollout gets its tools' results as tokens of their own (rollout/partners.py). So a worked response
that holds results is encoded piece by piece, and the results are left out of the loss.
"""

import re
from collections.abc import Sequence

from posttrain_jax.data.chat_template import ChatTemplate
from posttrain_jax.data.messages import Messages, check_messages
from posttrain_jax.data.tokenizers.base import Tokenizer


def encode_inner(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text inside of another: SentencePiece puts no space before it."""
    special, *ids = tokenizer.encode(tokenizer.eos_token + text)
    return ids if special == tokenizer.eos_id else tokenizer.encode(text)


def encode_inserted(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Messages,
    pairs: Sequence[tuple[str, str]],
) -> tuple[list[int], list[bool]]:
    """As `chat.encode_chat` of a conversation that ends with the assistant's turn, the last alone.

    Args:
      pairs: a result is what begins with the first and ends with the second text of a pair.

    Raises:
      ValueError: the last message is not the assistant's, its turn does not follow what is before,
        or the turn is not closed by the end-of-sequence token.
    """
    check_messages(messages, tokenizer.markers)
    before, text = template.render(messages[:-1], True), template.render(messages)
    if messages[-1]["role"] != "assistant" or not text.startswith(before):
        raise ValueError(
            f"{template.name and template.name + ': '}expected the assistant's turn behind "
            f"{before[-60:]!r}, got {text[-120:]!r}"
        )
    said, end, _rest = text[len(before) :].partition(tokenizer.eos_token)
    if not end:
        raise ValueError(f"the assistant's turn is not closed by {tokenizer.eos_token!r}")
    tokens = tokenizer.encode(before)
    mask = [False] * len(tokens)
    spans = "|".join(f"{re.escape(a)}.*?{re.escape(b)}" for a, b in pairs)
    for number, piece in enumerate(re.split(f"({spans})", said, flags=re.DOTALL)):
        ids = encode_inner(tokenizer, piece) if piece else []
        tokens += ids
        mask += [number % 2 == 0] * len(ids)
    return [*tokens, tokenizer.eos_id], [*mask, True]

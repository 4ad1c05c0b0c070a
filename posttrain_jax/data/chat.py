"""A conversation as tokens, with a loss mask that is checked, not assumed.

The mask is found by rendering prefixes of the conversation: an assistant's turn is what follows the
generation prompt, up to and including the end-of-sequence token. Text prefix and token prefix are
both checked, so that training sees the tokens sampling makes. Where a template marks its own
`{% generation %}` blocks, they decide within those turns: what they leave out is not trained on.

Templates that drop earlier reasoning (Qwen3, DeepSeek-R1) render a turn differently once the next
one follows. Such a conversation is refused with `turns="all"`; with `turns="last"` the loss is on
what follows the last user message only, which is what sampling sees, and `split_turns` makes one
row a turn of a longer conversation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.data.chat_template import TEMPLATES, ChatTemplate, Tools, load_template
from posttrain_jax.data.messages import Messages, check_messages, split_turns
from posttrain_jax.data.tokenizers.base import Tokenizer

__all__ = [
    "TEMPLATES",
    "ChatTemplate",
    "Messages",
    "encode_chat",
    "encode_prompt",
    "load_template",
    "split_turns",
]


def encode_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Messages,
    *,
    tools: Tools | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Tokens of the conversation up to the point where the assistant speaks.

    Raises:
      ValueError: as `encode_chat`.
    """
    check_messages(messages, tokenizer.markers)
    return tokenizer.encode(template.render(messages, True, tools=tools, documents=documents))


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Messages,
    *,
    tools: Tools | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    turns: str = "all",
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation, and which of them the loss is taken on.

    Args:
      tokenizer, template: the text format.
      messages: see `data/messages.py`.
      tools, documents: given to the template.
      turns: "all", or "last" for what the assistant says after the last user message.

    Raises:
      ValueError: a prefix of the conversation renders or tokenises differently inside the whole
        (for example a template that drops earlier reasoning), an assistant turn is not closed by
        the eos token, a generation block lies outside of the turns, or a message is malformed or
        holds a turn marker.
    """
    if turns not in ("all", "last"):
        raise ValueError(f"turns: expected 'all' or 'last', got {turns!r}")
    check_messages(messages, tokenizer.markers)
    given = {"tools": tools, "documents": documents}
    text, spans = template.render_spans(messages, **given)
    tokens = tokenizer.encode(text)
    mask, used = [False] * len(tokens), set()
    for i in _trained(messages, turns):
        before = template.render(messages[:i], True, **given)
        after = template.render(messages[: i + 1], **given)
        _check_text_prefix(template, i, before, after, "the generation prompt before it")
        _check_text_prefix(template, i, after, text, "the conversation up to it")
        start = len(_encode_prefix(tokenizer, tokens, before, i))
        end = start + _turn_length(tokenizer, tokens[start:], i)
        if tokenizer.encode(after)[:end] != tokens[:end]:
            raise ValueError(f"message {i} tokenises differently when other messages follow it")
        if spans is None:
            mask[start:end] = [True] * (end - start)
            continue
        stop = text.index(tokenizer.eos_token, len(before)) + len(tokenizer.eos_token)
        inside = [s for s in spans if s[0] < stop and s[1] > len(before)]
        used.update(inside)
        for a, b in _generated(tokenizer, tokens, text, inside, (len(before), stop), end, i):
            mask[a:b] = [True] * (b - a)
    if turns == "all" and spans is not None:
        _check_used(template, text, spans, used)
    return tokens, mask


def _trained(messages: Messages, turns: str) -> list[int]:
    """The assistant's messages that the loss is taken on."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    first = users[-1] if turns == "last" and users else 0
    return [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]


def _generated(tokenizer, tokens, text, spans, turn, end: int, i: int) -> list[tuple[int, int]]:
    """Token ranges of the generation blocks, cut to the turn's characters `turn`."""
    ranges = []
    for start, stop in spans:
        first = len(_encode_prefix(tokenizer, tokens, text[: max(start, turn[0])], i))
        last = end if stop >= turn[1] else len(_encode_prefix(tokenizer, tokens, text[:stop], i))
        ranges.append((first, last))
    if ranges and ranges[-1][1] != end:
        raise ValueError(
            f"the generation block of message {i} (assistant) leaves out the end-of-sequence token "
            f"{tokenizer.eos_token!r}: a model trained so never ends a turn; put it into the block"
        )
    return ranges


def _check_used(template: ChatTemplate, text: str, spans, used) -> None:
    for start, stop in spans:
        if (start, stop) not in used and text[start:stop]:
            raise ValueError(
                f"{template.name and template.name + ': '}the generation block at characters "
                f"{start} to {stop} ({text[start:stop]!r:.60}) is expected inside an assistant's "
                "turn, after the generation prompt; got it where nothing is sampled"
            )


def _check_text_prefix(template: ChatTemplate, i: int, prefix: str, whole: str, what: str) -> None:
    if not whole.startswith(prefix):
        pairs = enumerate(zip(prefix, whole, strict=False))
        at = next((n for n, (a, b) in pairs if a != b), min(len(prefix), len(whole)))
        raise ValueError(
            f"{template.name and template.name + ': '}the chat template can't be masked: around "
            f"message {i} (assistant), {what} is not a prefix of the text; expected "
            f"{prefix[at : at + 40]!r}, got {whole[at : at + 40]!r} at character {at}. If it drops "
            "earlier reasoning, set turns='last'; if only the generation prompt differs, set the "
            "template's options"
        )


def _encode_prefix(tokenizer: Tokenizer, tokens: list[int], text: str, i: int) -> list[int]:
    prefix = tokenizer.encode(text)
    if tokens[: len(prefix)] != prefix:
        pairs = enumerate(zip(prefix, [*tokens, None], strict=False))
        at = next(n for n, (a, b) in pairs if a != b)
        raise ValueError(
            f"the prompt before message {i} (assistant) tokenises differently once the message "
            f"follows: token {at} of the prompt merges with the content "
            f"({tokenizer.decode(tokens[at : at + 1])!r}); strip white space at the content's "
            "start, or use a template whose generation prompt ends in a special token"
        )
    return prefix


def _turn_length(tokenizer: Tokenizer, rest: list[int], i: int) -> int:
    if tokenizer.eos_id not in rest:
        raise ValueError(
            f"the chat template does not close message {i} (assistant) with the end-of-sequence "
            f"token {tokenizer.eos_token!r}"
        )
    return rest.index(tokenizer.eos_id) + 1

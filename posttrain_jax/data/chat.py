"""Chat templates: messages to text to tokens, with a loss mask that is checked, not assumed.

A message is `{"role": "system" | "user" | "assistant", "content": str}`. Templates are the Jinja
of Hugging Face's `chat_template`, rendered in an immutable sandbox with the same options
(`trim_blocks`, `lstrip_blocks`, `loopcontrols`, `raise_exception`). Left out: tools, documents,
`strftime_now` (a template's output must depend on its messages only).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox

from posttrain_jax.data.tokenizer import Tokenizer

TEMPLATES = Path(__file__).with_name("templates")
"""The folder of the shipped templates; a file `<name>.jinja` is found by its name."""

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the special-token texts it may use; picklable.

    Attributes:
      source: the Jinja text.
      eos_token, bos_token: given to the template under these names.
    """

    source: str
    eos_token: str = ""
    bos_token: str = ""

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The conversation as text.

        Raises:
          ValueError: the template refuses the messages, or is not valid Jinja.
        """
        try:
            return _compiled(self.source).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                eos_token=self.eos_token,
                bos_token=self.bos_token,
            )
        except jinja2.TemplateError as error:
            roles = [message.get("role") for message in messages]
            raise ValueError(f"the chat template fails on roles {roles}: {error}") from error

    @property
    def hash(self) -> str:
        """Hex digest of everything that decides the rendered text."""
        parts = "\x00".join((self.source, self.eos_token, self.bos_token))
        return hashlib.sha256(parts.encode()).hexdigest()


def load_template(spec: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
    """A chat template for this tokenizer.

    Args:
      spec: the name of a shipped template ("tiny", "r1_zero", "chatml"), "tokenizer" (the one that
        came with the tokenizer), or the path of a .jinja file.
      tokenizer: gives the eos and bos texts.

    Raises:
      ValueError: no such template; the message lists the shipped ones.
    """
    names = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    if str(spec) == "tokenizer":
        source = tokenizer.chat_template
        if source is None:
            raise ValueError(
                f"the tokenizer has no chat template; set one of {', '.join(names)} or a path"
            )
    else:
        path = TEMPLATES / f"{spec}.jinja" if str(spec) in names else Path(spec).expanduser()
        if not path.is_file():
            raise ValueError(
                f"no chat template {str(spec)!r}; expected 'tokenizer', {', '.join(names)}, or "
                "the path of a .jinja file"
            )
        source = path.read_text("utf-8")
    return ChatTemplate(source, tokenizer.eos_token, tokenizer.bos_token)


def encode_prompt(tokenizer: Tokenizer, template: ChatTemplate, messages: Messages) -> list[int]:
    """Tokens of the conversation up to the point where the assistant speaks.

    Raises:
      ValueError: as `encode_chat`.
    """
    _check_content(tokenizer, messages)
    return tokenizer.encode(template.render(messages, add_generation_prompt=True))


def encode_chat(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Messages
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation, and which of them the loss is taken on.

    The mask is True on every assistant turn: what follows the generation prompt, up to and
    including the end-of-sequence token that closes it. It is found by rendering prefixes; text
    prefix and token prefix are both checked, so that training sees the tokens sampling makes.

    Raises:
      ValueError: a prefix of the conversation renders or tokenises differently inside the whole
        (for example a template that drops earlier reasoning), an assistant turn is not closed by
        the eos token, or a message's content holds a turn marker.
    """
    _check_content(tokenizer, messages)
    text = template.render(messages)
    tokens = tokenizer.encode(text)
    mask = [False] * len(tokens)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template.render(messages[:i], add_generation_prompt=True)
        after = template.render(messages[: i + 1])
        _check_text_prefix(i, before, after, "the generation prompt before it")
        _check_text_prefix(i, after, text, "the conversation up to it")
        start = len(_encode_prefix(tokenizer, tokens, before, i))
        end = start + _turn_length(tokenizer, tokens[start:], i)
        turn = tokenizer.encode(after)
        if turn[:end] != tokens[:end]:
            raise ValueError(f"message {i} tokenises differently when other messages follow it")
        mask[start:end] = [True] * (end - start)
    return tokens, mask


def _check_content(tokenizer: Tokenizer, messages: Messages) -> None:
    for i, message in enumerate(messages):
        if not isinstance(message.get("content"), str) or "role" not in message:
            raise ValueError(f"message {i} needs a role and a text content, got {message!r:.200}")
        for marker in tokenizer.markers:
            if marker in message["content"]:
                raise ValueError(
                    f"the content of message {i} ({message['role']}) holds the turn marker "
                    f"{marker!r}, which would end or forge a turn; remove it from the data"
                )


def _check_text_prefix(i: int, prefix: str, whole: str, what: str) -> None:
    if not whole.startswith(prefix):
        at = next(
            (n for n, (a, b) in enumerate(zip(prefix, whole, strict=False)) if a != b), len(whole)
        )
        raise ValueError(
            f"the chat template can't be masked: around message {i} (assistant), {what} is not a "
            f"prefix of the text; expected {prefix[at : at + 40]!r}, got {whole[at : at + 40]!r} "
            f"at character {at}"
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


@lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

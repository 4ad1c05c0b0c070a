"""Chat templates: messages to text, with the Jinja that comes with a checkpoint.

What a template gets is what transformers gives it: messages, tools (JSON schemas), documents,
add_generation_prompt, the special tokens, and its own options (`enable_thinking`, `date_string`).
A rendered text depends on nothing else: `strftime_now` is there only where the option `date`
("2025-01-31") pins it, and a template that can do without it falls back to the date inside it.
"""

import hashlib
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import jinja2

from posttrain_jax.data.messages import Messages, for_template, plain
from posttrain_jax.data.template_sandbox import OPEN, compiled, run, split_marks
from posttrain_jax.data.tokenizers.base import Tokenizer
from posttrain_jax.data.tool_schema import tool_schema

TEMPLATES = Path(__file__).with_name("templates")
"""The folder of the shipped templates; a file `<name>.jinja` is found by its name."""
_OURS = ("messages", "tools", "documents", "add_generation_prompt", "eos_token", "bos_token")

Tools = Sequence[Mapping[str, Any] | Callable[..., Any]]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the special-token texts it may use; picklable.

    Attributes:
      source: the Jinja text.
      eos_token, bos_token: given to the template under these names.
      options: further variables of the template, as pairs; `date` pins `strftime_now`.
      name: the file or tokenizer it is from, for messages.
    """

    source: str
    eos_token: str = ""
    bos_token: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    name: str = field(default="", compare=False)

    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool = False,
        *,
        tools: Tools | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as text.

        Args:
          messages: see `data/messages.py`.
          add_generation_prompt: end where the assistant speaks.
          tools: JSON schemas, or Python functions (`data/tool_schema.py`).
          documents: for templates that quote sources.

        Raises:
          ValueError: the template refuses the messages, is not valid Jinja, or does what it must
            not; names the template and the line.
        """
        return self.render_spans(messages, add_generation_prompt, tools=tools, documents=documents)[
            0
        ]

    def render_spans(
        self, messages: Messages, add_generation_prompt: bool = False, **more: Any
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """As `render`, and (start, end) of each `{% generation %}` block; None without any."""
        variables = {
            **dict(self.options),
            "messages": for_template(messages),
            "tools": _schemas(more.get("tools")),
            "documents": plain(more.get("documents"), "documents"),
            "add_generation_prompt": add_generation_prompt,
            "eos_token": self.eos_token,
            "bos_token": self.bos_token,
        }
        if pinned := variables.pop("date", None):
            variables["strftime_now"] = date.fromisoformat(pinned).strftime
        try:
            marked = run(compiled(self.source), variables)
        except Exception as error:
            roles = [message.get("role") for message in messages]
            raise ValueError(
                f"{self.name and self.name + ': '}the chat template fails on roles {roles}: "
                f"{_explain(error)}"
            ) from error
        text, spans = split_marks(marked)
        return text, spans if "endgeneration" in self.source else None

    @property
    def hash(self) -> str:
        """Hex digest of everything that decides the rendered text."""
        parts = [self.source, self.eos_token, self.bos_token]
        if self.options:
            parts.append(json.dumps(self.options))
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def load_template(
    spec: str | Path, tokenizer: Tokenizer, options: Mapping[str, Any] | None = None
) -> ChatTemplate:
    """A chat template for this tokenizer.

    Args:
      spec: the name of a shipped template ("chatml", "tulu", ...), "tokenizer" (the one that
        came with the tokenizer), or the path of a .jinja file.
      tokenizer: gives the eos and bos texts.
      options: variables of the template (`{"enable_thinking": False}`), and `date` for
        `strftime_now`; text, numbers, booleans or None.

    Raises:
      ValueError: no such template (the message lists the shipped ones), not valid Jinja, options
        that are no such values or not the caller's to set.
    """
    names = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    if str(spec) == "tokenizer":
        source, name = tokenizer.chat_template, "the tokenizer's own"
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
        source, name = path.read_text("utf-8"), str(path)
    for key, value in (options or {}).items():
        if key in _OURS or not isinstance(value, str | int | float | bool | None):
            raise ValueError(
                f"chat template option {key!r}: expected text, a number, a boolean or None, and a "
                f"name other than {', '.join(_OURS)}; got {value!r}"
            )
    pairs = tuple(sorted((options or {}).items()))
    return ChatTemplate(source, tokenizer.eos_token, tokenizer.bos_token, pairs, name)


def _schemas(tools: Tools | None) -> list[Any] | None:
    """As transformers: None and an empty list are both passed on as they are."""
    if tools is None:
        return None
    return [plain(tool_schema(t) if callable(t) else t, "tools") for t in tools]


def _explain(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>"]
    line = getattr(error, "lineno", None) or (frames[-1].lineno if frames else None)
    what = str(error) or type(error).__name__
    if "'strftime_now' is undefined" in what:
        what += "; it would print today's date: set the template's option date='YYYY-MM-DD'"
    known = isinstance(error, jinja2.TemplateError)
    kind = "" if known else f"{type(error).__name__}: "
    return f"{kind}{what}{f' (line {line})' if line else ''}".replace(OPEN, "")

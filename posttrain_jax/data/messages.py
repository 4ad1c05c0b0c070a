"""The messages of a conversation: what they must be, and what a template sees of them.

    {"role": "system" | "developer" | "user" | "assistant" | "tool", "content": text}

An assistant's message may have `reasoning_content` (text) and `tool_calls`, a list of
`{"type": "function", "function": {"name": text, "arguments": object or its JSON}}` (or the inner
object alone), and then no content. A tool's answer may name the tool and the call. Other keys
are passed on. Content in parts (images) is not covered.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain_jax.data.template_sandbox import CLOSE, OPEN

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names for it; templates read the first, gpt-oss's the second."""

Messages = Sequence[Mapping[str, Any]]


def check_messages(messages: Messages, markers: Mapping[str, int]) -> None:
    """Check types and roles, and that no content holds a turn marker.

    Raises:
      ValueError: with the number of the message, what was expected and what was found.
    """
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {i}: expected an object, got {message!r:.200}")
        _check_role(i, message)
        for key in REASONING:
            if not isinstance(message.get(key), str | None):
                raise ValueError(
                    f"message {i}: expected {key} to be text, got {message[key]!r:.80}"
                )
        _check_calls(i, message)
        for text in _texts({k: v for k, v in message.items() if k != "role"}):
            for marker in markers:
                if marker in text:
                    raise ValueError(
                        f"the content of message {i} ({message['role']}) holds the turn marker "
                        f"{marker!r}, which would end or forge a turn; remove it from the data"
                    )


def _check_role(i: int, message: Mapping[str, Any]) -> None:
    content, calls = message.get("content"), message.get("tool_calls")
    if "role" not in message or not (
        isinstance(content, str) or (content is None and message["role"] == "assistant" and calls)
    ):
        raise ValueError(f"message {i} needs a role and a text content, got {message!r:.200}")
    if message["role"] not in ROLES:
        raise ValueError(
            f"message {i}: expected a role of {', '.join(ROLES)}, got {message['role']!r}"
        )


def _check_calls(i: int, message: Mapping[str, Any]) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if message["role"] != "assistant" or not isinstance(calls, list | tuple):
        raise ValueError(
            f"message {i} ({message['role']}): expected tool_calls to be a list, in an assistant's "
            f"message; got {calls!r:.80}"
        )
    for call in calls:
        inner = call.get("function", call) if isinstance(call, Mapping) else {}
        named = isinstance(inner, Mapping) and isinstance(inner.get("name"), str)
        if not named or not isinstance(inner.get("arguments", {}), str | Mapping):
            raise ValueError(
                f"message {i} (assistant): expected a tool call with a name and arguments (an "
                f"object or its JSON), got {call!r:.120}"
            )


def _texts(value: Any) -> Iterator[str]:
    """Every text inside, keys of objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def for_template(messages: Messages) -> list[dict[str, Any]]:
    """A plain copy; reasoning is there under the names that templates read."""
    copies = []
    for i, message in enumerate(messages):
        copy = plain(message, f"message {i}")
        reasoning = next((copy[key] for key in REASONING if copy.get(key) is not None), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        copies.append(copy)
    return copies


def plain(value: Any, where: str) -> Any:
    """A deep copy made of JSON's types only, so that a template meets no other object.

    Raises:
      ValueError: something else is in it.
    """
    if value is None or type(value) in (int, float, bool):
        return value
    if isinstance(value, str):
        if OPEN in value or CLOSE in value:
            raise ValueError(f"{where} holds the noncharacter U+FDD0 or U+FDD1; remove it")
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key, where): plain(inner, where) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, where) for inner in value]
    raise ValueError(f"{where}: expected what JSON can hold, got {value!r:.80}")


def split_turns(messages: Messages) -> list[list[Mapping[str, Any]]]:
    """The conversation up to the end of each of its turns, as a policy sees them one by one.

    With `encode_chat(..., turns="last")` on each, a template that drops earlier reasoning is
    trained on every turn in the form in which it is sampled.
    """
    ends = [i for i, message in enumerate(messages) if message["role"] == "user"]
    ends = [*ends[1:], len(messages)]
    return [list(messages[:end]) for end in ends if messages[end - 1]["role"] == "assistant"]

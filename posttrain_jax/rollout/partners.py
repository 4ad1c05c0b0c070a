"""Who answers a policy in the middle of a rollout: tools that it calls, or another speaker.

    {"tools": {"calculator": {}, "python": {"cpu_s": 2.0}}, "calls": "inline"}
    {"environment": {"name": "retry", "verifier": "task_answer"}}

`calls: inline`: a call is `<calculator>2+3</calculator>` or a fenced block of Python, and its
result comes right behind it, `<result>5</result>` or a block ```output (Qwen2.5-Math, arXiv
2409.12122, section 2.3). `calls: turns`: calls stand in a turn, `<tool_call>{"name", "arguments"}
</tool_call>` too, and the results come when it has ended, as messages of the role tool. An
environment answers every turn as the user. Results never hold turn markers: what looks like one is
taken out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from posttrain_jax.data.inserted import encode_inner
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.policy import Text
from posttrain_jax.verifiers import environments
from posttrain_jax.verifiers.tool_calls import ToolCall, find_calls
from posttrain_jax.verifiers.tools import Tool, ToolResult, open_tool

FENCED = ("python",)
REMOVED = "[removed]"


class Answer(NamedTuple):
    """What comes next in a conversation; `broken`: the tool is, not the policy."""

    ids: list[int]
    broken: bool = False


class Partner(NamedTuple):
    """Who answers in one conversation.

    Attributes:
      reply: `(what was said since the last answer, whether the turn has ended) -> Answer`, or None:
        the conversation has ended.
    """

    reply: Callable[[str, bool], Answer | None]
    close: Callable[[], None] = lambda: None


class Partners(NamedTuple):
    """The partners of a rollout.

    Attributes:
      open: makes the partner of an example.
      call_strings: after which the policy waits for an answer.
      turns: it also waits where its turn ends.
      longest: tokens of an answer.
      wait_seconds: for an answer; then the sequence gets an error in its place.
      late: the answer of one that did not come.
    """

    open: Callable[[Mapping[str, Any]], Partner]
    text: Text
    call_strings: tuple[str, ...]
    turns: bool
    longest: int
    wait_seconds: float
    late: Answer


def open_partners(config: Mapping[str, Any], text: Text) -> Partners | None:
    """The partners that the settings ask for, if they do.

    Args:
      config: `partner` of stages/_sampling.py.

    Raises:
      ValueError: an unknown tool or environment, settings that mean nothing or don't go together,
        an answer's frame that alone is longer than `answer_length`.
    """
    config = {k: v.to_dict() if hasattr(v, "to_dict") else v for k, v in config.items()}
    tools, environment = config["tools"], config["environment"]
    if not tools and not environment:
        return None
    if tools and environment:
        raise ValueError("partner: expected tools or an environment, got both")
    if config["calls"] not in ("inline", "turns"):
        raise ValueError(f"partner.calls={config['calls']!r}: expected 'inline' or 'turns'")
    for name in ("max_answers", "answer_length", "wait_seconds"):
        if config[name] <= 0:
            raise ValueError(f"partner.{name}={config[name]}: expected a number above 0")
    for name, options in tools.items():
        open_tool(name, **options).close()
    inline = bool(tools) and config["calls"] == "inline"
    role = None if inline else "tool" if tools else "user"
    frames = Frames(text, config["answer_length"], role)
    late = frames.result if inline else frames.turn

    def begin(example: Mapping[str, Any]) -> Partner:
        if environment:
            return _speaker(environment, example, frames, config["max_answers"])
        return _tool_user(tools, frames, inline, config["max_answers"])

    calls = tuple("\n```" if name in FENCED else f"</{name}>" for name in tools) if inline else ()
    return Partners(
        begin, text, calls, not inline, config["answer_length"], config["wait_seconds"],
        Answer(late(f"error: no answer within {config['wait_seconds']:g} seconds"), broken=True),
    )  # fmt: skip


class Frames:
    """Puts answers into the form that the policy reads, in at most `longest` tokens.

    Args:
      role: of answers that are turns of their own; None: they are not.

    Raises:
      ValueError: the form alone takes that many, or the template has none.
    """

    def __init__(self, text: Text, longest: int, role: str | None):
        self.text, self.longest = text, longest
        if role is None:
            self.result("", fenced=True)
            return
        asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        before = text.template.render(asked)
        mark = "#0#"
        whole = text.template.render([*asked, {"role": role, "content": mark}], True)
        end = before.rindex(text.tokenizer.eos_token) + len(text.tokenizer.eos_token)
        if not whole.startswith(before[:end]) or mark not in whole[end:]:
            raise ValueError(
                f"{text.template.name}: expected a turn of the role {role!r} behind what is there "
                f"already, got {whole!r:.300}; choose partner.calls='inline', or another template"
            )
        self._before, self._after = whole[end:].split(mark)
        self.turn("")

    def turn(self, said: str) -> list[int]:
        """A message of its own, and where the policy speaks again."""
        return self._fitted(said, self._before, self._after)

    def result(self, said: str, fenced: bool = False) -> list[int]:
        """The result of a call in the middle of a turn."""
        frame = ("\n```output\n", "\n```\n") if fenced else ("<result>", "</result>")
        return self._fitted(said, *frame)

    def _fitted(self, said: str, before: str, after: str) -> list[int]:
        said = without_markers(said, self.text.tokenizer)
        while True:
            ids = encode_inner(self.text.tokenizer, before + said + after)
            if len(ids) <= self.longest:
                return ids
            if not said:
                raise ValueError(
                    f"partner.answer_length={self.longest}: expected room for {before + after!r}, "
                    f"which is {len(ids)} tokens"
                )
            over = len(ids) - self.longest
            said = said[: max(0, len(said) - max(1, over))]


def without_markers(text: str, tokenizer: Tokenizer) -> str:
    """The text with what looks like a special token taken out of it."""
    for marker in sorted(tokenizer.markers, key=len, reverse=True):
        text = text.replace(marker, REMOVED)
    return text


def _tool_user(
    tools: Mapping[str, Mapping[str, Any]], frames: Frames, inline: bool, most: int
) -> Partner:
    """Answers calls; a turn without one is the last."""
    opened: dict[str, Tool] = {}
    fences = [name for name in tools if name in FENCED]
    tags = [name for name in tools if name not in FENCED]
    left = [most]

    def run(call: ToolCall) -> ToolResult:
        if call.error or call.name not in tools:
            known = f"there is no tool {call.name!r}; there are {', '.join(tools)}"
            return ToolResult(f"error: {call.error or known}", "error")
        if call.name not in opened:
            opened[call.name] = open_tool(call.name, **tools[call.name])
        return opened[call.name].call(call.text)

    def reply(said: str, ended: bool) -> Answer | None:
        calls = find_calls(said, tags=tags, fences=fences)
        if not calls:
            return None if ended else Answer([])
        if left[0] <= 0:
            return None
        left[0] -= 1
        results = [run(call) for call in calls]
        broken = any(result.status == "infra_error" for result in results)
        if inline:
            (*_, call), (*_, result) = calls, results
            return Answer(frames.result(result.text, call.name in FENCED), broken)
        return Answer(frames.turn("\n".join(result.text for result in results)), broken)

    def close() -> None:
        for tool in opened.values():
            tool.close()

    return Partner(reply, close)


def _speaker(
    environment: Mapping[str, Any], example: Mapping[str, Any], frames: Frames, most: int
) -> Partner:
    """Answers turns, as long as the environment has something to say."""
    said_by = environments.open_environment(example=example, **environment)
    left = [most]

    def reply(said: str, _ended: bool) -> Answer | None:
        if left[0] <= 0 or (answer := said_by(said)) is None:
            return None
        left[0] -= 1
        return Answer(frames.turn(answer))

    return Partner(reply)

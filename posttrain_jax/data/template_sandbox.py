"""Where a checkpoint's Jinja runs: jinja2's immutable sandbox, with limits on what it may use up.

jinja2 itself keeps a template from Python's internals and from changing its inputs. Added: an
attribute that is refused raises (jinja2 prints nothing); loops, texts put together and the output
have a budget a rendering; numbers that would make huge texts are refused. There is no clock and no
chance: `strftime_now` exists only with a pinned date, `random` and `lipsum` not at all. A template
can still waste some seconds.

`{% generation %}` blocks (transformers' assistant mask) become marks in the text; see
`split_marks`.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000
"""Turns of all loops together."""
MAX_CHARACTERS = 50_000_000
"""Length of all texts that `+`, `*` and `~` make, and of the output."""
MAX_NUMBER = 100_000
"""A width or a count; also the longest range."""
OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around generated text; Unicode sets these two aside, no text holds them."""
_BUDGET = "_budget"


class Budget:
    """What one rendering has left."""

    def __init__(self) -> None:
        self.steps, self.characters = MAX_STEPS, MAX_CHARACTERS

    def step(self) -> None:
        """One turn of a loop."""
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError(f"its loops take more than {MAX_STEPS} turns")

    def write(self, characters: int) -> None:
        """So many characters of text."""
        self.characters -= characters
        if self.characters < 0:
            raise SecurityError(f"it makes more than {MAX_CHARACTERS} characters of text")


def run(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Render with a fresh budget.

    Raises:
      jinja2.TemplateError: the template is wrong, refuses, or does what it must not. Other errors
        are those of the operations in it.
    """
    budget, parts = Budget(), []
    for part in template.generate(variables, **{_BUDGET: budget}):
        budget.write(len(part))
        parts.append(part)
    return "".join(parts)


def split_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A marked text without its marks, and (start, end) of what stood between them."""
    parts, spans, at, start = [], [], 0, 0
    for part in re.split(f"([{OPEN}{CLOSE}])", text):
        if part == OPEN:
            start = at
        elif part == CLOSE:
            spans.append((start, at))
        else:
            parts.append(part)
            at += len(part)
    return "".join(parts), spans


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> jinja2.Template:
    """The template, with what transformers gives its chat templates."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters |= {"tojson": _tojson, "loop_budget": _loop, "text_budget": _text}
    for name in ("center", "indent", "batch", "slice"):
        environment.filters[name] = _small(environment.filters[name])
    environment.filters["format"] = _format
    del environment.filters["random"], environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        kind = type(obj).__name__
        raise SecurityError(
            f"it asks for the attribute {attribute!r} of a {kind}, which is not safe"
        )

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
        budget = context.parent[_BUDGET]
        if operator == "*":
            for sized, count in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple) and isinstance(count, int):
                    budget.write(len(sized) * max(count, 0))
        if operator == "+" and isinstance(left, str | list | tuple):
            budget.write(len(left) + (len(right) if isinstance(right, str | list | tuple) else 0))
        if operator == "**":
            _check_number(right, 64)
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(called, "__self__", None)
        if isinstance(owner, str):
            for value in (*args, *kwargs.values()):
                _check_number(value)
            if called.__name__ == "replace" and args:
                context.parent[_BUDGET].write((len(owner) + 1) * len(str(args[-1])))
        return super().call(context, called, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:  # the format method of a text
            _check_format(value.__self__)
        return wrapped

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Bounded().visit(source), *args, **kwargs)


class _Bounded(NodeTransformer):
    """Puts the budget's filters round what a loop runs over, and round joined texts."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "loop_budget")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(node, "text_budget")


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context
def _loop(context, items: Iterable[Any]) -> Iterator[Any]:
    budget = context.parent[_BUDGET]
    for item in items:
        budget.step()
        yield item


@jinja2.pass_context
def _text(context, text: str) -> str:
    context.parent[_BUDGET].write(len(text))
    return text


def _check_number(value: Any, limit: int = MAX_NUMBER) -> None:
    if isinstance(value, int | float) and abs(value) > limit:
        raise SecurityError(f"it uses the number {value}; at most {limit} is meant")


def _check_format(text: str) -> None:
    if re.search(r"\d{5,}|\*", text):
        raise SecurityError(f"it formats with {text[:40]!r}: a width too large")


def _format(text: Any, *args: Any, **kwargs: Any) -> str:
    _check_format(str(text))
    return str(text) % (kwargs or args)


def _small(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _check_number(value)
        return function(*args, **kwargs)

    return checked


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` … `{% endgeneration %}`."""

    tags: set[str] = {"generation"}  # noqa: RUF012  # an attribute of the class, as in jinja2

    def parse(self, parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body, lineno=line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """As transformers has it: jinja2's own escapes HTML."""
    _check_number(indent, 100)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

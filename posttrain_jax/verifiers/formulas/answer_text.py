"""Where in a response the final answer stands.

In order: the last complete pair of answer tags; else whichever comes last of `\\boxed{...}` and a
phrase ("the answer is", "答案是", "####"); else the whole text where it is short; else the last
formula or number. Only text after the chain of thought counts, and a chain that was opened and
never closed has no answer after it. An answer between tags is taken whole: "5 or 8" isn't 8.
"""

import re
from typing import NamedTuple

from posttrain_jax.verifiers import tags

_PHRASE = re.compile(
    r"(?:(?:final|correct)\s+answer\s*(?:is|[:：=])|answer\s*(?:is|[:：=])"
    r"|(?:最终)?(?:答案|结果)\s*(?:是|为|[:：=])|####)\s*[:：]?\s*(?:\*\*)?\s*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|。|！|[.!?](?=\s+[^\d\s]|\s*$)|<")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$\n]+)\$", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-+−]?(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?(?:/\d+)?\s*[%％]?"
    r"|(?<![\w.])[-+−]?\.\d+"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_JOINT = re.compile(r"(?:\s|[,;$]|\\[()]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|and|or|和|或)*")
_SHORT = 100
_LONGEST = 2000


class Found(NamedTuple):
    """An answer as it was written, and how it was found."""

    text: str
    how: str


def boxed(text: str) -> tuple[int, str] | None:
    """Where the last `\\boxed{...}` (or `\\fbox`, `\\boxed x`) begins, and its content.

    Braces nest; a box that never closes is none. Boxes with nothing but a separator or "and"
    between them are one answer, a list.
    """
    boxes = [box for match in _BOX.finditer(text) if (box := _box(text, match))]
    if not boxes:
        return None
    start, _, content = boxes.pop()
    while boxes and boxes[-1][1] <= start and _JOINT.fullmatch(text, boxes[-1][1], start):
        start, _, before = boxes.pop()
        content = f"{before}, {content}"
    return start, content


def _box(text: str, match: re.Match[str]) -> tuple[int, int, str] | None:
    """Start, end and content of a box."""
    at, depth = match.end(), 0
    if text[at : at + 1] != "{":
        return (match.start(), at + 1, text[at]) if at < len(text) else None
    for i in range(at, min(len(text), at + _LONGEST)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return match.start(), i + 1, text[at + 1 : i]
    return None


def _phrase(text: str) -> tuple[int, str] | None:
    """Where the last phrase that announces the answer begins, and what it says.

    Of a sentence ("the volume is 120") it is the formula or number, if there is only one.
    """
    found = None
    for match in _PHRASE.finditer(text):
        rest = text[match.end() : match.end() + _LONGEST]
        end = _SENTENCE_END.search(rest)
        said = (rest[: end.start()] if end else rest).strip().strip("*").strip()
        if said:
            found = (match.start(), said)
    if found and re.match(r"[^\W\d_]{2,}", found[1]):
        pieces = _pieces(found[1])
        if len(pieces) == 1:
            return found[0], pieces[0].text
    return found


def _pieces(text: str) -> list[Found]:
    """The formulas of a text and the numbers outside of them, in order."""
    spans = [(m.start(), m.end(), _inner(m), "formula") for m in _FORMULA.finditer(text)]
    for m in _NUMBER.finditer(text):
        if not any(start <= m.start() < end for start, end, *_ in spans):
            spans.append((m.start(), m.end(), m.group().strip(), "number"))
    return [Found(said, how) for _, _, said, how in sorted(spans)]


def _inner(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def find_answer(
    response: str, *, answer_tag: str = "answer", think_tag: str = "think"
) -> Found | None:
    """The final answer of a response, or None where it has none."""
    text = tags.after_chain(response, think_tag)
    tagged = tags.inside(text, answer_tag)
    if tagged is not None:
        how, text = "tag", tagged
        if not text:
            return None
    else:
        how = ""
    marked = [(*f, name) for f, name in ((boxed(text), "boxed"), (_phrase(text), "phrase")) if f]
    if marked:
        _, said, name = max(marked)
        return Found(said, name)
    text = text.strip()
    if how or _is_bare(text):
        return Found(text, how or "whole")
    if pieces := _pieces(text[-_LONGEST:]):
        return pieces[-1]
    return Found(text, "whole") if text and len(text) <= _SHORT else None


def _is_bare(text: str) -> bool:
    """Whether a short line is a formula or number by itself, without words."""
    if not text or len(text) > _SHORT or "\n" in text:
        return False
    return not re.search(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+|(?:sqrt|pi)\b", " ", text))

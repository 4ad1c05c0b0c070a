r"""Multiple choice: the letter that a response settles on against the reference.

Source: LogiQA (arXiv 2007.08124) and the letter extraction that evaluations of it use; R1's STEM
data has four to eight options (arXiv 2501.12948v2, table 4). No common rule exists; ours:

- A letter counts where the response states it: between answer tags, in `\boxed{}`, after a phrase
  ("the answer is", "option", "答案是", "选"), before "is correct" or "正确", or at the head of the
  last line, else of the first: "B", "(B)", "B.", "**B**", "B) text", `\text{B}`.
- The text of an option in a letter's place is that letter, where the example has the options.
- Of several statements the last one counts. One that names several letters, or a letter with the
  text of another option, is wrong; "A is wrong" states nothing.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers import tags
from posttrain_jax.verifiers.exact_answer import normalise
from posttrain_jax.verifiers.formulas.reference import stated

_MOST_OPTIONS = 26
_WITHOUT_OPTIONS = 8
_TAIL, _CLAUSE, _LONGEST_TEXT, _STATEMENTS = 20_000, 400, 2_000, 20

_PHRASE = re.compile(
    r"(?<![A-Za-z])(?<!wrong )(?<!incorrect )(?:answer|option|choice|conclusion)"
    r"(?:(?:[ \t]+[\w']+){0,6}?[ \t]*(?:\bis\b|[:=]))?"
    r"|(?<![A-Za-z])(?:choose|chose|pick|select|go with|therefore|thus|hence)(?![A-Za-z])"
    r"|(?:答案|选项|结论)[^\n。不非]{0,6}?(?:是|为|:)|答案|选项"
    r"|(?<![不别])(?<!不应)(?<!不能)(?<!不应该)选(?:择|项)?(?:是|为)?"
    r"|(?<![A-Za-z])(?=\(?[A-Z]\)?[*\]]{0,2} (?:is|would be|must be) (?:the )?"
    r"(?:only |most |best )?(?:correct|right|best|answer|true)\b)"
    r"|(?<![A-Za-z])(?=\(?[A-Z]\)? ?(?:选?项)?是?(?:正确|对的|符合))",
    re.IGNORECASE,
)
_WRAPPER = re.compile(r"\\(?:text\w*|math\w*|boxed|fbox|rm|bf)\s*\{([^{}]*)\}")
_QUOTES = "*_\"'`$\u201c\u201d\u2018\u2019"
_OPENING = re.compile(
    rf"[\s:,(\[{{【\\{_QUOTES}\-\u2013\u2014]*"
    r"(?:(?:option|choice|definitely|clearly|likely|most likely|选项|是|为)(?![A-Za-z])[\s:(*]*)?",
    re.IGNORECASE,
)
_LETTER = re.compile(
    rf"([A-Z])(?![A-Za-z0-9_'\u2019+=^<>])[ \t{_QUOTES}\]}}】\\]*(\)|选?项)?[{_QUOTES}\]}}]*"
)
_MORE = re.compile(
    r"\s*(?:[,、/;&+|]|and\b|or\b|和|或|与|及|还是)+\s*(?:(?:and|or|option)\s+)?[(\[*]*([A-Z])(?![A-Za-z])"
    r"|[ \t]*[(\[]?([A-Z])[)\]]?\s*(?:$|[.,])"
)
_STOPS = re.compile(r"\s*(?:$|[.:,;!?、。()\-\u2013\u2014\u2026\n])")
_GOES_ON = re.compile(
    r"\s*(?:(?:because|since|as|for|which|given|by|rather|instead)(?![a-z])|因为|由于|而)"
    r"|\s*(?:is|would be|must be|是)?\s*(?:the\s+)?(?:only\s+|most\s+|best\s+)?"
    r"(?:correct|right|best|answer|true|正确|对的|符合|最)",
    re.IGNORECASE,
)
_JUDGED = re.compile(
    r"\s*(?:(?:is|isn't|was|are|does|doesn't|do|can|can't|cannot|could|would|seems?|ha[sd]|"
    r"contradicts|fails|says|states)(?![a-z])|是|不|错|与|说)",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"\b(?:not|wrong|incorrect|false|eliminated|ruled)\b|n't\b|不|错|排除", re.I)
_SENTENCE_END = re.compile(r"\n|[。!?](?!\w)|\.(?=\s|$)")


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    answer_tag: str = "answer",
    think_tag: str = "think",
) -> Verdict:
    """1 where the response settles on the reference's letter, 0 otherwise.

    Args:
      response: the completion; only what follows the chain of thought counts.
      example: `gold` (or `answer`): a letter, an index from 0, or the text of an option; `choices`
        (or `options`): the texts in order, or an object from letters to texts; may be left out.
      answer_tag, think_tag: the names of the tags.

    Raises:
      KeyError: the example has no reference.
      TypeError, ValueError: the reference or the options aren't what they should be.
    """
    choices = _choices(example)
    gold = _reference(example, choices)
    said = _settled(tags.answer(response, answer_tag, think_tag), choices)
    if not said:
        return Verdict(0.0, "fail", "no option is stated")
    if len(said) > 1:
        return Verdict(0.0, "fail", f"several options are stated: {', '.join(sorted(said))}")
    right = said == {gold}
    return Verdict(float(right), "pass" if right else "fail", said.pop())


def _choices(example: Mapping[str, Any]) -> dict[str, str]:
    """Letter -> normalised text; texts are empty where the example has no options."""
    given = example.get("choices", example.get("options"))
    if given is None:
        return {chr(ord("A") + i): "" for i in range(_WITHOUT_OPTIONS)}
    if isinstance(given, Mapping):
        pairs = [(str(letter).strip().upper(), text) for letter, text in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        pairs = [(chr(ord("A") + i), text) for i, text in enumerate(given)]
    else:
        raise TypeError(f"example['choices'] is {type(given).__name__}, expected a list of texts")
    if not 2 <= len(pairs) <= _MOST_OPTIONS:
        raise ValueError(f"example['choices'] has {len(pairs)} options, expected 2 to 26")
    for letter, text in pairs:
        if not re.fullmatch("[A-Z]", letter):
            raise ValueError(f"example['choices'] has the key {letter!r}, expected a letter")
        if not isinstance(text, str | int | float):
            raise TypeError(
                f"example['choices'][{letter!r}] is {type(text).__name__}, expected text"
            )
    return {letter: _plain(str(text), letter) for letter, text in pairs}


def _plain(text: str, letter: str = "") -> str:
    """A text for comparison, without the letter that some sets write before it ("B. text")."""
    text = unicodedata.normalize("NFKC", text).strip()
    return normalise(re.sub(rf"^\(?{letter}[.):、]\s*", "", text) if letter else text)


def _reference(example: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    _, gold = stated(example)
    if isinstance(gold, bool) or not isinstance(gold, int | str):
        raise TypeError(
            f"the reference is {gold!r}: expected a letter, an index or the text of an option"
        )
    letters = sorted(choices)
    if isinstance(gold, int):
        if not 0 <= gold < len(letters):
            raise ValueError(
                f"the reference is {gold}: expected an index from 0 to {len(letters) - 1}"
            )
        return letters[gold]
    bare = unicodedata.normalize("NFKC", gold).strip().strip("().:$ ").upper()
    if bare in choices:
        return bare
    same = [letter for letter, text in choices.items() if text and text == _plain(gold)]
    if len(same) != 1:
        raise ValueError(
            f"the reference {gold!r} is the text of {len(same)} options: expected the text of one, "
            f"or one of {', '.join(letters)}"
        )
    return same[0]


def _settled(text: str, choices: Mapping[str, str]) -> set[str]:
    """The letters of the last statement that names one; empty where none does."""
    text = unicodedata.normalize("NFKC", text[-_TAIL:]).strip()
    if whole := _bare(text, choices) or _by_text(text, choices):
        return whole
    last = deque(_PHRASE.finditer(text), _STATEMENTS)
    phrases = [(match.end(), text[match.end() : match.end() + _CLAUSE]) for match in last]
    for _, clause in sorted([*phrases, *_boxes(text)], reverse=True):
        if said := _read(clause, choices):
            return said
    lines = [line for line in text.split("\n") if line.strip()][-_MOST_OPTIONS:]
    if not lines:
        return set()
    heads = [_read(line[:_CLAUSE], choices) for line in lines]
    if heads[-1] and _bare(lines[-1], choices):
        return heads[-1]
    # Lines that begin with different letters repeat the options; none of them is the answer.
    return set().union(*heads) if heads[-1] or heads[0] else set()


def _bare(text: str, choices: Mapping[str, str]) -> set[str]:
    """The letter that a text is, with nothing but brackets, stars and a full stop around it."""
    if len(text) > 80:
        return set()
    inner = _unwrapped(text).strip(f" \t\n()[]{{}}【】.:,。、{_QUOTES}").upper()
    return {inner} if inner in choices else set()


def _by_text(text: str, choices: Mapping[str, str]) -> set[str]:
    """The letters of the options whose text a text is."""
    if len(text) > _LONGEST_TEXT or not (plain := _plain(text)):
        return set()
    return {letter for letter, option in choices.items() if option == plain}


def _unwrapped(text: str) -> str:
    return _WRAPPER.sub(r"\1", _WRAPPER.sub(r"\1", text))


def _read(clause: str, choices: Mapping[str, str]) -> set[str]:
    """The letters that a statement names, empty where it names none or rejects them."""
    clause = _unwrapped(clause)
    opening = _OPENING.match(clause)
    clause = clause[opening.end() :] if opening else clause
    sentence = _SENTENCE_END.split(clause, maxsplit=1)[0]
    match = _LETTER.match(clause)
    if match is None or match[1] not in choices:
        joined = re.match(r"[A-Z]{2,}(?![A-Za-z])", clause)
        if joined and len(joined[0]) <= len(choices) and set(joined[0]) <= set(choices):
            return set(joined[0])
        return _bare(sentence, choices) or _by_text(sentence, choices)
    letter, rest = match[1], clause[match.end() :]
    more = _MORE.match(rest)
    if more and (other := more[1] or more[2]) in choices and other != letter:
        return set() if _NEGATIVE.search(sentence) else {letter, other}
    text = rest.lstrip(" .:,)、-\u2013\u2014")
    named = _by_text(_SENTENCE_END.split(text, maxsplit=1)[0], choices)
    numbered = match[2] and not _JUDGED.match(rest)  # "B) text", but not "(A) is wrong"
    if numbered or _STOPS.match(rest) or _GOES_ON.match(rest):
        return {letter} if letter in named else {letter} | named
    if letter in named:
        return {letter}
    return _by_text(sentence, choices)


def _boxes(text: str) -> list[tuple[int, str]]:
    """The last boxes and their ends; boxes with only "and" or a comma between are one statement."""
    found: list[tuple[int, int, str]] = []
    at = len(text)
    while len(found) < _STATEMENTS and (at := text.rfind("\\boxed", 0, at)) != -1:
        start = text.find("{", at, at + 8)
        depth = 0
        for i in range(start, min(start + _CLAUSE, len(text)) if start != -1 else start):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                found.append((at, i + 1, text[start + 1 : i]))
                break
    boxes: list[tuple[int, int, str]] = []
    for start, end, content in reversed(found):
        between = text[boxes[-1][1] : start] if boxes else "."
        if re.fullmatch(r"(?:[\s,;$]|and|or|和|或)*", between[:40]) and len(between) <= 40:
            start, _, before = boxes.pop()
            content = f"{before}, {content}"
        boxes.append((start, end, content))
    return [(end, content) for _, end, content in boxes]

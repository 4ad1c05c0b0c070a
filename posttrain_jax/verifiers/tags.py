"""The parts of an R1-style response: `<think> chain </think> <answer> answer </answer>`."""


def chain(response: str, tag: str = "think") -> str:
    """The chain of thought; empty where there is none.

    The text between the first `<think>` and the first `</think>` after it, or the end where the
    chain was cut off. A response that only closes the tag belongs to a prompt that opened it: the
    chain is then all before `</think>`.
    """
    start, end = f"<{tag}>", f"</{tag}>"
    at, stop = response.find(start), response.find(end)
    if at == -1:
        return "" if stop == -1 else response[:stop]
    if 0 <= stop < at:
        return response[:stop]
    inner = response[at + len(start) :]
    return inner.partition(end)[0]


def after_chain(response: str, tag: str = "think") -> str:
    """What follows the last `</think>`; empty where a chain was opened and never closed."""
    start, end = f"<{tag}>", f"</{tag}>"
    before, closed, rest = response.rpartition(end)
    if not closed:
        return "" if start in before + rest else rest
    return rest if start not in rest else ""


def inside(text: str, tag: str) -> str | None:
    """The stripped text of the last complete `<tag>...</tag>`, innermost where nested, or None."""
    before, closed, _ = text.rpartition(f"</{tag}>")
    if not closed:
        return None
    _, opened, inner = before.rpartition(f"<{tag}>")
    if not opened or f"</{tag}>" in inner:
        return None
    return inner.strip()


def answer(response: str, answer_tag: str = "answer", think_tag: str = "think") -> str:
    """What the last answer tags after the chain of thought hold, else all the text after it."""
    rest = after_chain(response, think_tag)
    tagged = inside(rest, answer_tag)
    return rest if tagged is None else tagged

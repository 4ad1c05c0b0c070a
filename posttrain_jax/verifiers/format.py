"""R1's format reward: the reasoning in one pair of tags, then the answer in another.

Source: DeepSeek-R1 (arXiv 2501.12948), section 2.2.2 and table 1: "enforces the model to put its
thinking process between `<think>` and `</think>` tags", the answer between `<answer>` tags. The
paper gives no further rule; the strict reading below is ours.
"""

from collections.abc import Mapping
from typing import Any

from posttrain_jax.api import Verdict


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    think_tag: str = "think",
    answer_tag: str = "answer",
    require_think_text: bool = False,
    prompt_opens_think: bool = False,
) -> Verdict:
    """1 for `<think>...</think><answer>...</answer>` and nothing else, 0 otherwise.

    Each of the four tags occurs exactly once, in this order, with only whitespace outside, and the
    answer holds more than whitespace.

    Args:
      response: the completion, without its end-of-sequence token.
      example: not read.
      think_tag, answer_tag: the names of the tags.
      require_think_text: the chain of thought must hold more than whitespace as well.
      prompt_opens_think: the prompt ends in `<think>`, so the response must not repeat it.
    """
    del example
    if prompt_opens_think:
        if f"<{think_tag}>" in response:
            return Verdict(0.0, "fail", f"<{think_tag}> is opened twice")
        response = f"<{think_tag}>{response}"
    tags = [f"<{think_tag}>", f"</{think_tag}>", f"<{answer_tag}>", f"</{answer_tag}>"]
    for tag in tags:
        if (count := response.count(tag)) != 1:
            return Verdict(0.0, "fail", f"{tag} occurs {count} times, expected once")
    at = [response.index(tag) for tag in tags]
    if at != sorted(at):
        return Verdict(0.0, "fail", f"tags out of order, expected {' '.join(tags)}")
    parts = [response[: at[0]]]
    for i, tag in enumerate(tags):
        parts.append(response[at[i] + len(tag) : at[i + 1] if i < 3 else None])
    before, think, between, answer, after = (part.strip() for part in parts)
    if before or between or after:
        return Verdict(0.0, "fail", f"text outside the tags: {(before or between or after)[:80]!r}")
    if not answer:
        return Verdict(0.0, "fail", "the answer is empty")
    if require_think_text and not think:
        return Verdict(0.0, "fail", "the chain of thought is empty")
    return Verdict(1.0)

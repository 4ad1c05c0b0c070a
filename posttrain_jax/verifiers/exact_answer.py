"""Exact match of short text answers after the usual normalisation.

Source: the `puzzle` verifier of open-instruct (ground_truth_utils.py) and, before it, SQuAD's
evaluation script: lower case, no punctuation, no articles, single spaces. Chinese text has no
articles and keeps its characters; full-width forms become their ASCII ones.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers import tags
from posttrain_jax.verifiers.formulas.reference import raw_references


def normalise(text: str) -> str:
    """Lower case without punctuation, symbols, articles and doubled spaces; NFKC first.

    The sign of a number and its decimal point are kept: -3 isn't 3, and 1.5 isn't 15.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"(?<![\w.])[-\u2212](?=\.?\d)", "\ue000", text)
    text = re.sub(r"(?<=\d)\.(?=\d)", "\ue001", text)
    kept = "".join(
        c if c in "\ue000\ue001" or unicodedata.category(c)[0] not in "PS" else "" for c in text
    )
    words = re.sub(r"\b(?:a|an|the)\b", " ", kept).split()
    return " ".join(words).translate({0xE000: "-", 0xE001: "."})


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    answer_tag: str = "answer",
    think_tag: str = "think",
) -> Verdict:
    """1 where the answer equals the reference after `normalise`, 0 otherwise.

    The answer is the last tagged one after the chain of thought, else all the text after it. An
    answer of which nothing is left after normalising is wrong.

    Args:
      response: the completion.
      example: `gold` (or `answer`): a text, or a list of accepted ones.
      answer_tag, think_tag: the names of the tags.

    Raises:
      KeyError, TypeError, ValueError: as `reference.raw_references`.
    """
    golds = {normalise(text) for text in raw_references(example)}
    got = normalise(tags.answer(response, answer_tag, think_tag))
    right = bool(got) and got in golds
    return Verdict(float(right), "pass" if right else "fail", got[:200])

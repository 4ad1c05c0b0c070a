"""Which rollouts the report shows, and how a response is written: escaped, tags made visible.

Model text is hostile: it is escaped before anything else, control characters and the characters
that change the reading direction are replaced by visible ones, and long texts are cut with a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from posttrain_jax.report.records import Sample, Stage
from posttrain_jax.report.vocabulary import term

SHOWN = 12
"""Rollouts shown of a stage."""
LONGEST = 3000
"""Characters shown of a prompt or a response."""
_TAG = re.compile(r"(</?(?:think|answer)>|<\|\w{1,24}\|>|<(?:user|assistant|system|bos|eos|pad)>)")
_HIDDEN = re.compile("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HAN = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True)
class Shown:
    """A rollout ready for the page."""

    step: str
    example_id: str
    reward: str
    value: float
    level: str
    parts: tuple[tuple[str, str, float], ...]
    finished: bool | None
    language: str
    preview: str
    prompt: Markup
    response: Markup


def choose(stage: Stage, count: int = SHOWN) -> list[Sample]:
    """At most `count` rollouts from best to worst, spread evenly over the ranking.

    They come from the last step that was sampled when it has enough of them, so that they show the
    policy the stage ends with, and always hold the best and the worst.
    """
    scored = [s for s in stage.samples if s.reward is not None] or list(stage.samples)
    last = max((s.step for s in scored if s.step is not None), default=None)
    of_last = [s for s in scored if s.step == last]
    pool = of_last if len(of_last) >= count else scored
    ranked = sorted(pool, key=lambda s: (-(s.reward or 0.0), -(s.step or 0)))
    if len(ranked) <= count:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (count - 1))] for i in range(count)]


def prepare(sample: Sample, low: float, high: float) -> Shown:
    """A rollout for the page; `low` and `high` are the stage's rewards, for the colour."""
    reward = sample.reward
    place = 0.5 if reward is None or high <= low else (reward - low) / (high - low)
    parts = tuple(
        (term(f"reward/{name}").label, f"{score:.2f}".rstrip("0").rstrip("."), score)
        for name, score in sample.rewards.items()
    )
    text = sample.prompt + sample.response
    preview = " ".join(visible(sample.prompt).split())
    return Shown(
        step="" if sample.step is None else str(sample.step),
        example_id=visible(sample.example_id),
        reward="–" if reward is None else f"{reward:.2f}",
        value=reward or 0.0,
        level="high" if place > 2 / 3 else "low" if place < 1 / 3 else "middle",
        parts=parts,
        finished=sample.finished,
        language="zh" if _HAN.search(text) else "en",
        preview=preview if len(preview) <= 110 else preview[:109] + "…",
        prompt=highlighted(sample.prompt),
        response=highlighted(sample.response),
    )


def highlighted(text: str) -> Markup:
    """Escaped text with its tags in colour, reasoning quiet and the answer strong."""
    shown, cut = visible(text[:LONGEST]), len(text) - LONGEST
    inside = ""
    parts = []
    for piece in _TAG.split(shown):
        if _TAG.fullmatch(piece):
            opened = re.fullmatch(r"<(think|answer)>", piece)
            inside = opened[1] if opened else ""
            parts.append(Markup('<span class="tag">{}</span>').format(piece))
        elif piece:
            css = f"in-{inside}" if inside else "in-text"
            parts.append(Markup('<span class="{}">{}</span>').format(css, piece))
    if cut > 0:
        parts.append(Markup('<span class="cut"> … {} more characters</span>').format(f"{cut:,}"))
    return escape("").join(parts)


def visible(text: str) -> str:
    """The text without characters that hide or reorder others: each becomes a visible one."""
    text = _HIDDEN.sub(lambda m: f"\N{LEFT CEILING}U+{ord(m[0]):04X}\N{RIGHT CEILING}", text)
    text = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda m: chr(0x2400 + ord(m[0])) if ord(m[0]) < 32 else "\ufffd", text)


def reward_range(samples: list[Sample]) -> tuple[float, float]:
    """The 5th and 95th percentile of the rewards (an outlier moves no colour), or (0, 1)."""
    rewards = sorted(s.reward for s in samples if s.reward is not None)
    last = len(rewards) - 1
    return (rewards[round(0.05 * last)], rewards[round(0.95 * last)]) if rewards else (0.0, 1.0)

"""What recipes have in common.

The tiny presets start from one base model and are judged on the same held-out problems, so that
their figures can be compared; these numbers are ours.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

Stage = dict[str, Any]

TEXT = {"tokenizer": "tiny", "chat_template": "tiny"}
REASONING = {"arithmetic": 1.0, "word_problem": 1.0, "logic": 1.0}
GENERAL = {"chat": 1.0, "safety": 1.0}
WINDOW = {"prompt_length": 16, "max_new": 40}

BASE: Stage = {
    "kind": "pretrain",
    "model": "tiny:base",
    "curriculum": {
        "1_lessons": {
            "mix": {"table": 0.30, "list": 0.08, "worked": 0.42, "chat": 0.20},
            "until": ("lookup", "step", "carry"),
        },
        "2_web": {
            "mix": {"table": 0.10, "list": 0.04, "worked": 0.06, "problem": 0.55, "chat": 0.25},
            "steps": 150,
        },
    },
    "batch_size": 16,
    "max_steps": 800,
    "lr": 3e-3,
    "optimizer": {"name": "muon"},
}
"""Can reason, and seldom does (data/corpus.py)."""

HELDOUT = {
    "reasoning": {"tasks": REASONING, "split": "heldout", "count": 384},
    "general": {"tasks": {"chat": 1.0, "safety": 3.0}, "split": "heldout", "count": 128},
}
EVALUATION: Stage = WINDOW | {
    "kind": "evaluate",
    "data": HELDOUT,
    "samples": 4,
    "temperature": 1.0,
}


def evaluated(
    stages: Mapping[str, Stage], policies: Container[str], evaluation: Stage
) -> dict[str, Any]:
    """A recipe's `stages` and `order`: these stages in their order, and behind each policy's an
    evaluation of it, `eval_<name>`."""
    found: dict[str, Stage] = {}
    for name, stage in stages.items():
        found[name] = stage
        if name in policies:
            inputs = evaluation.get("inputs", {}) | {"policy": name}
            found[f"eval_{name}"] = evaluation | {"inputs": inputs}
    return {"stages": found, "order": tuple(found)}

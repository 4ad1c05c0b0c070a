"""Best-of-8 by an outcome and a process reward model, and beam search, on the tiny tasks.

Sources: Qwen2.5-Math (arXiv 2409.12122: listwise reward model), Qwen2.5-Math-PRM (arXiv
2501.07301: labels by sampling, product of the steps) and Snell et al. 2024 (arXiv 2408.03314: beam
search, weighted votes). Every number is ours.

  posttrain run tests/recipes/rerank.py --workdir runs/rerank
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, REASONING, TEXT, WINDOW

CLEAN = {"finished": True, "forged": False}
STOPS = (".", "。")
ORDER = (
    "base", "sft", "samples", "heldout", "outcome", "steps", "heldout_steps", "process", "rerank",
    "search",
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; it has one preset."""
    sft = {
        "kind": "sft",
        "inputs": {"policy": "base"},
        "data": {"reasoning": {"tasks": REASONING, "count": 300}},
        "length": 64,
        "batch_size": 32,
        "steps": 40,
        "lr": 5e-4,
    }
    samples = {
        "kind": "generate",
        "inputs": {"policy": "sft"},
        "data": {"reasoning": {"tasks": REASONING, "count": 640}},
        "samples": 8,
        "temperature": 1.5,  # so that most samples are wrong
        "batch_size": 64,
        "verifiers": {"accuracy": {"verifier": "task_answer"}},
        **WINDOW,
    }
    labels = {
        "kind": "step_labels",
        "inputs": {"policy": "sft", "samples": "samples"},
        "data": {
            str(number): {"input": "samples", "where": {**CLEAN, "sample": number}}
            for number in (0, 1)
        },
        "separators": STOPS,
        "samples": 8,
        "batch_size": 64,
        "prompt_length": 56,
        "max_new": 40,
    }
    stages = {
        "base": BASE,
        "sft": sft,
        "samples": samples,
        "outcome": {
            "kind": "reward_model",
            "inputs": {"policy": "sft", "samples": "samples", "heldout": "heldout"},
            "data": {"samples": {"input": "samples", "where": CLEAN}},
            "heldout": {"samples": {"input": "heldout", "where": CLEAN}},
            "loss": "listwise",
            "label": "scores.accuracy",
            "head": {"layers": 2},
            "length": 64,
            "pairs_per_step": 16,
            "steps": 120,
            "lr": 1e-3,
        },
        "steps": labels,
        "heldout": samples
        | {"data": {"reasoning": {"tasks": REASONING, "split": "heldout", "count": 256}}},
        "heldout_steps": labels
        | {
            "inputs": {"policy": "sft", "samples": "heldout"},
            "data": {"0": {"input": "samples", "where": {**CLEAN, "sample": 0}}},
        },
        "process": {
            "kind": "process_reward",
            "inputs": {"policy": "sft", "steps": "steps", "heldout": "heldout_steps"},
            "data": {"steps": {"input": "steps"}},
            "heldout": {"steps": {"input": "heldout"}},
            "separators": STOPS,
            "length": 64,
            "batch_size": 32,
            "steps": 200,
            "lr": 1e-3,
        },
        "rerank": {
            "kind": "rerank",
            "inputs": {"samples": "heldout", "outcome": "outcome", "process": "process"},
            "scorers": {
                "outcome": {"reward_model": "outcome"},
                "product": {"reward_model": "process", "transform": "product"},
                "min": {"reward_model": "process", "transform": "min"},
                "last": {"reward_model": "process", "transform": "last"},
            },
        },
        "search": {
            "kind": "search",
            "inputs": {"policy": "sft", "process_reward": "process"},
            "data": {"reasoning": {"tasks": REASONING, "split": "heldout", "count": 256}},
            "beams": 8,
            "width": 4,
            "rounds": 12,
            "aggregate": "last",
            "temperature": 1.5,
            "batch_size": 32,
            "prompt_length": 16,
            "max_step": 12,
            "max_new": 48,
        },
    }
    name = preset(arg, "tiny", ("tiny",))
    return ConfigDict(TEXT | {"preset": name, "seed": 0, "stages": stages, "order": ORDER})

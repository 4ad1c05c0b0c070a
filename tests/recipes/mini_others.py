"""The kinds of stage that mini.py leaves out, from its base, in a few steps each.

Preferences and their references, KTO, an average; labels of steps, a process reward model, what it
chooses and finds; PPO with a value model; distillation from a cache and on the student's samples.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

MINI = runpy.run_path(str(Path(__file__).with_name("mini.py")))
FIRST = ("base", "samples", "rejection", "sft", "reward_model")
"""Stages of mini.py that these begin with."""
EVEN = {"verifier": str(Path(__file__).with_name("even.py"))}
SPACE, SMOOTH, REASONING = MINI["SPACE"], MINI["SMOOTH"], MINI["REASONING"]
STOPS = tuple("0123456789")
END = 2  # the token; without a bias an untrained model hardly says it
TRAIN = {"lr": 1e-3, "optimizer": SMOOTH, "save_every": 1}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; it has no presets."""
    stages = {name: MINI["get_config"]().stages[name].to_dict() for name in FIRST}
    stages |= preferences() | steps() | policies()
    return ConfigDict(
        {"preset": arg or "mini", "chat_template": "tiny", "stages": stages, "order": tuple(stages)}
    )


def preferences() -> dict:
    """Samples that end, their pairs, the reference, DPO and KTO, and the mean of both policies."""
    rows = {"data": {"pairs": {"input": "pairs"}}, "length": 64}
    kept = rows | {
        "kind": "reference_logprobs",
        # Against itself a policy has margins of 0 at first, whose signs are rounding.
        "inputs": {"policy": "base", "pairs": "pairs"},
        "batch_size": 4,
    }
    prefer = rows | TRAIN | {
        "inputs": {"policy": "sft", "pairs": "pairs", "reference": "reference"},
        "pairs_per_step": 8,
        "microbatches": 2,
        "steps": 2,
    }  # fmt: skip
    return {
        "tries": {
            "kind": "generate",
            "inputs": {"policy": "sft"},
            "data": {"asked": {"tasks": REASONING, "count": 12}},
            "samples": 4,
            "batch_size": 8,
            "sampling": {"logit_bias": ((END, 3.0),)},
            "verifiers": {"accuracy": EVEN},
            **SPACE,
        },
        "pairs": {
            "kind": "pairs",
            "inputs": {"samples": "tries"},
            "score": "accuracy",
            "method": "right_wrong",
            "per_prompt": 2,
        },
        "reference": kept,
        "reference_singles": kept | {"singles": True},
        "dpo": prefer
        | {
            "kind": "preference",
            "loss_options": {"length_normalised": True},
            "nll_coef": 0.1,
        },
        "kto": prefer
        | {
            "kind": "kto",
            "inputs": prefer["inputs"] | {"reference": "reference_singles"},
        },
        "mean": {
            "kind": "merge",
            "inputs": {"policy": "dpo", "other": "kto"},
            "weights": {"policy": 0.75, "other": 0.25},
        },
    }


def steps() -> dict:
    """Labelled steps, a model of them, and what that chooses among samples and finds itself."""
    asked = {"tasks": REASONING, "split": "heldout", "count": 8}
    return {
        "step_labels": {
            "kind": "step_labels",
            "inputs": {"policy": "mean", "samples": "tries"},
            "data": {"tries": {"input": "samples"}},
            "separators": STOPS,
            "samples": 2,
            "batch_size": 8,
            "prompt_length": 48,
            "max_new": 16,
            **EVEN,
        },
        "process_reward": TRAIN
        | {
            "kind": "process_reward",
            "inputs": {"policy": "mean", "steps": "step_labels"},
            "data": {"steps": {"input": "steps"}},
            "separators": STOPS,
            "head": {"layers": 1},
            "length": 64,
            "batch_size": 4,
            "steps": 2,
        },
        "rerank": {
            "kind": "rerank",
            "inputs": {
                "samples": "tries", "outcome": "reward_model", "process": "process_reward"
            },
            "scorers": {
                "outcome": {"reward_model": "outcome", "transform": "sigmoid"},
                "process": {"reward_model": "process"},
            },
            "sizes": (1, 4),
        },
        "search": {
            "kind": "search",
            "inputs": {"policy": "mean", "process_reward": "process_reward"},
            "data": {"asked": asked},
            "beams": 4,
            "width": 2,
            "rounds": 2,
            "batch_size": 4,
            "prompt_length": 24,
            "max_step": 4,
            "max_new": 8,
            **EVEN,
        },
    }  # fmt: skip


def policies() -> dict:
    """PPO with a value model; a student of a cached teacher, then of one beside it."""
    worked = {"data": {"worked": {"tasks": REASONING, "count": 16}}, "length": 64}
    prompts = {"prompts": {"asked": {"data": {"tasks": {"tasks": REASONING, "count": 32}}}}}
    return {
        "ppo": prompts | SPACE | TRAIN | {
            "kind": "rl",
            "inputs": {"policy": "mean", "value": "reward_model"},
            "rewards": {"even": EVEN},
            "advantage": {"name": "gae", "lam": 0.95},
            "loss": "ppo",
            "value": {"lr": 1e-3, "optimizer": SMOOTH},
            "kl_in_reward": {"coef": 0.05},
            "group_size": 4,
            "rollout_size": 32,
            "batch_size": 32,
            "steps": 2,
        },
        "cache": worked
        | {"kind": "teacher_logprobs", "inputs": {"teacher": "ppo"}, "k": 8, "batch_size": 4},
        "student": worked | TRAIN | {
            "kind": "distill",
            "inputs": {"policy": "base", "teacher_logprobs": "cache"},
            "k": 8,
            "batch_size": 4,
            "steps": 2,
        },
        "on_policy": prompts | SPACE | TRAIN | {
            "kind": "on_policy_distill",
            "inputs": {"policy": "student", "teacher": "ppo"},
            "k": 8,
            "group_size": 4,
            "rollout_size": 32,
            "steps": 2,
        },
    }  # fmt: skip

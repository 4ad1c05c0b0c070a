"""Every kind of stage in a few steps of a very small model: for the end-to-end tests."""

from pathlib import Path

from ml_collections import ConfigDict

REASONING = {"arithmetic": 1.0, "word_problem": 1.0}
GENERAL = {"chat": 1.0, "safety": 1.0}
SIZES = {
    "layers": 1, "width": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "ffn": 48
}  # fmt: skip
SPACE = {"prompt_length": 24, "max_new": 16}
VOWELS = {"verifier": str(Path(__file__).with_name("vowels.py"))}
# Adam divides by a gradient's size: with the usual 1e-8, one that is rounding noise takes a whole
# step, and runs on different meshes drift apart.
SMOOTH = {"eps": 1e-5}
CLEAN = {"finished": True, "forged": False}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; it has no presets."""
    general = {"tasks": {"tasks": GENERAL, "count": 32}}
    stages = {
        "questions": {
            "kind": "dataset",
            "path": str(Path(__file__).with_name("questions.jsonl")),
            "fields": {"prompt": "question", "answer": "result"},
            "add": {"task": "arithmetic", "language": "en"},
        },
        "base": {
            "kind": "pretrain",
            "model": "tiny:base",
            "model_options": SIZES,
            "curriculum": {
                "1": {"mix": {"problem": 1.0, "chat": 1.0}, "until": ("lookup",)},
                "2": {"mix": {"problem": 1.0}, "steps": 3},
            },
            "batch_size": 16,
            "max_steps": 6,
            "check_every": 3,
            "probes": 24,
            "lr": 1e-2,
            "optimizer": SMOOTH,
            "save_every": 2,
        },
        "samples": {
            "kind": "generate",
            "inputs": {"policy": "base"},
            "data": {"reasoning": {"tasks": REASONING, "count": 38}},
            "samples": 4,
            "batch_size": 8,
            "verifiers": {"vowels": VOWELS, "format": {"verifier": "format"}},
            **SPACE,
        },
        "rejection": {
            "kind": "reject",
            "inputs": {"samples": "samples"},
            "keep": {"vowels": 0.01},
            "per_prompt": 2,
            "mix": general,
        },
        "sft": {
            "kind": "sft",
            "inputs": {"policy": "base", "data": "rejection"},
            "data": {
                "kept": {"input": "data"},
                "worked": {"tasks": REASONING, "count": 24},
            },
            "length": 64,
            "batch_size": 8,
            "microbatches": 2,
            "steps": 5,
            "lr": 3e-3,
            "optimizer": SMOOTH,
            "save_every": 2,
        },
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "sft"},
            "data": general,
            "heldout": {"tasks": {"tasks": GENERAL, "split": "heldout", "count": 12}},
            "length": 48,
            "pairs_per_step": 8,
            "steps": 4,
            "lr": 1e-3,
            "optimizer": SMOOTH,
            "save_every": 2,
        },
        "rl": {
            "kind": "rl",
            "inputs": {"policy": "sft", "preference": "reward_model"},
            "prompts": {
                "reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 32}}},
                "general": {"data": general, "start_step": 2},
            },
            "rewards": {
                "vowels": VOWELS,
                "format": {"verifier": "format", "weight": 0.5},
                "preference": {
                    "reward_model": "preference",
                    "kinds": ("helpful", "safety"),
                    "start_step": 2,
                },
            },
            "loss_options": {"kl_coef": 0.01},
            "group_size": 4,
            "rollout_size": 32,
            "batch_size": 16,
            "microbatches": 2,
            "steps": 8,
            "reference_every": 4,
            "lr": 1e-3,
            "optimizer": SMOOTH,
            "save_every": 2,
            **SPACE,
        },
        "student": {
            "kind": "distill",
            "inputs": {"policy": "base", "teacher_data": "samples"},
            "data": {"teacher": {"input": "teacher_data", "where": CLEAN}},
            "length": 64,
            "batch_size": 8,
            "epochs": 2.0,
            "lr": 3e-3,
            "optimizer": SMOOTH,
        },
        "evaluation": {
            "kind": "evaluate",
            "inputs": {"policy": "rl", "questions": "questions"},
            "data": {
                "questions": {"input": "questions", "where": {"split": "heldout"}},
                "reasoning": {"tasks": REASONING, "split": "heldout", "count": 12},
                "general": {"tasks": GENERAL, "split": "heldout", "count": 8},
            },
            "samples": 2,
            "batch_size": 8,
            **SPACE,
        },
        "export": {"kind": "export", "inputs": {"policy": "rl"}},
    }
    return ConfigDict(
        {"preset": arg or "mini", "chat_template": "tiny", "stages": stages, "order": tuple(stages)}
    )

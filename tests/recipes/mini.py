"""Every kind of stage in a few steps of a very small model: for the end-to-end tests."""

from pathlib import Path

from ml_collections import ConfigDict

REASONING = {"arithmetic": 1.0, "word_problem": 1.0}
GENERAL = {"chat": 1.0, "safety": 1.0}
SIZES = {
    "layers": 1, "width": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "ffn": 48
}  # fmt: skip
SPACE = {"prompt_length": 24, "max_new": 16}
CLEAN = {"finished": True, "forged": False}
VOWELS = {"verifier": str(Path(__file__).with_name("vowels.py"))}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; it has no presets."""
    finetune = {"kind": "sft", "length": 64, "batch_size": 8, "microbatches": 2, "lr": 3e-3}
    general = {"tasks": {"tasks": GENERAL, "count": 32}}
    reinforce = {
        "kind": "rl",
        "prompts": {"reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 32}}}},
        "rewards": {"vowels": VOWELS, "format": {"verifier": "format", "weight": 0.5}},
        "loss_options": {"kl_coef": 0.01},
        "group_size": 4,
        "rollout_size": 32,
        "batch_size": 16,
        "microbatches": 2,
        "lr": 1e-3,
        "save_every": 2,
        **SPACE,
    }
    stages = {
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
            "save_every": 3,
        },
        "cold_start": finetune
        | {
            "inputs": {"policy": "base"},
            "data": {"reasoning": {"tasks": REASONING, "count": 24}} | general,
            "steps": 5,
            "save_every": 2,
        },
        "reasoning_rl": reinforce
        | {"inputs": {"policy": "cold_start"}, "steps": 8, "reference_every": 4},
        "samples": {
            "kind": "generate",
            "inputs": {"policy": "reasoning_rl"},
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
        "sft": finetune
        | {
            "inputs": {"policy": "base", "data": "rejection"},
            "data": {"all": {"input": "data"}},
            "steps": 3,
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
            "save_every": 2,
        },
        "final_rl": reinforce
        | {
            "inputs": {"policy": "sft", "preference": "reward_model"},
            "prompts": {
                "reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 32}}},
                "general": {"data": general, "start_step": 2},
            },
            "rewards": {
                "vowels": VOWELS,
                "preference": {
                    "reward_model": "preference",
                    "kinds": ("helpful", "safety"),
                    "start_step": 2,
                },
            },
            "steps": 4,
        },
        "student": {
            "kind": "distill",
            "inputs": {"policy": "base", "teacher_data": "samples"},
            "data": {"teacher": {"input": "teacher_data", "where": CLEAN}},
            **{k: v for k, v in finetune.items() if k != "kind"},
            "epochs": 1.0,
        },
        "evaluation": {
            "kind": "evaluate",
            "inputs": {"policy": "final_rl"},
            "data": {
                "reasoning": {"tasks": REASONING, "split": "heldout", "count": 12},
                "general": {"tasks": GENERAL, "split": "heldout", "count": 8},
            },
            "samples": 2,
            "batch_size": 8,
            **SPACE,
        },
        "export": {"kind": "export", "inputs": {"policy": "final_rl"}},
    }
    return ConfigDict(
        {"preset": arg or "mini", "chat_template": "tiny", "stages": stages, "order": tuple(stages)}
    )

"""QwQ-32B: a cold start, RL on math and code with outcome rewards only, then general RL.

Source: qwenlm.github.io/blog/qwq-32b, 6 March 2025 ("blog"); the Preview of November 2024 has no
recipe. The blog gives the stages and their rewards; sizes, algorithm and every number are ours.
Published results, as others quote the blog's figure: AIME 2024 79.5, LiveCodeBench 63.4.

  posttrain run qwq.py           tiny: everything from random weights, minutes on two CPU cores
  posttrain plan qwq.py:32b      the published size

Missing: the agent abilities that the blog mentions at its end; rollouts call no tools.
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, EVALUATION, GENERAL, REASONING, TEXT, WINDOW, evaluated

PRESETS = ("tiny", "32b")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one of its scales."""
    name = preset(arg, default="tiny", choices=PRESETS)
    config = {"tiny": tiny, "32b": published}[name]()
    config |= {
        "recipe": "qwq",
        "preset": name,
        "seed": 0,
        "sources": "QwQ-32B, qwenlm.github.io/blog/qwq-32b",
    }
    return ConfigDict(config)


def tiny() -> dict:
    """All of it on procedural tasks, of which the logic puzzles stand in for code."""
    outcome = {"verifier": "task_answer", "kinds": ("reasoning",)}
    reinforce = WINDOW | {
        "kind": "rl",
        "group_size": 8,
        "batch_size": 128,
        "rollout_size": 256,
        "loss_options": {"kl_coef": 0.001},
    }
    prompts = {"reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 2048}}, "share": 1.0}}
    policies = {
        "base": BASE,
        "cold_start": {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {
                "reasoning": {"tasks": REASONING, "count": 300},
                "general": {"tasks": GENERAL, "count": 900},
            },
            "length": 64,
            "batch_size": 32,
            "steps": 80,
            "lr": 5e-4,
        },
        # The answer's check alone: no reward model, nothing for format or language (blog).
        "reasoning_rl": reinforce
        | {
            "inputs": {"policy": "cold_start"},
            "prompts": prompts,
            "rewards": {"accuracy": outcome},
            "lr": 4e-4,
            "steps": 60,
            "reference_every": 60,
        },
        # Few steps, with a general reward model and rules; reasoning goes on (blog).
        "general_rl": reinforce
        | {
            "inputs": {"policy": "reasoning_rl", "general": "reward_model"},
            "prompts": prompts
            | {"general": {"data": {"tasks": {"tasks": GENERAL, "count": 512}}, "share": 1.0}},
            "rewards": {
                "accuracy": outcome,
                "format": {"verifier": "format", "weight": 0.2},
                "general": {"reward_model": "general", "kinds": ("helpful", "safety")},
            },
            "lr": 2e-4,
            "steps": 48,
            "reference_every": 48,
        },
    }
    data = {
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "reasoning_rl"},
            "data": {"pairs": {"tasks": {"chat": 2.0, "safety": 1.0}, "count": 3072}},
            "heldout": {"pairs": {"tasks": GENERAL, "split": "heldout", "count": 128}},
            "length": 48,
            "pairs_per_step": 32,
            "steps": 200,
            "lr": 1e-3,
        },
        "export": {"kind": "export", "inputs": {"policy": "general_rl"}},
    }
    order = ("base", "cold_start", "reasoning_rl", "reward_model", "general_rl", "export")
    stages = {name: (policies | data)[name] for name in order}
    return TEXT | evaluated(stages, policies, EVALUATION)


def published() -> dict:
    """QwQ-32B's stages with the rewards that the blog names; the numbers are ours."""
    adam = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0}
    window = {"prompt_length": 2048, "max_new": 30720}
    remat = {"model_options": {"remat": "full"}}
    reinforce = window | {
        "kind": "rl",
        "group_size": 16,
        "batch_size": 512,
        "rollout_size": 2048,
        "microbatches": 16,
        "lr": 1e-6,
        "loss_options": {"clip_low": 0.2, "clip_high": 0.28},
        "aggregation": "token_mean_global",
        "optimizer": adam,
        **remat,
    }
    # Each row names its verifier: the answer's check for math, the tests for code (blog).
    outcome = {"verifier": "by_example", "verifiers": ("math_answer", "code")}
    stages = {
        "base": {
            "kind": "pretrained",
            "model": "qwen2:2.5-32b",
            "source": "data/Qwen2.5-32B",
        },
        "cold_start": remat
        | {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {"cold": {"path": "data/qwq_cold_start.jsonl"}},
            "length": 32768,
            "batch_size": 128,
            "microbatches": 4,
            "epochs": 2.0,
            "lr": 1e-5,
            "lr_schedule": "cosine",
            "lr_end_ratio": 0.1,
            "optimizer": adam,
        },
        "reasoning_rl": reinforce
        | {
            "inputs": {"policy": "cold_start"},
            "prompts": {
                "math": {"data": {"math": {"path": "data/qwq_math.jsonl"}}},
                "code": {"data": {"code": {"path": "data/qwq_code.jsonl"}}},
            },
            "rewards": {"outcome": outcome},
            "steps": 4000,
        },
        "reward_model": remat
        | {
            "kind": "reward_model",
            "inputs": {"policy": "cold_start"},
            "data": {"pairs": {"path": "data/qwq_general_pairs.jsonl"}},
            "span": "answer",
            "length": 8192,
            "pairs_per_step": 128,
            "microbatches": 4,
            "steps": 1000,
            "lr": 6e-6,
            "optimizer": adam,
        },
        # "A small amount of steps"; math and code must not fall (blog), so they stay in the mix.
        "general_rl": reinforce
        | {
            "inputs": {"policy": "reasoning_rl", "general": "reward_model"},
            "prompts": {
                "math": {"data": {"math": {"path": "data/qwq_math.jsonl"}}},
                "code": {"data": {"code": {"path": "data/qwq_code.jsonl"}}},
                "instructions": {"data": {"rules": {"path": "data/qwq_instructions.jsonl"}}},
                "general": {"data": {"general": {"path": "data/qwq_general.jsonl"}}},
            },
            "rewards": {
                "outcome": outcome
                | {
                    "verifiers": ("math_answer", "code", "ifeval"),
                    "kinds": ("reasoning", "instructions"),
                },
                "general": {"reward_model": "general", "kinds": ("general",)},
            },
            "steps": 400,
        },
        "eval_general_rl": window
        | {
            "kind": "evaluate",
            "inputs": {"policy": "general_rl"},
            "data": {"aime24": {"path": "data/aime24.jsonl"}},
            "verifier": "math_answer",
            "samples": 64,
            "temperature": 0.6,  # model card, as others quote it; it adds top-k 20 to 40
            "top_p": 0.95,  # model card, as others quote it
            "batch_size": 32,
        },
        "export": {"kind": "export", "inputs": {"policy": "general_rl"}},
    }
    return {
        "tokenizer": "data/Qwen2.5-32B",
        "chat_template": "tokenizer",
        "mesh": {"fsdp": 32},
        "stages": stages,
        "order": tuple(stages),
    }

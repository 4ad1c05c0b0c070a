"""Llama 3: six rounds of reward model, rejection sampling, SFT, DPO and averaging; tools, safety.

Sources: arXiv 2407.21783 ("L3"); for what it leaves out of reward modelling Llama 2, arXiv
2307.09288 ("L2"). Published results (L3, table 2; 8B, 70B, 405B): GSM8K 84.5, 95.1, 96.8; MATH
51.9, 68.0, 73.8; IFEval 80.4, 87.5, 88.6.

  posttrain run llama3.py             tiny: six rounds, then the safety stage
  posttrain plan llama3.py:405b       the published sizes; 8b and 70b too
  posttrain plan llama3.py:8b_ranked  not in L3: DPO's pairs come from the rejection samples, and
                                      safety is learnt by RL

A round: the reward model, from the pretrained weights, on all preferences so far; K samples a
prompt of the policy before, of which the reward model's best stays; SFT on those, again from the
pretrained weights; DPO on the latest preferences, with the round's SFT as the reference; the mean
of the round's DPO runs (L3, section 4.1).

Left out: L3's filters on data and its experts; two models' responses in one pair of preferences;
tools in the tiny preset, whose tasks have none. L3 has no RL: tool use is SFT and DPO on single
messages (section 4.3.5), safety SFT and DPO (section 5.4.3), both as stages of their own here.
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, EVALUATION, REASONING, TEXT, WINDOW, evaluated

PRESETS = ("tiny", "8b", "8b_ranked", "70b", "405b")

ROUNDS = 6  # L3, section 4.1


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one of its scales."""
    name = preset(arg, default="tiny", choices=PRESETS)
    config = {
        "tiny": tiny,
        "8b": published_8b,
        "8b_ranked": published_8b_ranked,
        "70b": published_70b,
        "405b": published_405b,
    }[name]()
    config |= {
        "recipe": "llama3",
        "preset": name,
        "seed": 0,
        "sources": "The Llama 3 Herd of Models, arXiv 2407.21783; Llama 2, arXiv 2307.09288",
    }
    return ConfigDict(config)


def prefer(name: str, start: str, rows: dict, inputs: dict, train: dict) -> dict:
    """DPO and the reference that it is held to, the policy `start`.

    Args:
      name: ends the stages' names.
      rows: `data`, `length` and other settings of both stages.
      inputs: the roles that `data` names.
    """
    return {
        f"reference_{name}": rows
        | {
            "kind": "reference_logprobs",
            "inputs": inputs | {"policy": start},
            "batch_size": 64,
        },
        f"dpo_{name}": rows
        | train
        | {
            "kind": "preference",
            "inputs": inputs | {"policy": start, "reference": f"reference_{name}"},
            "loss": "dpo",
            "loss_options": {"beta": 0.1},  # L3, section 4.1.4
            "nll_coef": 0.2,  # L3, section 4.1.4
            # A mean over the response, as in the paper that L3 cites; the headers and turn markers
            # stay in it, which is what it is for.
            "nll_norm": "response",
            "mask_formatting_tokens": True,  # L3, section 4.1.4
        },
    }


def one_round(number: int, parts: dict, preferences: dict, inputs: dict) -> dict:
    """Round `number`: policy_<number> from the base and what policy_<number - 1> samples.

    Args:
      parts: settings of the stages: `reward_model`, `samples`, `sft`, `pairs` (rows of DPO), `dpo`,
        `other_dpo` (what the second run changes); `checks`, verifiers that a sample has to pass.
      preferences: sources of preference data, `round_<number>` for each round so far.
      inputs: the roles that these sources name.
    """
    latest = f"round_{number}"
    compared = {latest: preferences[latest]}
    used = {latest: inputs[latest]} if latest in inputs else {}
    ranked = {"score": {"reward_model": "reward_model", "transform": "none"}}
    checks = parts.get("checks", {})
    other = f"{number}_other"
    stages = {
        f"reward_model_{number}": parts["reward_model"]
        | {
            "kind": "reward_model",
            "inputs": {"policy": "base", **inputs},
            "data": preferences | parts["reward_model"]["data"],
        },
        f"samples_{number}": parts["samples"]
        | {
            "kind": "generate",
            "inputs": {
                "policy": f"policy_{number - 1}",
                "reward_model": f"reward_model_{number}",
            },
            "verifiers": ranked | checks,
            "seed": number,  # other prompts in every round, and other samples
        },
        f"best_{number}": {
            "kind": "reject",
            "inputs": {"samples": f"samples_{number}"},
            "keep": dict.fromkeys(checks, 1.0),
            "per_prompt": 1,
            "prefer": "score",  # the reward model's favourite: L3, section 4.2.2
        },
        f"sft_{number}": parts["sft"]
        | {
            "kind": "sft",
            "inputs": {"policy": "base", "best": f"best_{number}"},
            "data": {"best": {"input": "best"}, **parts["sft"]["data"]},
        },
    }
    if parts.get("ranked_pairs"):
        stages[f"ranked_{number}"] = {
            "kind": "pairs",
            "inputs": {"samples": f"samples_{number}"},
            "score": "score",
            "method": "best_worst",
        }
        compared, used = {"ranked": {"input": "ranked"}}, {"ranked": f"ranked_{number}"}
    rows = parts["pairs"] | {"data": compared | parts["pairs"]["data"]}
    stages |= prefer(f"{number}", f"sft_{number}", rows, used, parts["dpo"])
    stages[f"dpo_{other}"] = stages[f"dpo_{number}"] | parts["other_dpo"]
    stages[f"policy_{number}"] = {
        "kind": "merge",
        "inputs": {"policy": f"dpo_{number}", "other": f"dpo_{other}"},
    }
    return stages


def tiny() -> dict:
    """All rounds on procedural tasks in two languages; numbers are ours unless they say so.

    Verifiers are the annotators of reasoning; chat and safety have ready pairs.
    """
    finetune = {"length": 64, "batch_size": 32}
    helpful = {"helpful": {"tasks": {"chat": 1.0}, "count": 96}}
    parts = {
        "reward_model": {
            "data": {"helpful": {"tasks": {"chat": 1.0}, "count": 192}},
            "loss": "listwise",
            "length": 56,
            "row_length": 112,
            "shared_prompt": True,  # all responses in one row: L3, section 4.1.2
            "pairs_per_step": 32,
            "steps": 120,
            "lr": 1e-3,
            "lr_schedule": "cosine",  # L2
            "lr_end_ratio": 0.1,  # L2
            "warmup": 5,  # L2
        },
        "samples": WINDOW
        | {
            "data": {
                "reasoning": {"tasks": REASONING, "count": 256},
                "helpful": {"tasks": {"chat": 1.0}, "count": 64},
            },
            "samples": 10,  # L3, section 4.2.2: 10 to 30
            "batch_size": 64,
        },
        # Answers are filtered (L3, section 4.3.3), and the language is matched (4.3.2). Without
        # that the reward model's mistakes add up from round to round.
        "checks": {
            "accuracy": {"verifier": "task_answer"},
            "language": {"verifier": "language"},
        },
        "sft": finetune | {"data": helpful, "steps": 80, "lr": 5e-4},
        "pairs": {"data": helpful, "length": 64},
        "dpo": {"pairs_per_step": 32, "epochs": 1.0, "lr": 5e-5},
        "other_dpo": {"lr": 2.5e-5},  # "various ... hyperparameters": L3, section 4.1.5
    }
    stages = {
        "base": BASE,
        "policy_0": finetune
        | {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {"reasoning": {"tasks": REASONING, "count": 100}, **helpful},
            "steps": 20,
            "lr": 2e-4,
        },
    }
    preferences, inputs = {}, {}
    for number in range(1, ROUNDS + 1):
        stages[f"annotated_{number}"] = WINDOW | {
            "kind": "generate",
            "inputs": {"policy": f"policy_{number - 1}"},
            "data": {"reasoning": {"tasks": REASONING, "count": 768}},
            "seed": 100 + number,  # new prompts in every round
            "samples": 4,
            "batch_size": 64,
            "verifiers": {
                "accuracy": {"verifier": "task_answer"},
                "format": {"verifier": "format"},
            },
        }
        stages[f"preferences_{number}"] = {
            "kind": "pairs",
            "inputs": {"samples": f"annotated_{number}"},
            "score": ("accuracy", "format"),
            "method": "best_lower",
            "per_prompt": 2,
        }
        preferences[f"round_{number}"] = {"input": f"round_{number}"}
        inputs[f"round_{number}"] = f"preferences_{number}"
        stages |= one_round(number, parts, dict(preferences), dict(inputs))
    safety = {"safety": {"tasks": {"safety": 1.0}, "count": 256}}
    stages["safety_sft"] = finetune | {
        "kind": "sft",
        "inputs": {"policy": f"policy_{ROUNDS}", "best": f"best_{ROUNDS}"},
        "data": {"best": {"input": "best"}, **safety},
        "steps": 60,
        "lr": 3e-4,
    }
    rows = {"data": safety, "length": 64}
    stages |= prefer("safety", "safety_sft", rows, {}, parts["dpo"])
    return assemble(TEXT, stages, EVALUATION, ("base", "sft_", "dpo_", "policy_", "safety_sft"))


def assemble(text: dict, stages: dict, evaluation: dict, begin: tuple) -> dict:
    """The stages in their order, evaluations of those whose names begin so, the last one's export.

    The last stage is a policy.
    """
    export = {"kind": "export", "inputs": {"policy": list(stages)[-1]}}
    policies = [name for name in stages if name.startswith(begin)]
    return text | evaluated(stages | {"export": export}, policies, evaluation)


ADAM = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0}  # ours: not published
FULL = {"remat": "full"}  # ours
SFT = {
    "length": 8192,  # ours: not published
    "batch_size": 128,  # ours: not published
    "microbatches": 2,  # ours
    "lr": 1e-5,  # L3, section 4.1.3
    "lr_schedule": "cosine",  # ours: not published
    "optimizer": ADAM,
    "model_options": FULL,
}
PAIRS = {"length": 8192, "model_options": FULL}  # short contexts only: L3, section 4.3.4; ours
DPO = {
    "pairs_per_step": 128,  # ours: not published
    "microbatches": 2,  # ours
    "epochs": 1.0,  # ours: not published
    "lr": 1e-5,  # L3, section 4.1.4
    "optimizer": ADAM,
}


def published(model: str, folder: str, mesh: dict, rm_lr: float, ranked_pairs: bool = False):
    """Llama 3 as published; "ours" where L3 says nothing.

    Args:
      rm_lr: of the reward model, L2: 5e-6 for 70B, 1e-5 for smaller ones.
      ranked_pairs: DPO's pairs are the best and the worst of the rejection samples, not annotated.

    Returns:
      text settings, and the stages of six rounds.
    """
    samples = {
        "prompt_length": 2048,  # ours
        "max_new": 4096,  # ours
        "data": {"prompts": {"path": "data/llama3_prompts.jsonl"}},
        "samples": 10,  # 10 to 30: L3, section 4.2.2
        "temperature": 1.0,  # ours: published for multilingual prompts only
        "batch_size": 64,
    }
    parts = {
        "reward_model": {
            "data": {},
            "loss": "listwise",  # edited > chosen > rejected: L3, section 4.1.2
            "length": 8192,  # ours
            "row_length": 8192,  # ours
            "shared_prompt": True,  # one row for all responses to a prompt: L3, section 4.1.2
            "pairs_per_step": 512,  # L2
            "microbatches": 8,  # ours
            "steps": 2000,  # ours; L2 has one epoch
            "lr": rm_lr,
            "lr_schedule": "cosine",  # L2
            "lr_end_ratio": 0.1,  # L2
            "warmup": 60,  # 3 %: L2
            "optimizer": ADAM,
            "model_options": FULL,
        },
        "samples": samples,
        # 8,500 to 9,000 updates for the largest models: L3, section 4.1.3.
        "sft": SFT | {"steps": 9000},
        "pairs": PAIRS | {"data": {}},
        "dpo": DPO,
        "other_dpo": {"lr": 5e-6},  # ours; "various ... hyperparameters": L3, section 4.1.5
        "ranked_pairs": ranked_pairs,
    }
    stages = {
        "base": {"kind": "pretrained", "model": model, "source": f"data/{folder}"},
        # What samples in the first round: not published.
        "policy_0": SFT
        | {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {"human": {"path": "data/llama3_sft_0.jsonl"}},
            "steps": 2000,
        },
    }
    preferences = {}
    for number in range(1, ROUNDS + 1):
        # Human annotators compare and edit responses of the latest models (L3, section 4.2.1).
        preferences[f"round_{number}"] = {"path": f"data/llama3_preferences_{number}.jsonl"}
        mixed = {"mixed": {"path": f"data/llama3_sft_{number}.jsonl"}}  # L3, table 7
        own = parts | {"sft": parts["sft"] | {"data": mixed}}
        stages |= one_round(number, own, dict(preferences), {})
    text = {
        "tokenizer": f"data/{folder}-Instruct",
        "chat_template": "tokenizer",
        "mesh": mesh,
    }
    return text, stages


def capability(name: str, start: str, sft: str, pairs: str) -> dict:
    """A capability as SFT and DPO on files of its own; sizes and lengths are ours."""
    stages = {
        f"sft_{name}": SFT
        | {
            "kind": "sft",
            "inputs": {"policy": start},
            "data": {name: {"path": sft}},
            "epochs": 1.0,
        }
    }
    rows = PAIRS | {"data": {name: {"path": pairs}}}
    return stages | prefer(name, f"sft_{name}", rows, {}, DPO)


def tools(start: str) -> dict:
    """Tool use: the rows of both files are single messages of the assistant after a conversation.

    What a tool returned stands in that conversation, so it is never learnt or compared (L3, section
    4.3.5: annotators rank and edit messages, not what tools return).
    """
    return capability("tools", start, "data/llama3_tools.jsonl", "data/llama3_tool_messages.jsonl")


def safety(start: str) -> dict:
    """Helpful, adversarial and borderline prompts in both files (L3, section 5.4.3)."""
    return capability("safety", start, "data/llama3_safety.jsonl", "data/llama3_safety_pairs.jsonl")


def finished(text: dict, stages: dict) -> dict:
    """A published preset with its evaluations: GSM8K has 8 shots in its prompts (L3, table 2)."""
    evaluation = {
        "kind": "evaluate",
        "prompt_length": 4096,  # ours
        "max_new": 1024,  # ours
        "data": {
            "gsm8k": {"path": "data/gsm8k_test.jsonl"},
            "ifeval": {"path": "data/ifeval.jsonl"},
        },
        "verifier": "by_example",
        "verifier_options": {"verifiers": ("gsm8k", "ifeval")},
        "samples": 1,
    }
    return assemble(text, stages, evaluation, ("policy_", "dpo_tools", "dpo_safety", "rl_safety"))


def published_8b() -> dict:
    """Llama 3.1 8B."""
    text, stages = published("llama:3.1-8b", "Llama-3.1-8B", {"fsdp": 8, "tensor": 4}, 1e-5)
    return finished(text, stages | tools(f"policy_{ROUNDS}") | safety("dpo_tools"))


def published_70b() -> dict:
    """Llama 3.1 70B."""
    text, stages = published("llama:3.1-70b", "Llama-3.1-70B", {"fsdp": 32, "tensor": 8}, 5e-6)
    return finished(text, stages | tools(f"policy_{ROUNDS}") | safety("dpo_tools"))


def published_405b() -> dict:
    """Llama 3.1 405B."""
    text, stages = published("llama:3.1-405b", "Llama-3.1-405B", {"fsdp": 64, "tensor": 8}, 5e-6)
    return finished(text, stages | tools(f"policy_{ROUNDS}") | safety("dpo_tools"))


def published_8b_ranked() -> dict:
    """A common reading of L3 that it does not bear out: pairs of rejection samples, RL for safety.

    RL on tool use, of which that reading also speaks, needs tools while sampling: not here.
    """
    mesh = {"fsdp": 8, "tensor": 4}
    text, stages = published("llama:3.1-8b", "Llama-3.1-8B", mesh, 1e-5, ranked_pairs=True)
    stages |= tools(f"policy_{ROUNDS}") | {
        "rl_safety": {  # every number is ours
            "kind": "rl",
            "inputs": {"policy": "dpo_tools", "reward_model": f"reward_model_{ROUNDS}"},
            "prompts": {"safety": {"data": {"all": {"path": "data/llama3_safety.jsonl"}}}},
            "rewards": {"safe": {"reward_model": "reward_model"}},
            "group_size": 8,
            "batch_size": 128,
            "rollout_size": 512,
            "microbatches": 16,
            "steps": 400,
            "prompt_length": 2048,
            "max_new": 2048,
            "lr": 1e-6,
            "loss_options": {"kl_coef": 0.01},
            "optimizer": ADAM,
            "model_options": FULL,
        }
    }
    return finished(text, stages)

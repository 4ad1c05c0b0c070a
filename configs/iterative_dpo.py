"""Iterative DPO: sample from the latest policy, rank, build pairs, train on them; again.

Two published forms. Iterative RPO (arXiv 2404.19733, "IRPO"): right against wrong answers, DPO and
the chosen response's likelihood. Online-RLHF (arXiv 2405.07863, "RW"; RLHFlow/Online-RLHF,
run_loop.sh, "script"): the best against the worst of eight by a reward model, DPO alone.
Published results: IRPO, Llama-2-70B-Chat on GSM8K, rounds 0 to 4: 55.6, 73.1, 78.0, 81.1, 81.6.

  posttrain run iterative_dpo.py                   tiny: IRPO, and what its parts do in round 1
  posttrain run iterative_dpo.py:tiny_online_rlhf  the other form
  posttrain plan iterative_dpo.py:irpo             the published sizes
  posttrain plan iterative_dpo.py:online_rlhf

In every round policy and reference start as the policy before. The stored script takes the first
policy as the reference: --config.stages.reference_2.inputs.policy=policy_0, and so for round 3.
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, EVALUATION, GENERAL, REASONING, TEXT, WINDOW, evaluated

PRESETS = ("tiny", "tiny_online_rlhf", "irpo", "online_rlhf")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe in one of its forms."""
    name = preset(arg, default="tiny", choices=PRESETS)
    config = {
        "tiny": tiny,
        "tiny_online_rlhf": tiny_online_rlhf,
        "irpo": published_irpo,
        "online_rlhf": published_online_rlhf,
    }[name]()
    config |= {
        "recipe": "iterative_dpo",
        "preset": name,
        "seed": 0,
        "sources": "Iterative RPO, arXiv 2404.19733; RLHF Workflow, arXiv 2405.07863",
    }
    return ConfigDict(config)


def one_round(
    number: int, samples: dict, pairs: dict, length: int, train: dict, judge: str = ""
) -> dict:
    """Round `number`: policy_<number> from policy_<number - 1>.

    Args:
      samples, pairs, train: settings of the stages of kind generate, pairs and preference.
      length: the most tokens of a conversation.
      judge: the stage of the reward model that ranks, if one does.
    """
    before = f"policy_{number - 1}"
    rows = {"data": {"pairs": {"input": "pairs"}}, "length": length}
    if options := train.get("model_options"):
        rows["model_options"] = options
    inputs = {"policy": before, "pairs": f"pairs_{number}"}
    judges = {"reward_model": judge} if judge else {}
    return {
        f"samples_{number}": samples | {"kind": "generate", "inputs": {"policy": before, **judges}},
        f"pairs_{number}": pairs | {"kind": "pairs", "inputs": {"samples": f"samples_{number}"}},
        f"reference_{number}": rows | {"kind": "reference_logprobs", "inputs": inputs},
        f"policy_{number}": rows
        | train
        | {
            "kind": "preference",
            "inputs": inputs | {"reference": f"reference_{number}"},
            "loss": "dpo",
        },
    }


def assemble(text: dict, stages: dict, evaluation: dict, policies: tuple) -> dict:
    """The stages in their order, an evaluation after each policy, the last round's export."""
    rounds = [name for name in stages if name.startswith("policy_")]
    export = {"kind": "export", "inputs": {"policy": max(rounds)}}
    return text | evaluated(stages | {"export": export}, (*policies, *rounds), evaluation)


def tiny_start(reasoning: int, general: int, steps: int) -> dict:
    """A base, and policy_0 after so little SFT that much is left to learn; numbers are ours."""
    first = {
        "kind": "sft",
        "inputs": {"policy": "base"},
        "data": {
            "reasoning": {"tasks": REASONING, "count": reasoning},
            "general": {"tasks": GENERAL, "count": general},
        },
        "length": 64,
        "batch_size": 32,
        "steps": steps,
        "lr": 2e-4,
    }
    return {"base": BASE, "policy_0": first}


def tiny() -> dict:
    """IRPO in four rounds; in round 1 also without its likelihood, and by SFT on the chosen."""
    samples = WINDOW | {
        "data": {"reasoning": {"tasks": REASONING, "count": 384}},
        "samples": 8,  # IRPO: 30
        "batch_size": 64,
        "verifiers": {"accuracy": {"verifier": "task_answer"}},
    }
    pairs = {"score": "accuracy", "method": "right_wrong", "per_prompt": 2}  # IRPO: 10
    train = {
        "loss_options": {"beta": 0.1},  # IRPO, section 3
        "nll_coef": 1.0,  # alpha: IRPO, section 3
        "nll_norm": "response",  # IRPO, eq. 1
        "pairs_per_step": 16,  # IRPO, section 3
        "lr": 2e-4,
        "epochs": 1.0,
    }
    stages = tiny_start(100, 60, 20)
    for number in range(1, 5):  # four iterations: IRPO, table 1
        stages |= one_round(number, samples, pairs, 64, train)
        if number == 1:
            stages["plain_dpo"] = stages["policy_1"] | {"nll_coef": 0.0}
            stages["chosen_sft"] = stages["policy_0"] | {
                "inputs": {"policy": "policy_0", "pairs": "pairs_1"},
                "data": {"chosen": {"input": "pairs"}},
                "steps": 40,
            }
    return assemble(TEXT, stages, EVALUATION, ("base", "plain_dpo", "chosen_sft"))


def tiny_online_rlhf() -> dict:
    """Online-RLHF in three rounds; a reward model learns from policy_0's graded samples first."""
    prompts = {
        "reasoning": {"tasks": REASONING, "count": 256},
        "general": {"tasks": GENERAL, "count": 128},
    }
    samples = WINDOW | {"data": prompts, "samples": 8, "batch_size": 64}  # 8: script
    ranked = {"score": {"reward_model": "reward_model", "transform": "none"}}
    verified = {
        "accuracy": {"verifier": "task_answer"},
        "format": {"verifier": "format"},
    }
    graded = {"kind": "generate", "inputs": {"policy": "policy_0"}, "verifiers": verified}
    train = {
        "loss_options": {"beta": 0.1},
        "pairs_per_step": 16,
        "lr": 1e-4,
        "lr_schedule": "cosine",  # script
        "epochs": 2.0,  # script
    }
    stages = tiny_start(100, 60, 20) | {
        "graded": samples | graded,
        "graded_pairs": {
            "kind": "pairs",
            "inputs": {"samples": "graded"},
            "score": ("accuracy", "format"),
            "per_prompt": 3,
        },
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "policy_0", "pairs": "graded_pairs"},
            "data": {
                "sampled": {"input": "pairs"},
                "general": {"tasks": GENERAL, "count": 512},
            },
            "length": 56,
            "pairs_per_step": 32,
            "steps": 120,
            "lr": 1e-3,
        },
    }
    for number in range(1, 4):  # three iterations: script
        stages |= one_round(
            number, samples | {"verifiers": ranked}, {"score": "score"}, 64, train, "reward_model"
        )
    return assemble(TEXT, stages, EVALUATION, ("base",))


ADAM = {"b1": 0.9, "b2": 0.999, "weight_decay": 0.0}  # ours: not published
FULL = {"remat": "full"}  # ours


def published_irpo() -> dict:
    """IRPO on GSM8K with Llama-2-70B-Chat: section 3 and its appendix; "ours" beside that."""
    window = {"prompt_length": 512, "max_new": 1024}  # ours
    train = {
        "loss_options": {"beta": 0.1},
        "nll_coef": 1.0,
        "nll_norm": "response",
        "pairs_per_step": 16,
        "microbatches": 2,  # ours
        "steps": 5000,  # at most, of which the best on held-out problems is kept
        "lr": 7e-7,
        "lr_schedule": "constant",  # ours: not published
        "optimizer": ADAM,
        "model_options": FULL,
    }
    stages = {
        "policy_0": {
            "kind": "pretrained",
            "model": "llama:2-70b",
            "source": "data/Llama-2-70b-chat",
        }
    }
    for number in range(1, 5):
        samples = window | {
            "data": {"gsm8k": {"path": "data/gsm8k_train.jsonl"}},
            "samples": 30,
            "temperature": 0.8 if number <= 2 else 1.3,
            "batch_size": 32,
            "verifiers": {"accuracy": {"verifier": "gsm8k"}},
        }
        pairs = {"score": "accuracy", "method": "right_wrong", "per_prompt": 10}
        stages |= one_round(number, samples, pairs, 1536, train)
    evaluation = window | {
        "kind": "evaluate",
        "data": {"gsm8k": {"path": "data/gsm8k_test.jsonl"}},
        "verifier": "gsm8k",
        "samples": 32,  # maj@32: table 1
        "temperature": 0.8,  # ours
        "batch_size": 32,
    }
    text = {
        "tokenizer": "data/Llama-2-70b-chat",
        "chat_template": "tokenizer",
        "mesh": {"fsdp": 8, "tensor": 8},
    }
    return assemble(text, stages, evaluation, ())


def published_online_rlhf() -> dict:
    """Online-RLHF with Llama-3-8B-SFT: script where it says nothing else; "ours" beside that."""
    folder = "data/LLaMA3-SFT"
    window = {"prompt_length": 1024, "max_new": 2048}  # ours
    ranked = {"score": {"reward_model": "reward_model", "transform": "none"}}
    train = {
        "loss_options": {"beta": 0.1},  # TRL's default, which the script keeps
        "pairs_per_step": 128,  # ours
        "microbatches": 16,  # ours
        "epochs": 2.0,  # the script's newer form: 1,200 updates at most
        "lr": 5e-7,
        "lr_schedule": "cosine",
        "lr_end_ratio": 0.0,
        "optimizer": ADAM,
        "model_options": FULL,
    }
    stages = {
        "policy_0": {"kind": "pretrained", "model": "llama:3-8b", "source": folder},
        # Theirs is FsfairX-LLaMA3-RM-v0.1: from Llama-3-8B-Instruct, one epoch of public pairs.
        "reward_start": {
            "kind": "pretrained",
            "model": "llama:3-8b",
            "source": "data/Meta-Llama-3-8B-Instruct",
        },
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "reward_start"},
            "data": {"pairs": {"path": "data/preference_700k.jsonl"}},
            "length": 3072,
            "pairs_per_step": 512,  # ours
            "microbatches": 64,  # ours
            "steps": 1367,
            "lr": 2e-6,  # ours
            "lr_schedule": "cosine",  # ours
            "optimizer": ADAM,
            "model_options": FULL,
        },
    }
    for number in range(1, 4):
        samples = window | {
            "data": {"prompts": {"path": f"data/iterative_prompts_{number}_20k.jsonl"}},
            "samples": 8,
            "temperature": 1.0,
            "batch_size": 32,
            "verifiers": ranked,
        }
        stages |= one_round(number, samples, {"score": "score"}, 3072, train, "reward_model")
    evaluation = window | {
        "kind": "evaluate",
        "data": {"gsm8k": {"path": "data/gsm8k_test.jsonl"}},
        "verifier": "gsm8k",
        "samples": 1,
        "batch_size": 32,
    }
    text = {
        "tokenizer": folder,
        "chat_template": "tokenizer",
        "mesh": {"fsdp": 8, "tensor": 2},
    }
    return assemble(text, stages, evaluation, ())

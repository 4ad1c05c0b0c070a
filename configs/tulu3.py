"""Tülu 3: SFT, length-normalised DPO, then PPO on verifiable rewards (RLVR); 3.1 with GRPO.

Sources: arXiv 2411.15124 ("T3"), and allenai/open-instruct: docs/tulu3.md ("docs"), and the code of
its PPO ("code": open_instruct/ppo_vllm_thread_ray_gtrl.py, since removed) and of its GRPO.
Published results (T3, table 6; 8B; SFT, DPO, RLVR): MATH 31.5, 42.0, 43.7; GSM8K 76.2, 84.3, 87.6;
IFEval 72.8, 81.1, 82.4. Hardware (T3): 8B RLVR 65 h on 8 GPUs, 70B 60 h on 48.

  posttrain run tulu3.py            tiny: every stage, and 3.1's GRPO from the same DPO policy
  posttrain plan tulu3.py:8b        the published sizes; 70b too
  posttrain plan tulu3.py:8b_grpo   Tülu 3.1: the same SFT and DPO, then GRPO
  posttrain plan tulu3.py:8b_code   not in T3: programs run against tests are rewarded too

Llama's tokenizer with the template `tulu`. Left out: T3 packs nothing and keeps the best of its
checkpoints.
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, EVALUATION, GENERAL, REASONING, TEXT, WINDOW, evaluated

PRESETS = ("tiny", "8b", "8b_grpo", "8b_code", "70b")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe at one of its scales."""
    name = preset(arg, default="tiny", choices=PRESETS)
    config = {
        "tiny": tiny,
        "8b": published_8b,
        "8b_grpo": published_8b_grpo,
        "8b_code": published_8b_code,
        "70b": published_70b,
    }[name]()
    config |= {
        "recipe": "tulu3",
        "preset": name,
        "seed": 0,
        "sources": "Tülu 3, arXiv 2411.15124; allenai/open-instruct, docs/tulu3.md",
    }
    return ConfigDict(config)


def tiny() -> dict:
    """All of it on procedural tasks in two languages; every number is ours unless it says so."""
    # Pairs of the policy's own samples, and ready ones (T3, section 5.2.1: on- and off-policy).
    pairs = {
        "on_policy": {"input": "pairs"},
        "off_policy": {"tasks": GENERAL, "count": 320},
    }
    reinforce = WINDOW | {
        "kind": "rl",
        "prompts": {"verifiable": {"data": {"tasks": {"tasks": REASONING, "count": 2048}}}},
        "rewards": {"accuracy": {"verifier": "task_answer", "weight": 10.0}},  # T3, eq. 8
        "batch_size": 128,
        "rollout_size": 128,
        "aggregation": "token_mean_local",  # code
        "lr": 1e-4,
    }
    policies = {
        "base": BASE,
        "sft": {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {
                "reasoning": {"tasks": REASONING, "count": 150},
                "general": {"tasks": GENERAL, "count": 450},
            },
            "length": 64,
            "batch_size": 32,
            "steps": 60,
            "lr": 3e-4,
            "lr_schedule": "linear",  # T3, table 11
            "lr_end_ratio": 0.0,
            "warmup": 2,  # 3 %: T3, table 11
            "aggregation": "seq_sum",  # a sum over tokens: T3, section 4.3.2
        },
        "dpo": {
            "kind": "preference",
            "inputs": {"policy": "sft", "reference": "reference", "pairs": "pairs"},
            "data": pairs,
            "loss": "dpo",
            "loss_options": {"length_normalised": True, "beta": 5.0},  # T3, eq. 6 and table 20
            "length": 64,
            "pairs_per_step": 16,
            "epochs": 1.0,  # T3, table 20
            "warmup": 4,  # 10 %: T3, table 20
            "lr": 3e-4,
        },
        "rlvr": reinforce
        | {
            "inputs": {"policy": "dpo", "value": "reward_model"},
            "group_size": 1,  # T3, table 21
            "inner_epochs": 4,  # T3, table 21
            "steps": 80,
            "no_eos": {"mode": "replace", "value": -10.0},  # T3, table 21
            "kl_in_reward": {"coef": 0.05, "estimator": "k1"},  # T3, table 21
            "advantage": {"name": "gae", "gamma": 1.0, "lam": 0.95, "reward_place": "after"},
            "loss": "ppo",
            # T3's clip of 0.2 (table 21) lets a value move by so much a rollout, and here are 20 of
            # them to learn rewards of 10 in.
            "value": {"lr": 1e-3, "loss_options": {"value_clip": 2.0}},
        },
        # Tülu 3.1 (docs), from the same policy on as many samples.
        "grpo": reinforce
        | {
            "inputs": {"policy": "dpo"},
            "group_size": 8,  # 3.1: 16
            "batch_size": 64,  # two updates a rollout: docs
            "steps": 40,
            "no_eos": {"mode": "replace", "value": 0.0},  # docs
            "advantage": {"name": "group", "ddof": 1},  # code
            "loss_options": {"kl_coef": 0.01, "kl_estimator": "k3"},  # docs
        },
    }
    data = {
        "samples": WINDOW
        | {
            "kind": "generate",
            "inputs": {"policy": "sft"},
            "data": {
                "reasoning": {"tasks": REASONING, "count": 512},
                "general": {"tasks": GENERAL, "count": 256},
            },
            "samples": 4,  # T3, section 5.2.1
            "batch_size": 64,
            "verifiers": {
                "accuracy": {"verifier": "task_answer"},
                "format": {"verifier": "format"},
            },
        },
        # Verifiers in the place of T3's judge with four aspects.
        "pairs": {
            "kind": "pairs",
            "inputs": {"samples": "samples"},
            "score": ("accuracy", "format"),
            "method": "best_lower",  # T3, section 5.2.1
        },
        "reference": {
            "kind": "reference_logprobs",
            "inputs": {"policy": "sft", "pairs": "pairs"},
            "data": pairs,
            "length": 64,
        },
        # Only to start the value model from: T3, section 6.2.
        "reward_model": {
            "kind": "reward_model",
            "inputs": {"policy": "sft", "pairs": "pairs"},
            "data": pairs,
            "heldout": {"general": {"tasks": GENERAL, "split": "heldout", "count": 128}},
            "length": 56,
            "pairs_per_step": 32,
            "steps": 60,
            "lr": 3e-4,
        },
        "export": {"kind": "export", "inputs": {"policy": "rlvr"}},
    }
    order = (
        "base", "sft", "samples", "pairs", "reference", "dpo", "reward_model", "rlvr", "grpo",
        "export",
    )  # fmt: skip
    stages = {name: (policies | data)[name] for name in order}
    return TEXT | evaluated(stages, policies, EVALUATION)


ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}  # PyTorch's AdamW, which open-instruct uses
FULL = {"remat": "full"}  # ours
PUBLISHED_WINDOW = {"prompt_length": 2048, "max_new": 2048}  # T3, table 21
PREFERENCES_8B = {"mixture": {"path": "data/tulu_3_8b_preference_mixture.jsonl"}}  # 271,409 pairs
PREFERENCES_70B = {"mixture": {"path": "data/tulu_3_70b_preference_mixture.jsonl"}}  # 334,302 pairs
PUBLISHED_EVALUATION = PUBLISHED_WINDOW | {
    "kind": "evaluate",
    # T3's own prompts: 8 shots for GSM8K and 4 for MATH; greedy (T3, table 24).
    "data": {
        "gsm8k": {"path": "data/gsm8k_test.jsonl"},
        "math": {"path": "data/math_test.jsonl"},
        "ifeval": {"path": "data/ifeval.jsonl"},
    },
    "verifier": "by_example",
    "verifier_options": {"verifiers": ("gsm8k", "math_flex", "ifeval")},
    "samples": 1,
}


def finetune(policy: str, lr: float) -> dict:
    """SFT on the mixture of 939,344 conversations (T3, tables 7 and 11)."""
    return {
        "kind": "sft",
        "inputs": {"policy": policy},
        "data": {"mixture": {"path": "data/tulu_3_sft_mixture.jsonl"}},
        "length": 4096,
        # 128 conversations, one a row, in T3; packed, at 512 tokens each (ours), they are 16 rows.
        "batch_size": 16,
        "epochs": 2.0,
        "lr": lr,
        "lr_schedule": "linear",
        "lr_end_ratio": 0.0,
        "warmup": 440,  # 3 % of 14,677 updates
        # `--reduce_loss sum`: the sum over all tokens, here over a constant, the number of rows.
        "aggregation": "seq_sum",
        "optimizer": ADAM,
        "model_options": FULL,
    }


def prefer(data: dict, lr: float, warmup: int) -> dict:
    """The cached reference and length-normalised DPO on it (T3, eq. 6, table 20, section 5.4.2)."""
    rows = {"data": data, "length": 2048, "model_options": FULL}
    return {
        "reference": rows
        | {"kind": "reference_logprobs", "inputs": {"policy": "sft"}, "row_length": 4096},
        "dpo": rows
        | {
            "kind": "preference",
            "inputs": {"policy": "sft", "reference": "reference"},
            "loss": "dpo",
            "loss_options": {"length_normalised": True, "beta": 5.0},
            "pairs_per_step": 128,
            "microbatches": 16,  # ours
            "epochs": 1.0,
            "lr": lr,
            "lr_schedule": "linear",
            "lr_end_ratio": 0.0,
            "warmup": warmup,
            "optimizer": ADAM,
        },
    }


def reward_model(policy: str) -> dict:
    """The 8B reward model that all sizes of policy start their value model from (docs)."""
    return {
        "kind": "reward_model",
        "inputs": {"policy": policy},
        "data": PREFERENCES_8B,
        "length": 2048,
        "pairs_per_step": 256,  # 8 GPUs x 1 x 32: docs; a later script has 128
        "microbatches": 32,  # ours
        "steps": 1060,  # one epoch: docs
        "lr": 3e-6,  # docs
        "optimizer": ADAM,
        "model_options": FULL,
    }


def ppo(rollout: int, ranks: int, per_device: int, beta: float) -> dict:
    """RLVR (T3, section 6 and table 21), without its learning rate and number of steps.

    Args:
      rollout: prompts, one sample each, all in one minibatch.
      ranks: the devices that learned; each whitened the advantages of its own rows (code).
      per_device: rows that a device took at once; the loss is a mean over their tokens (code).
    """
    decay = {"weight_decay": 0.01}  # PyTorch's default (code)
    return PUBLISHED_WINDOW | {
        "kind": "rl",
        "inputs": {"policy": "dpo", "value": "reward_model"},
        "prompts": {"rlvr": {"data": {"all": {"path": "data/rlvr_gsm_math_if.jsonl"}}}},  # 29,946
        "rewards": verified("gsm8k", "math_flex", "ifeval"),
        "no_eos": {"mode": "replace", "value": -10.0},
        "group_size": 1,
        "rollout_size": rollout,
        "batch_size": rollout,
        "inner_epochs": 4,
        "microbatches": rollout // per_device,
        "aggregation": "token_mean_local",
        "temperature": 1.0,
        "kl_in_reward": {"coef": beta, "estimator": "k1"},
        "advantage": {
            "name": "gae", "gamma": 1.0, "lam": 0.95, "scope": "local", "parts": ranks,
            "reward_place": "after",
        },
        "loss": "ppo",
        "loss_options": {"clip_low": 0.2, "clip_high": 0.2},
        # vf_coef 0.1: with its own AdamW a loss times 0.1 is the loss with ten times eps and clip.
        "value": {
            "loss_options": {"value_clip": 0.2},
            "optimizer": ADAM | decay | {"eps": 1e-7, "clip_norm": 10.0},
        },
        "max_off_policy_steps": 1,  # rollouts of the policy before the last: T3, section 6.3
        "lr_schedule": "linear",
        "lr_end_ratio": 0.0,
        "optimizer": ADAM | decay | {"clip_norm": 1.0},
        "model_options": FULL,
    }  # fmt: skip


def verified(*verifiers: str) -> dict:
    """The reward: 10 for a right answer, whatever the row's verifier is (T3, eq. 8)."""
    return {"accuracy": {"verifier": "by_example", "verifiers": verifiers, "weight": 10.0}}


def pipeline(mesh: dict, folder: str, stages: dict) -> dict:
    """The stages in their order, with an evaluation of each policy, and the last one's export."""
    policies = [name for name in stages if name in ("sft", "dpo", "rlvr")]
    export = {"kind": "export", "inputs": {"policy": policies[-1]}}
    text = {"tokenizer": folder, "chat_template": "tulu", "mesh": mesh}
    return text | evaluated(stages | {"export": export}, policies, PUBLISHED_EVALUATION)


def published_8b(**rlvr) -> dict:
    """Tülu 3 8B; `rlvr` replaces settings of the last stage."""
    stages = {
        "base": {"kind": "pretrained", "model": "llama:3.1-8b", "source": "data/Llama-3.1-8B"},
        "sft": finetune("base", 5e-6),
        **prefer(PREFERENCES_8B, 5e-7, 212),
        "reward_model": reward_model("sft"),
        "rlvr": ppo(224, 7, 2, 0.05)  # 7 GPUs x 32 (docs)
        | {
            "lr": 3e-7,
            # 100,000 episodes (T3, table 21). The released command says 10,000,000, with which the
            # rate hardly decays: --config.stages.rlvr.steps=178568.
            "steps": 1784,
        }
        | rlvr,
    }
    return pipeline({"fsdp": 2, "tensor": 8}, "data/Llama-3.1-8B", stages)


def published_8b_code() -> dict:
    """The 8B with programs among the verifiable prompts, which T3 left for later (section 6)."""
    prompts = {
        "rlvr": {"data": {"all": {"path": "data/rlvr_gsm_math_if.jsonl"}}, "share": 3.0},
        "code": {"data": {"all": {"path": "data/rlvr_code.jsonl"}}, "share": 1.0},  # ours
    }
    rewards = verified("gsm8k", "math_flex", "ifeval", "code")
    return published_8b(prompts=prompts, rewards=rewards)


def published_8b_grpo() -> dict:
    """Tülu 3.1 8B: GRPO in the place of PPO (docs, "NEW"); no value model, so no reward model."""
    config = published_8b()
    rlvr = config["stages"]["rlvr"]
    kept = (
        *PUBLISHED_WINDOW,
        "kind",
        "prompts",
        "rewards",
        "temperature",
        "aggregation",
        "model_options",
    )
    stages = {
        name: config["stages"][name] for name in ("base", "sft", "reference", "dpo")
    } | {
        "rlvr": {name: rlvr[name] for name in kept}
        | {
            "inputs": {"policy": "dpo"},
            "no_eos": {"mode": "replace", "value": 0.0},  # docs
            "group_size": 16,  # docs
            "rollout_size": 768,  # 12 GPUs x 4 prompts x 16 (docs)
            "batch_size": 384,  # two minibatches (docs)
            "microbatches": 192,  # two rows a device (docs)
            "advantage": {"name": "group", "ddof": 1, "eps": 1e-8},  # code
            # The code computes old log-probs anew at its only inner epoch: the ratio is always 1.
            "loss_options": {
                "surrogate": "cispo", "clip_low": 0.0, "clip_high": 0.0,
                "kl_coef": 0.01, "kl_estimator": "k3",
            },
            "max_off_policy_steps": 1,  # as its PPO (T3, section 6.3); the docs do not say
            "lr": 5e-7,  # docs
            "lr_schedule": "constant",  # docs
            "steps": 26040,  # 10,000,000 episodes (docs); the best checkpoint is far earlier
            "optimizer": rlvr["optimizer"],
        },
    }  # fmt: skip
    return pipeline(config["mesh"], "data/Llama-3.1-8B", stages)


def published_70b() -> dict:
    """Tülu 3 70B; its value model has 8B parameters, as the reward model that it starts from."""
    stages = {
        "base": {"kind": "pretrained", "model": "llama:3.1-70b", "source": "data/Llama-3.1-70B"},
        "sft": finetune("base", 2e-6),
        **prefer(PREFERENCES_70B, 2e-7, 261),
        "base_8b": {"kind": "pretrained", "model": "llama:3.1-8b", "source": "data/Llama-3.1-8B"},
        "sft_8b": finetune("base_8b", 5e-6),
        "reward_model": reward_model("sft_8b"),
        "rlvr": ppo(640, 40, 1, 0.07)  # 40 GPUs x 16 (docs); 0.07: T3, table 21 (its text has 0.7)
        | {
            # With one row a device a mean over its tokens is a mean over each sequence.
            "aggregation": "seq_mean_token_mean",
            "microbatches": 16,  # ours
            "lr": 1e-7,
            "warmup": 250,  # 10 % (docs; T3's caption has 7 %)
            "steps": 2500,  # 400,000 episodes (docs)
        },
    }
    return pipeline({"fsdp": 8, "tensor": 8}, "data/Llama-3.1-70B", stages)

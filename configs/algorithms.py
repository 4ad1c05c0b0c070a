"""Every algorithm on one task: arithmetic, from one base, with one budget of samples.

Policy-gradient stages make 24 rollouts of 256 responses; preference stages learn from pairs among
as many samples of the base. Each policy is evaluated on held-out problems, with its KL to the base.
The settings of an algorithm are those of its source as far as they carry over to a model of this
size; learning rates, batch sizes and numbers of steps are ours, the same for all of a sort, and so
are coefficients whose published value is for summed log-probs of long responses. A comparison of
what the losses do here, no ranking.

  posttrain run algorithms.py      all of it, about a quarter of an hour on two CPU cores
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, TEXT, WINDOW, evaluated

PRESETS = ("tiny",)

TASKS = {"arithmetic": 1.0}
VERIFIERS = {"accuracy": {"verifier": "task_answer"}, "format": {"verifier": "format"}}

POLICY_GRADIENT = {
    # DeepSeekMath, arXiv 2402.03300, eq. 3 and section 4.2
    "grpo": {"loss_options": {"kl_coef": 0.04}},
    # arXiv 2501.12948v1, eq. 1-3; clip: Nature 645, Methods
    "grpo_r1": {
        "loss_options": {
            "importance_level": "sequence", "clip_low": 10.0, "clip_high": 10.0, "kl_coef": 0.001,
        }
    },
    # arXiv 2503.20783, section 3
    "dr_grpo": {
        "advantage": {"name": "group", "divide_by_std": False},
        "aggregation": "constant",
        "aggregation_constant": 40.0,
    },
    # arXiv 2503.14476, eq. 8-12
    "dapo": {
        "loss_options": {"clip_high": 0.28},
        "aggregation": "token_mean_global",
        "dynamic_sampling": 2,
    },
    # arXiv 2507.18071, eq. 5-7
    "gspo": {
        "loss_options": {
            "importance_level": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4,
        }
    },
    # arXiv 2506.13585, eq. 4-5; the upper bound is TRL's default
    "cispo": {
        "loss_options": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0},
        "aggregation": "token_mean_global",
    },
    # arXiv 2402.14740, section 4
    "rloo": {
        "advantage": {"name": "rloo"},
        "loss_options": {"importance_level": "sequence"},
        "kl_in_reward": {"coef": 0.01},
    },
    # arXiv 2501.03262
    "reinforce_plus_plus": {
        "advantage": {"name": "reinforce_plus_plus"},
        "aggregation": "token_mean_global",
        "kl_in_reward": {"coef": 0.01},
    },
    # arXiv 2310.10505, algorithm 1
    "remax": {
        "advantage": {"name": "remax"},
        "loss_options": {"surrogate": "cispo", "clip_low": 0.0, "clip_high": 0.0},
        "kl_in_reward": {"coef": 0.01},
    },
    # arXiv 1707.06347; values by a head on the policy, which starts at 0
    "ppo": {
        "advantage": {"name": "gae", "gamma": 1.0, "lam": 1.0},
        "loss": "ppo",
        "aggregation": "token_mean_global",
        "kl_in_reward": {"coef": 0.01},
    },
}  # fmt: skip

PREFERENCE = {
    "dpo": {"loss_options": {"beta": 0.1}},  # arXiv 2305.18290, eq. 7
    # Tülu 3, arXiv 2411.15124, eq. 6 and table 20
    "dpo_normalised": {"loss_options": {"beta": 5.0, "length_normalised": True}},
    # Iterative RPO, arXiv 2404.19733, eq. 1
    "dpo_nll": {"loss_options": {"beta": 0.1}, "nll_coef": 1.0},
    "ipo": {"loss": "ipo", "loss_options": {"beta": 0.1}},  # arXiv 2310.12036, eq. 17
    "simpo": {"loss": "simpo"},  # arXiv 2405.14734, eq. 6
    "cpo": {"loss": "cpo", "nll_coef": 1.0, "nll_norm": "sum"},  # arXiv 2401.08417, eq. 5
    "orpo": {"loss": "orpo", "nll_coef": 1.0},  # arXiv 2403.07691, eq. 6-7
}
REFERENCE_FREE = ("simpo", "cpo", "orpo")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; there is one preset."""
    name = preset(arg, default="tiny", choices=PRESETS)
    reinforce = {
        "kind": "rl",
        **WINDOW,
        "inputs": {"policy": "base"},
        "prompts": {"reasoning": {"data": {"tasks": {"tasks": TASKS, "count": 2048}}}},
        "rewards": {
            "accuracy": VERIFIERS["accuracy"] | {"weight": 1.0},
            "format": VERIFIERS["format"] | {"weight": 0.2},
        },
        "group_size": 8,
        "batch_size": 128,
        "rollout_size": 256,
        "steps": 48,
        "lr": 3e-4,
    }
    prefer = {
        "kind": "preference",
        "inputs": {"policy": "base", "pairs": "pairs"},
        "data": {"pairs": {"input": "pairs"}},
        "length": 64,
        "pairs_per_step": 64,
        "steps": 96,
        "lr": 3e-4,
    }
    kept = {
        "kind": "reference_logprobs",
        "inputs": {"policy": "base", "pairs": "pairs"},
        "data": prefer["data"],
        "length": 64,
    }
    stages = {
        "base": BASE,
        "samples": {
            "kind": "generate",
            **WINDOW,
            "inputs": {"policy": "base"},
            "data": {"reasoning": {"tasks": TASKS, "count": 768}},
            "samples": 8,
            "batch_size": 64,
            "verifiers": VERIFIERS,
        },
        "pairs": {
            "kind": "pairs",
            "inputs": {"samples": "samples"},
            "score": ("accuracy", "format"),
            "method": "best_worst",
            "per_prompt": 4,
            "margin": 0.25,
        },
        "reference": kept,
        "reference_singles": kept | {"singles": True},
    }
    policies = {name: reinforce | own for name, own in POLICY_GRADIENT.items()}
    for algorithm, own in PREFERENCE.items():
        inputs = prefer["inputs"]
        if algorithm not in REFERENCE_FREE:
            inputs = inputs | {"reference": "reference"}
        policies[algorithm] = prefer | own | {"inputs": inputs}
    policies["kto"] = prefer | {  # arXiv 2402.01306, eq. 8
        "kind": "kto",
        "inputs": prefer["inputs"] | {"reference": "reference_singles"},
    }
    evaluation = {
        "kind": "evaluate",
        **WINDOW,
        "data": {"reasoning": {"tasks": TASKS, "split": "heldout", "count": 256}},
        "samples": 4,
    }
    first = evaluated(stages, ("base",), evaluation)
    then = evaluated(policies, policies, evaluation | {"inputs": {"reference": "base"}})
    return ConfigDict(
        TEXT
        | {
            "recipe": "algorithms",
            "preset": name,
            "seed": 0,
            "stages": first["stages"] | then["stages"],
            "order": first["order"] + then["order"],
            "sources": "the papers named beside each algorithm",
        }
    )

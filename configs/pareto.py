"""Two rewards that pull apart, right answers and short ones: a sweep of their weights, and soups.

GRPO from one start with weights 1 - w and w, rewards summed first (arXiv 2402.03300) and
normalised each by itself (GDPO, arXiv 2601.05242); then weight averages of the sweep's two ends
(rewarded soups, Rame et al. 2023, arXiv 2306.04488), which need two runs for any number of points.
The last stage has the Pareto front; the report draws it. Every number is ours.

  posttrain run pareto.py          minutes on two CPU cores
"""

from ml_collections import ConfigDict

from posttrain_jax.recipe import preset
from posttrain_jax.recipe_parts import BASE, EVALUATION, HELDOUT, REASONING, TEXT, WINDOW, evaluated

PRESETS = ("tiny",)

WEIGHTS = (0, 25, 50, 75, 100)
"""Of the reward for short responses, in percent; the other's is what is left."""
GDPO = {"advantage": {"name": "gdpo"}}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; there is one preset."""
    name = preset(arg, default="tiny", choices=PRESETS)
    policies = {
        "base": BASE,
        "start": {
            "kind": "sft",
            "inputs": {"policy": "base"},
            "data": {"reasoning": {"tasks": REASONING, "count": 300}},
            "length": 64,
            "batch_size": 32,
            "steps": 40,
            "lr": 5e-4,
        },
    }
    sweep = {f"sum_{weight}": reinforce(weight) for weight in WEIGHTS}
    gdpo = {f"gdpo_{weight}": reinforce(weight) | GDPO for weight in WEIGHTS[1:-1]}
    ends = {"right": f"sum_{WEIGHTS[0]}", "short": f"sum_{WEIGHTS[-1]}"}
    soups = {
        f"soup_{weight}": {
            "kind": "merge",
            "inputs": ends,
            "weights": {"right": 1 - weight / 100, "short": weight / 100},
        }
        for weight in WEIGHTS[1:-1]
    }
    policies |= sweep | gdpo | soups
    evaluation = EVALUATION | {"data": {"reasoning": HELDOUT["reasoning"]}}
    config = evaluated(policies, policies, evaluation)
    compared = ("start", *sweep, *gdpo, *soups)
    first, last = ends.values()
    front = {
        "kind": "pareto",
        "inputs": {policy: f"eval_{policy}" for policy in compared},
        "objectives": ("pass@1", "-length"),
        "origin": (0.0, float(WINDOW["max_new"])),
        "series": {
            "start": ("start",),
            "sums": tuple(sweep),
            "gdpo": (first, *gdpo, last),
            "soups": (first, *soups, last),
        },
    }
    return ConfigDict(
        TEXT
        | {
            "recipe": "pareto",
            "preset": name,
            "seed": 0,
            "stages": config["stages"] | {"front": front},
            "order": (*config["order"], "front"),
            "sources": "arXiv 2402.03300; arXiv 2601.05242; arXiv 2306.04488",
        }
    )


def reinforce(weight: int) -> dict:
    """GRPO with this weight, in percent, of the reward for short responses."""
    longest = WINDOW["max_new"]
    return WINDOW | {
        "kind": "rl",
        "inputs": {"policy": "start"},
        "prompts": {"reasoning": {"data": {"tasks": {"tasks": REASONING, "count": 2048}}}},
        "rewards": {
            "accuracy": {"verifier": "task_answer", "weight": 1 - weight / 100},
            # 1 - length / longest, less 1: the ramp of DAPO's eq. 13 over the whole window.
            "short": {
                "verifier": "soft_overlong",
                "max_completion_len": longest,
                "soft_punish_cache": longest,
                "weight": weight / 100,
            },
        },
        "group_size": 8,
        "batch_size": 128,
        "rollout_size": 256,
        "lr": 3e-4,
        "steps": 48,
        "loss_options": {"kl_coef": 0.001},
    }

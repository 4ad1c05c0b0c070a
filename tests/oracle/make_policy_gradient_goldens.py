"""Policy-gradient losses, their gradients, and advantages as TRL and rlax compute them.

    pip install -e '.[oracle]' 'trl==1.16.0' 'rlax==0.1.9'
    python tests/oracle/make_policy_gradient_goldens.py [--check]

writes tests/golden/policy_gradient/{losses,advantages,ppo}.npz in float64: what went in, what came
out by case, and the versions. `--check` computes all again and compares with what is stored.

TRL's losses are methods of trainers, and its advantages a part of one long method. The losses are
called with a stand-in for the trainer, whose model "computes" the stored log-probs; the other parts
are cut out of their method's syntax tree and run as they are.
"""

import argparse
import ast
import inspect
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import rlax
import torch
import trl
from trl.trainer import grpo_trainer, rloo_trainer

jax.config.update("jax_enable_x64", True)
FOLDER = Path(__file__).parents[1] / "golden" / "policy_gradient"
GROUP, ROWS, WIDTH = 4, 8, 7
CONSTANT = 10
"""Tokens a sequence that dr_grpo divides by."""

CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.28}
LOSSES = {
    "grpo": {"loss_type": "grpo", **CLIP},
    "bnpo": {"loss_type": "bnpo", **CLIP},
    "bnpo_two_parts": {"loss_type": "bnpo", "parts": 2, **CLIP},
    "dr_grpo": {"loss_type": "dr_grpo", **CLIP},
    "dapo": {"loss_type": "dapo", **CLIP},
    "dapo_two_parts": {"loss_type": "dapo", "parts": 2, **CLIP},
    "grpo_kl": {"loss_type": "grpo", "beta": 0.4, **CLIP},
    "grpo_dual_clip": {"loss_type": "grpo", "delta": 1.5, **CLIP},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence",
             "epsilon_low": 0.1, "epsilon_high": 0.15},
    "gspo_kl": {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.4, **CLIP},
    "cispo": {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.3},
    "cispo_kl": {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.3, "beta": 0.4},
    "entropy": {"loss_type": "bnpo", "entropy_coef": 0.3, **CLIP},
    "token_truncate": {"loss_type": "bnpo", "vllm": ("token_truncate", None, 1.5), **CLIP},
    "token_mask": {"loss_type": "bnpo", "vllm": ("token_mask", 0.7, 1.5), **CLIP},
    "sequence_truncate": {"loss_type": "grpo", "vllm": ("sequence_truncate", None, 1.5), **CLIP},
    "sequence_mask": {"loss_type": "grpo", "vllm": ("sequence_mask", 0.5, 2.0), "beta": 0.4,
                      **CLIP},
    "rloo": CLIP,
}  # fmt: skip
"""Case -> TRL's settings; `vllm`: mode, lower and upper bound; `parts`: gradient accumulation."""


def inputs() -> dict[str, np.ndarray]:
    """Log-probs some way apart, ragged responses, a tool's output in the middle of one of them."""
    rng = np.random.default_rng(0)
    logp = rng.normal(-2.0, 1.0, (ROWS, WIDTH))
    lengths = [7, 1, 4, 6, 2, 7, 3, 5]
    mask = (np.arange(WIDTH) < np.array(lengths)[:, None]).astype(np.float64)
    mask[3, 2:4] = 0
    return {
        "logp": logp,
        "proximal": logp - rng.normal(0.0, 0.3, logp.shape),
        "behaviour": logp - rng.normal(0.0, 0.6, logp.shape),
        "reference": logp - rng.normal(0.0, 0.8, logp.shape),
        "entropy": rng.uniform(0.0, 3.0, logp.shape),
        "advantage": rng.normal(0.0, 1.0, ROWS),
        "mask": mask,
    }


def cut(method, first, last=None) -> str:
    """The source of a run of statements within a method: from one that `first` picks to `last`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            begins = [i for i, s in enumerate(body) if first(ast.unparse(s))]
            if begins:
                ends = [i for i, s in enumerate(body) if last and last(ast.unparse(s))]
                end = next((i for i in ends if i >= begins[0]), begins[0])
                return ast.unparse(body[begins[0] : end + 1])
    raise LookupError(f"{method.__qualname__} of trl {trl.__version__} has no such statements")


def importance_ratio(x: dict, trainer: SimpleNamespace) -> torch.Tensor:
    """TRL's correction for what another engine sampled."""
    is_it = lambda text: (  # noqa: E731
        text.startswith("if self.use_vllm and self.vllm_importance_sampling_correction:")
        and "per_token_logps_diff =" in text
    )
    source = cut(grpo_trainer.GRPOTrainer._generate_and_score_completions, is_it)
    names = {
        "self": trainer, "old_per_token_logps": x["proximal"], "tool_mask": None,
        "sampling_per_token_logps": x["behaviour"], "completion_mask": x["mask"],
    }  # fmt: skip
    exec(source, vars(grpo_trainer), names)
    return names["vllm_importance_sampling_ratio"]


def stand_in(settings: dict, logp: torch.Tensor, entropy: torch.Tensor) -> SimpleNamespace:
    """What TRL's loss methods ask of `self`."""
    same = lambda x, **_: x  # noqa: E731
    mode, low, high = settings.get("vllm", ("token_truncate", None, None))
    parts = settings.get("parts", 1)
    none = ("off_policy_mask_threshold", "entropy_mask")
    return SimpleNamespace(
        **dict.fromkeys(none),
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, entropy, None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(
            gather=same, gather_for_metrics=same, reduce=same, num_processes=1, sync_gradients=True
        ),
        args=SimpleNamespace(
            delta=settings.get("delta"), use_bias_correction_kl=False, steps_per_generation=parts
        ),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=parts,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        entropy_coef=settings.get("entropy_coef", 0.0),
        _entropy_bonus_enabled="entropy_coef" in settings,
        use_adaptive_entropy=False,
        beta=settings.get("beta", 0.0),
        epsilon_low=settings["epsilon_low"],
        epsilon_high=settings["epsilon_high"],
        importance_sampling_level=settings.get("importance_sampling_level", "token"),
        loss_type=settings.get("loss_type"),
        max_completion_length=CONSTANT,
        use_vllm="vllm" in settings,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=low,
        vllm_importance_sampling_clip_max=high,
    )


def trl_loss(name: str, arrays: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss and its gradients by log-probs and by entropies; the parts' losses add up."""
    x = {k: torch.from_numpy(v) for k, v in arrays.items()}
    logp, entropy = x["logp"].requires_grad_(), x["entropy"].requires_grad_()
    settings, total = LOSSES[name], 0.0
    parts = settings.get("parts", 1)
    for part in range(parts):
        rows = slice(part, None, parts)
        some = {k: v[rows] for k, v in x.items()}
        trainer = stand_in(settings, logp[rows], entropy[rows])
        empty = torch.zeros(ROWS // parts, 0)
        batch = {
            "prompt_ids": empty, "prompt_mask": empty, "completion_ids": some["mask"],
            "completion_mask": some["mask"], "advantages": some["advantage"],
            "old_per_token_logps": some["proximal"], "ref_per_token_logps": some["reference"],
            "old_logps": (some["proximal"] * some["mask"]).sum(1),
            "num_items_in_batch": x["mask"].sum(),
        }  # fmt: skip
        if trainer.use_vllm:
            batch["importance_sampling_ratio"] = importance_ratio(some, trainer)
        owner = rloo_trainer.RLOOTrainer if name == "rloo" else grpo_trainer.GRPOTrainer
        total = total + owner._compute_loss(trainer, None, batch)
    total.backward()
    by_entropy = torch.zeros_like(entropy) if entropy.grad is None else entropy.grad
    return total.detach().numpy(), logp.grad.numpy(), by_entropy.numpy()


def losses() -> dict[str, np.ndarray]:
    """Every case of `LOSSES`."""
    arrays = inputs()
    made = dict(arrays)
    for name in LOSSES:
        made[f"{name}/loss"], made[f"{name}/by_logp"], by_entropy = trl_loss(name, arrays)
        if "entropy_coef" in LOSSES[name]:
            made[f"{name}/by_entropy"] = by_entropy
    return made


def advantages() -> dict[str, np.ndarray]:
    """TRL's, of two reward terms; NaN marks a response that could not be scored."""
    rng = np.random.default_rng(1)
    terms = np.stack([rng.normal(2.0, 3.0, 12), rng.integers(0, 2, 12)], axis=1)
    terms[4] = terms[5]
    terms[6] = np.nan
    weights, kl = np.array([1.0, 0.5]), rng.normal(0.0, 0.5, 12)
    made = {"values": terms, "weights": weights, "kl": kl}
    rewards = torch.from_numpy((terms * weights).sum(1))
    names = {
        "rewards_per_func": torch.from_numpy(terms), "device": "cpu", "num_generations": GROUP,
        "unscorable_mask": torch.from_numpy(np.isnan(terms).all(1)),
    }  # fmt: skip
    whole = grpo_trainer.GRPOTrainer._generate_and_score_completions
    grpo = cut(whole, lambda s: s.startswith("if self.multi_objective_aggregation =="),
               lambda s: s.startswith("advantages = torch.nan_to_num"))  # fmt: skip
    for name, scale, order in (
        ("group", "group", "sum_then_normalize"),
        ("centred", "none", "sum_then_normalize"),
        ("gdpo", "group", "normalize_then_sum"),
    ):
        trainer = SimpleNamespace(
            multi_objective_aggregation=order, scale_rewards=scale,
            reward_weights=torch.from_numpy(weights), reward_funcs=["one", "two"],
        )  # fmt: skip
        scope = {**names, "self": trainer}
        exec(grpo, vars(grpo_trainer), scope)
        made[name] = scope["advantages"].numpy()
    rloo = cut(rloo_trainer.RLOOTrainer._generate_and_score_completions,
               lambda s: s.startswith("grouped_rewards = rewards.view"),
               lambda s: s.startswith("advantages = torch.nan_to_num"))  # fmt: skip
    scope = {"rewards": rewards - torch.from_numpy(kl), "num_generations": GROUP,
             "self": SimpleNamespace(normalize_advantages=False)}  # fmt: skip
    exec(rloo, vars(rloo_trainer), scope)
    return {**made, "rloo": scope["advantages"].numpy()}


def ppo() -> dict[str, np.ndarray]:
    """rlax's generalised advantages of one episode a row, and its clipped surrogate."""
    rng = np.random.default_rng(2)
    reward, value = rng.normal(0, 1, (5, 9)), rng.normal(0, 1, (5, 10))
    value[:, -1] = 0  # after the end
    made = {"reward": reward, "value": value[:, :-1]}
    for gamma, lam in ((1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.97, 0.0)):
        made[f"gae/{gamma}/{lam}"] = np.stack([
            rlax.truncated_generalized_advantage_estimation(r, np.full(9, gamma), lam, v)
            for r, v in zip(reward, value, strict=True)
        ])  # fmt: skip
    ratio, advantage = rng.uniform(0.3, 2.0, 40), rng.normal(0, 1, 40)
    loss, slope = jax.value_and_grad(
        lambda log: rlax.clipped_surrogate_pg_loss(jax.numpy.exp(log), advantage, 0.2)
    )(np.log(ratio))
    return {**made, "log_ratio": np.log(ratio), "advantage": advantage, "loss": loss,
            "by_log_ratio": slope}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is stored")
    check = parser.parse_args().check
    versions = [f"{m.__name__} {m.__version__}" for m in (trl, torch, rlax, jax, np)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for make in (losses, advantages, ppo):
        path, made = FOLDER / f"{make.__name__}.npz", make()
        if not check:
            np.savez_compressed(path, versions=np.array(versions), **made)
            continue
        with np.load(path) as stored:
            assert set(stored) - {"versions"} == set(made), path
            for name, array in made.items():
                np.testing.assert_allclose(array, stored[name], rtol=1e-9, atol=1e-9, err_msg=name)
        print(f"{path.name}: the same")


if __name__ == "__main__":
    main()

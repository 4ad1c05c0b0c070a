"""The RL stage from artifacts to an artifact: Tülu 3's PPO in small; value models it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax import artifacts, policy, reward_model, train_state, value_model
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.metrics import read_rows
from posttrain_jax.models import ModelConfig, heads, make_model

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")
SIZES = ModelConfig(
    vocab_size=load_tokenizer("tiny").vocab_size, layers=1, width=32, heads=2, kv_heads=2,
    head_dim=16, ffn=48,
)  # fmt: skip
TULU = {
    "loss": "ppo",
    "advantage": {"name": "gae", "gamma": 1.0, "lam": 0.95, "reward_place": "after"},
    "kl_in_reward": {"coef": 0.05, "estimator": "k1", "log_bound": 40.0, "bound": 0.0},
    "no_eos": {"mode": "replace", "value": -10.0},
    "aggregation": "token_mean_local",
    "group_size": 1, "rollout_size": 8, "batch_size": 8, "inner_epochs": 2, "microbatches": 2,
    "steps": 4, "prompt_length": 24, "max_new": 6, "lr": 1e-3, "workers": 1,
    "prompts": {"sums": {"data": {"tasks": {"tasks": {"arithmetic": 1.0}, "count": 8}}}},
    "rewards": {"format": {"verifier": "format", "weight": 10.0}},
}  # fmt: skip


@pytest.fixture
def put(tmp_path, small):
    """`(kind, config) -> artifact`: a policy, or a reward model, of these sizes."""

    def put(kind, config=SIZES):
        folder = tmp_path / f"{kind}-{config.width}-{config.vocab_size}"
        record = artifacts.Record(
            stage=kind, kind=kind, id="1" * 64, config=ConfigDict().to_dict(), inputs={},
            tokenizer_hash="", template_hash="", code="",
        )  # fmt: skip
        artifacts.prepare(folder, record)
        model = make_model(config)
        params = train_state.init_params(model, small.mesh, 0)
        if kind == "reward_model":
            params = reward_model.add_head(model, params, small.mesh, 1)
            finished = reward_model.RewardModel(model, params, 32, "whole")
            reward_model.save(folder, finished)
        else:
            policy.save_policy(folder, model, params)
        artifacts.seal(folder)
        return artifacts.load(folder)

    return put


def test_ppo_with_a_value_model_of_another_size(put, run_stage, small):
    """Values start from a reward model's score head; what is saved is a plain policy."""
    inputs = {
        "policy": put("sft"), "value": put("reward_model", dataclasses.replace(SIZES, width=16))
    }  # fmt: skip
    made = run_stage("rl", TULU, inputs)
    rows = read_rows(made.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    assert all(np.isfinite(row["value_loss"]) and row["value_grad_norm"] > 0 for row in rows)
    assert rows[0]["value"] != 0  # the reward model's scores
    cut = rows[0]["truncated"]
    assert rows[0]["reward"] == pytest.approx(-10 * cut + 10 * rows[0]["reward/format"], abs=1e-5)
    assert cut > 0 and abs(rows[0]["kl_in_reward"]) < 1e-4 < abs(rows[1]["kl_in_reward"])
    _, params = policy.load_policy(made, small.mesh)
    assert value_model.HEAD not in params
    assert params["embed"].shape == (SIZES.vocab_size, 32)


def test_ppo_with_a_head_saves_a_plain_policy(put, run_stage, small):
    settings = {**TULU, "advantage": {"name": "gae"}, "steps": 2}
    made = run_stage("rl", settings, {"policy": put("sft")})
    assert read_rows(made.path / "metrics.jsonl")[-1]["value_loss"] > 0
    _, params = policy.load_policy(made, small.mesh)
    assert value_model.HEAD not in params


def test_value_models_that_do_not_fit(put, small):
    model = make_model(SIZES)
    other = put("reward_model", dataclasses.replace(SIZES, vocab_size=64))
    with pytest.raises(ValueError, match="a vocabulary of 64 tokens, the policy writes one of"):
        value_model.load(other, small.mesh, model, 0)
    wrong = put("reward_model")
    about = json.loads((wrong.path / "model.json").read_text())
    about["config"]["width"] = 16
    (wrong.path / "model.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"the sizes in .*model.json are not those of its param"):
        value_model.load(wrong, small.mesh, model, 0)


def test_a_value_model_computes_as_the_stage_says(put, small):
    model, params = value_model.load(put("sft"), small.mesh, make_model(SIZES), 0, remat="full")
    assert model.config.remat == "full" and not np.any(params["head"]["weight"])
    assert params["head"]["weight"].shape == (32, heads.VALUE.outputs)
    assert jax.tree.leaves(params["backbone"])

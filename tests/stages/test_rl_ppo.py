"""PPO by settings of the RL stage: values of a model of its own or of a head, epochs, resumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import interrupt, reward_model, tree, value_model
from posttrain_jax.models import heads
from posttrain_jax.rollout import updates

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")
PPO = {"needs": ("value_BT",), "loss": "ppo", "advantage": {"name": "gae", "lam": 1.0}}
ONE_UPDATE = {"batch_size": 16, "rollout_size": 16}


@pytest.fixture
def new_values(small):
    """Settings and parameters of a value model that starts from the policy and says 0."""

    def make():
        params = reward_model.add_head(small.model, small.params, small.mesh, 0, heads.VALUE)
        return {"value_model": small.model, "value_params": jax.tree.map(jnp.copy, params)}

    return make


@pytest.fixture
def with_head(small):
    """The policy's parameters with a value head."""

    def make():
        return value_model.with_head(small.params, small.model, small.mesh, 0)

    return make


def remembered(rewards):
    """A score that is kept: the number of different tokens in a response."""

    def score(response, example):
        rewards.append(float(len(set(response.split()))))
        return rewards[-1]

    return score


@pytest.mark.parametrize("form", ["model", "head"])
def test_values_of_zero_miss_by_the_reward(form, train_rl, tmp_path, small, new_values, with_head):
    """V = 0 and lam = 1: every return is the reward, the value loss half its square's mean.

    The policy's rate is 0; the value model's is its own.
    """
    values = new_values() if form == "model" else {"params": with_head()}
    rewards, own = [], {"lr": 0.0, "value": {"lr": 0.01}, "steps": 2}
    trained = train_rl(tmp_path, score=remembered(rewards), **own, **ONE_UPDATE, **PPO, **values)
    first, second = trained.rows
    assert first["value_loss"] == pytest.approx(np.mean(np.square(rewards[:16])) / 2, rel=1e-5)
    assert first["reward"] == pytest.approx(np.mean(rewards[:16]))
    assert first["value"] == 0 and first["explained_variance"] == 0
    assert (second["value"] != 0) == (form == "model")
    same = tree.digest(value_model.without_head(trained.params)) == tree.digest(small.params)
    assert same


@pytest.mark.parametrize("form", ["model", "head"])
def test_values_learn_a_reward_that_never_changes(form, train_rl, tmp_path, new_values, with_head):
    values = new_values() if form == "model" else {"params": with_head()}
    trained = train_rl(
        tmp_path, score=lambda *_: 2.0, steps=16, lr=1e-2, inner_epochs=2,
        value={"loss_options": {"value_clip": 0.0}},
        loss_options={"vf_coef": 1.0, "value_clip": 0.0},
        **{**PPO, "advantage": {"name": "gae"}}, **values,
    )  # fmt: skip
    losses = [row["value_loss"] for row in trained.rows]
    assert losses[-1] < 0.25 * losses[0]
    assert trained.rows[-1]["value"] == pytest.approx(2.0, abs=1.0)


@pytest.mark.parametrize("parts", [1, 2])
def test_groups_whose_prompt_is_read_once_learn_the_same(
    parts, train_rl, tmp_path, new_values, monkeypatch
):
    """Policy, reference and values; where minibatches are random rows the updates read all."""
    settings = {"steps": 2, "kl_in_reward": {"coef": 0.1}, "batch_size": 16 // parts, **PPO}
    plain, seen = updates.share_prompts, []

    def spy(model, group, width):
        seen.append(group)
        return plain(model, group, width)

    monkeypatch.setattr(updates, "share_prompts", spy)
    once = train_rl(tmp_path / "once", **settings, **new_values())
    assert seen[:2] == [4 if parts == 1 else 1] * 2 and set(seen[2:]) == {4}
    monkeypatch.setattr(updates, "_group", lambda *_: 1)
    each = train_rl(tmp_path / "each", **settings, **new_values())
    assert seen[-1] == 1
    for one, other in zip(once.rows, each.rows, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_every_row_comes_once_an_inner_epoch_in_another_order(rl_setting, small):
    setting, _ = rl_setting(inner_epochs=3)
    batch = updates.Batch(*(np.zeros((16, 9), np.float32) for _ in range(4)))
    found = list(updates.minibatches(setting, batch, step=6))
    assert [number for number, _, _ in found] == list(range(6))
    rows = [np.concatenate([r for _, _, r in found[i : i + 2]]).tolist() for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(16)) for epoch in rows)
    assert rows[0] != rows[1] != rows[2] != rows[0]


def test_a_resumed_run_is_the_same_bit_for_bit(train_rl, tmp_path, new_values, monkeypatch):
    """Policy, values, reference, and the policy that the next rollout was sampled with."""
    settings = {"steps": 6, "kl_in_reward": {"coef": 0.1}, "reference_every": 4, **PPO}
    settings |= {"max_off_policy_steps": 1, "entropy_control": {"target": 9.0}}
    whole = train_rl(tmp_path / "whole", **settings, **new_values())
    stops = iter([False, True])
    monkeypatch.setattr(interrupt, "requested", lambda: next(stops, False))
    with pytest.raises(interrupt.Interrupted):
        train_rl(tmp_path / "cut", **settings, **new_values())
    found = train_rl(tmp_path / "cut", **settings, **new_values())
    assert found.rows == whole.rows and len(found.rows) == 3
    assert tree.digest(found.params) == tree.digest(whole.params)

"""What else the settings of the RL stage make of its one loop: sampling, estimators, entropy."""

import ast

import jax
import numpy as np
import pytest

from posttrain_jax.mesh import local_rows
from posttrain_jax.rollout import collect, engine
from posttrain_jax.rollout.prompts import NOTHING_DRAWN
from posttrain_jax.stages import rl
from posttrain_jax.teacher import TeacherModel

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")
ONE_UPDATE = {"batch_size": 16, "rollout_size": 16}


def of_even_prompts(response, example):
    """0 for every second prompt, so that its group has equal rewards."""
    number = int(example["id"].partition("-")[2])
    return float(sum(ast.literal_eval(response))) if number % 2 else 0.0


def test_dynamic_sampling_fills_groups_of_equal_rewards(small, rl_setting):
    """Four prompts a draw, two of them useful: the second draw fills the rest."""
    setting, stream = rl_setting(of_even_prompts, dynamic_sampling=3)
    with jax.set_mesh(small.mesh):
        sampled = collect.collect(setting, small.params, stream, 0, NOTHING_DRAWN)
        scored, _ = collect.scores(setting, sampled, 0)
    assert sampled.metrics == {"redraws": 1, "replaced_groups": 2} and sampled.drawn.draws == 2
    owners = [e["id"] for e in sampled.judging.examples]
    assert owners == [i for i in ("1-1", "0-1", "1-3", "0-3") for _ in range(4)]
    texts = engine.responses(sampled.rollout, setting.text.tokenizer)
    assert texts == sampled.judging.responses
    rewards = [of_even_prompts(*row) for row in zip(texts, sampled.judging.examples, strict=True)]
    np.testing.assert_allclose(local_rows(scored.rewards_BW)[:, 0], rewards)
    assert all(len(set(rewards[i : i + 4])) > 1 for i in range(0, 16, 4))
    prompts = np.asarray(sampled.rollout.tokens_BT)[::4, :5]
    expected = [stream.draw(0)[0].tokens[1], stream.draw(0)[0].tokens[3]]
    np.testing.assert_array_equal(prompts[[1, 3]], expected)


def test_dynamic_sampling_ends_where_nothing_is_found(train_rl, tmp_path, capsys):
    """Bounded, counted, and said: all rewards are equal, the policy stays as it is."""
    settings = {"dynamic_sampling": 2, "steps": 1, **ONE_UPDATE}
    trained = train_rl(tmp_path, score=lambda *_: 1.0, **settings)
    (row,) = trained.rows
    assert (row["redraws"], row["replaced_groups"], row["all_equal_groups"]) == (2, 0, 1.0)
    assert row["grad_norm"] == 0
    assert "the rewards of every group are equal" in capsys.readouterr().out


def seen_by(responses):
    """A score that keeps what it is shown."""

    def score(response, example):
        responses.append((example["id"].partition("-")[0], response))
        return float(response.count("3"))

    return score


def noting(function, name, calls):
    """The function, which notes that it was called."""

    def called(*arguments):
        calls.append(name)
        return function(*arguments)

    return called


def test_one_step_off_policy_samples_with_the_policy_before(train_rl, tmp_path, monkeypatch):
    """Rollouts 0 and 1 are both the first policy's, rollout 2 is not; the ratio starts at 1.

    Scores of a rollout are asked for once the next one is sampled.
    """
    calls = []
    said = {name: [] for name in ("frozen", "behind", "on")}
    settings = {"steps": 3, **ONE_UPDATE, "lr": 0.05}
    train_rl(tmp_path / "frozen", score=seen_by(said["frozen"]), **{**settings, "lr": 0.0})
    train_rl(tmp_path / "on", score=seen_by(said["on"]), **settings)
    for name in ("collect", "scores"):
        monkeypatch.setattr(rl, name, noting(getattr(rl, name), name, calls))
    behind = train_rl(
        tmp_path / "behind", score=seen_by(said["behind"]), max_off_policy_steps=1,
        loss_options={"off_policy_weight": "token", "off_policy_cap": 2.0}, **settings,
    )  # fmt: skip
    of = {
        name: {n: [r for d, r in rows if d == n] for n in "012"} for name, rows in said.items()
    }  # fmt: skip
    assert of["behind"]["0"] == of["frozen"]["0"] and of["behind"]["1"] == of["frozen"]["1"]
    assert of["behind"]["2"] != of["frozen"]["2"]
    assert of["on"]["1"] != of["frozen"]["1"]
    assert all(row["ratio"] == pytest.approx(1.0, abs=1e-4) for row in behind.rows)
    weights = [row["off_policy_weight"] for row in behind.rows]
    assert weights[0] == pytest.approx(1.0, abs=1e-4) and abs(weights[1] - 1) > 1e-3
    assert "logprob_gap" not in behind.rows[0]
    assert calls == ["collect", "collect", "scores", "collect", "scores", "scores"]


@pytest.mark.parametrize(("target", "signs"), [(9.0, 1), (0.01, -1)])
def test_entropy_control_steers_the_coefficient(train_rl, tmp_path, target, signs):
    """Below the target it rises by a step a rollout; above it falls to 0 and is not in force."""
    control = {"target": target, "step": 0.02}
    rows = train_rl(
        tmp_path, steps=3, entropy_control=control, loss_options={"entropy_coef": 0.03},
        **ONE_UPDATE,
    ).rows  # fmt: skip
    coefs = [row["entropy_coef"] for row in rows]
    assert all((row["entropy"] < target) == (signs > 0) for row in rows)
    expected = [0.03, 0.05, 0.07] if signs > 0 else [0.03, 0.0, 0.0]
    assert coefs == pytest.approx(expected)


def test_greedy_baselines_are_of_greedy_responses(
    train_rl, tmp_path, small, rl_setting, logp_float64
):
    """The most likely tokens, one by one, by the float64 decoder."""
    setting, stream = rl_setting(needs=("greedy_B",), advantage={"name": "remax"}, group_size=2)
    with jax.set_mesh(small.mesh):
        sampled = collect.collect(setting, small.params, stream, 0, NOTHING_DRAWN)
        _, greedy_P = collect.scores(setting, sampled, 0)
    prompts, _ = stream.draw(0)
    expected = []
    for row, segments in zip(prompts.tokens, prompts.segments, strict=True):
        tokens = row[segments > 0].tolist()
        start = len(tokens)
        while len(tokens) - start < 4 and 1 not in tokens[start:]:
            logp = logp_float64(small.exact, small.model.config, tokens)
            tokens.append(int(logp[-1].argmax()))
        expected.append([t for t in tokens[start:] if t != 1])
    assert [ast.literal_eval(said) for said in sampled.greedy[1].responses] == expected
    rewards = [sum(t in (3, 4, 5, 6) for t in tokens) for tokens in expected]
    np.testing.assert_allclose(greedy_P, rewards)


@pytest.mark.parametrize(
    "advantage",
    [
        {"name": "gdpo"},
        {"name": "remax"},
        {"name": "reinforce_plus_plus"},
    ],
)
def test_every_estimator_runs_in_the_same_loop(train_rl, tmp_path, advantage):
    """A KL in the reward where the estimator has one: none at first, then some."""
    needs = ("greedy_B",) if advantage["name"] == "remax" else ()
    in_reward = {} if advantage["name"] == "gdpo" else {"kl_in_reward": {"coef": 0.5}}
    rows = train_rl(
        tmp_path, needs=needs, advantage=advantage, steps=2, lr=0.05, **in_reward, **ONE_UPDATE
    ).rows
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    if in_reward:
        assert abs(rows[0]["kl_in_reward"]) < 1e-4 < abs(rows[1]["kl_in_reward"])
    assert ("greedy_reward" in rows[0]) == bool(needs)


@pytest.mark.parametrize("k", [32, 0])
def test_a_teacher_makes_it_on_policy_distillation(train_rl, make_small, small, tmp_path, k):
    """No rewards: the divergence to the teacher falls, by all its tokens or by the sampled ones."""
    teacher = TeacherModel(small.model, make_small(seed=5).params, 32)
    loss = {"loss": "distill", "loss_options": {"divergence": "reverse"}} if k else {}
    rows = train_rl(
        tmp_path, score=lambda *_: 0.0, teacher_model=teacher, teacher={"k": k},
        advantage={"name": "none"}, steps=8 if k else 24, rollout_size=32, batch_size=32, lr=2e-2,
        aggregation="token_mean_global", **loss,
    ).rows  # fmt: skip
    divergence = [row["loss" if k else "sampled_kl"] for row in rows]
    assert divergence[0] > 0 and divergence[-1] < 0.6 * divergence[0]

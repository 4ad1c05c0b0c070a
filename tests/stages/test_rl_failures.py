"""What an RL stage refuses before it runs, and when it stops."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax import nonfinite, tree
from posttrain_jax.rollout import checks
from posttrain_jax.settings import defaults_of

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")
CARRIED = {"max_off_policy_steps": 1, "slots": 8}
MESH = SimpleNamespace(shape={"data": 1, "fsdp": 1, "expert": 1})


def settings(**changes):
    return ConfigDict({
        **defaults_of("rl"), "group_size": 4, "rollout_size": 16, "batch_size": 8, "steps": 4,
        **changes,
    })  # fmt: skip


@pytest.mark.parametrize("name", ["group", "rloo", "gdpo"])
def test_groups_of_one_are_refused(name):
    with pytest.raises(ValueError, match=f"group_size=1: the advantage '{name}' .* at least 2"):
        checks.check(settings(group_size=1, advantage={"name": name}), MESH, ())


@pytest.mark.parametrize("name", ["remax", "reinforce_plus_plus", "gae", "none"])
def test_others_take_groups_of_one(name):
    estimator = checks.check(settings(group_size=1, advantage={"name": name}), MESH, ())
    assert estimator.__name__.endswith(name)


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        ({"advantage": {"name": "gea"}}, (), "no 'gea' in .*Did you mean 'gae'"),
        ({}, ("value",), "inputs.value is given, but the advantage 'group' asks for no values"),
        ({"advantage": {"name": "gae", "reward_place": "after"}}, (), "give a value model"),
        ({"advantage": {"name": "remax"}, "dynamic_sampling": 2}, (), "set it to 0"),
        ({"max_off_policy_steps": 2}, (), "max_off_policy_steps=2: expected 0 or 1"),
        ({"carry_over": 5, **CARRIED}, (), "carry_over=5: expected 0 to 4 groups, those of a roll"),
        ({"carry_over": 2, **CARRIED, "slots": 0}, (), "carry_over=2 needs a queue, got slots=0"),
        ({"carry_over": 2, "slots": 8}, (), "carry_over=2 expects max_off_policy_steps=1"),
        (
            {"carry_over": 2, **CARRIED, "dynamic_sampling": 1},
            (),
            "expects dynamic_sampling=0; set",
        ),
        ({"carry_over": 2, **CARRIED, "advantage": {"name": "remax"}}, (), "without a greedy resp"),
        ({"carry_over": 2, **CARRIED, "partner": {"tools": {}}}, (), "conversations can't go on"),
        ({"no_eos": {"mode": "drop", "value": 0.0}}, (), "no_eos.mode='drop': expected none or"),
    ],
)
def test_settings_that_do_not_fit_together(changes, inputs, message):
    with pytest.raises(ValueError, match=message):
        checks.check(settings(**changes), MESH, inputs)


def test_a_reward_that_is_not_a_number_is_refused_with_its_row(train_rl, tmp_path):
    def score(response, example):
        return float("nan") if example["id"] == "0-2" else 1.0

    with pytest.raises(ValueError, match=r"'good' gave nan to row 8 \(example '0-2', .*response"):
        train_rl(tmp_path, score=score)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_stops_after_updates_that_are_not_finite(train_rl, tmp_path, small):
    """Two updates a rollout: after the second rollout there were four in a row."""
    broken = {"loss_options": {"kl_coef": float("inf")}, "stop_after_skipped": 3, "steps": 6}
    with pytest.raises(nonfinite.NonFiniteError, match="4 updates in a row, up to update 4") as e:
        train_rl(tmp_path, **broken)
    path = tmp_path / "nonfinite-4.npz"
    assert str(path) in str(e.value) and "stop_after_skipped=3" in str(e.value)
    saved = np.load(path)
    assert saved["tokens_BT"].shape == (8, 9) and saved["weight_BT"].sum() == pytest.approx(1)
    assert saved["advantage_BT"].any() and "reference_logp_BT" in saved
    passed = train_rl(tmp_path / "counted", **{**broken, "stop_after_skipped": 0, "steps": 2})
    assert passed.rows[0]["skipped"] == 2
    assert tree.digest(passed.params) == tree.digest(small.params)


def test_the_longest_row_of_skipped_updates():
    assert nonfinite.longest_run(0, 5, [5, 5, 5]) == (0, 0, 0)
    assert nonfinite.longest_run(0, 5, [6, 7, 7, 8]) == (1, 2, 1)
    assert nonfinite.longest_run(2, 5, [6, 6, 7, 8]) == (2, 3, 0)
    assert nonfinite.longest_run(1, 0, [2, 4]) == (3, 3, 1)  # two models skip at once

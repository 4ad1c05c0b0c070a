"""The RL stage: its batch arithmetic, its metrics, and that an iteration compiles once."""

import collections
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax.rollout import checks, updates
from posttrain_jax.stages import rl

SIZES = {
    "rollout_size": 32, "batch_size": 16, "group_size": 4, "microbatches": 2, "steps": 6,
    "reference_every": 0, "inner_epochs": 1,
}  # fmt: skip


def test_the_number_of_minibatches(small):
    assert checks.check_sizes(ConfigDict(SIZES), small.mesh) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "rollout_size=32 is not a multiple of batch_size=12; .*24 or 36"),
        ({"group_size": 5}, "rollout_size=32 is not a multiple of group_size=5; .*30 or 35"),
        ({"group_size": 64}, "group_size=64; the nearest: 64 or 64"),
        ({"microbatches": 3}, "batch_size=16 is not a multiple of microbatches=3; .*15 or 18"),
        ({"steps": 7}, "steps=7 must be a multiple of the 2 updates of a rollout"),
        ({"reference_every": 5}, "reference_every=5 must be a multiple of the 2 updates"),
        ({"steps": 6, "inner_epochs": 2}, "steps=6 must be a multiple of the 4 updates"),
        ({"inner_epochs": 0}, "inner_epochs=0: expected at least 1"),
    ],
)
def test_sizes_that_do_not_divide(small, changes, message):
    with pytest.raises(ValueError, match=message):
        checks.check_sizes(ConfigDict({**SIZES, **changes}), small.mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"microbatches": 8}, "batch_size / microbatches=2 .*nearest that do: 4"),
        ({"group_size": 16}, "rollout_size / group_size=2 .*nearest that do: 4"),
    ],
)
def test_sizes_that_the_mesh_does_not_divide(changes, message):
    mesh = SimpleNamespace(shape={"data": 2, "fsdp": 2, "expert": 1})
    with pytest.raises(ValueError, match=message):
        checks.check_sizes(ConfigDict({**SIZES, **changes}), mesh)


def test_metrics_are_means_over_minibatches_but_the_gap_is_the_first():
    metrics = {"reward": 0.5}
    for number, (kl, gap, skipped) in enumerate([(1.0, 0.01, 0), (3.0, 0.5, 1)]):
        found = {"kl": kl, "max/logprob_gap": gap, "skipped": skipped}
        metrics |= updates.join(metrics, found, number, 2)
    assert metrics == {"reward": 0.5, "kl": 2.0, "max/logprob_gap": 0.01, "skipped": 1}


def test_the_report_names_terms_and_leaves_out_those_that_are_off():
    metrics = {
        "terms_W": np.array([0.5, np.nan, 0.25]), "reward": np.float32(1.5), "max/logprob_gap": 0.1
    }  # fmt: skip
    assert rl.report(metrics, ["format", "preference", "accuracy"]) == {
        "reward": 1.5, "logprob_gap": 0.1, "reward/format": 0.5, "reward/accuracy": 0.25,
        "accuracy": 0.25,
    }  # fmt: skip


@pytest.fixture
def compiled():
    """How often each function was compiled since the counter was last cleared."""
    names = collections.Counter()

    def listen(event, _seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            names[about.get("fun_name")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_an_iteration_compiles_once_and_learns(train_rl, tmp_path, compiled, monkeypatch):
    """Sample, assemble, minibatches, reference log-probs, updates; prompts and rewards change.

    On the way: the updates raise the rewarded token, and the first minibatch is on-policy.
    """
    counts = []

    def learn(*arguments):
        found = updates.learn(*arguments)
        counts.append(dict(compiled))
        compiled.clear()
        return found

    monkeypatch.setattr(rl, "learn", learn)
    settings = {"rollout_size": 32, "batch_size": 16, "temperature": 0.9, "warmup": 1, "steps": 8}
    settings |= {"loss_options": {"kl_coef": 0.1}, "lr_schedule": "linear", "lr_end_ratio": 0.0}
    rows = train_rl(tmp_path, **settings).rows
    first, *later = counts
    for name in (
        "start", "advance", "finish", "to_batch", "assemble", "take", "logprobs", "update",
    ):  # fmt: skip
        assert first[f"jit({name})"] == 1, name
    assert later == [{}] * 3
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert all(row["logprob_gap"] < 1e-4 for row in rows)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.3

"""Process reward models: the loss against the float64 decoder, packing, resume, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from posttrain_jax import head_training, interrupt, process_reward, reward_model, train_state, tree
from posttrain_jax.api import Artifact
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.mesh import shard_rows
from posttrain_jax.models import heads
from posttrain_jax.policy import Text, save_policy
from posttrain_jax.stages import process_reward as stage

ROWS = [
    {"id": "a", "prompt": "3 #1+5", "steps": [" 3 #1 +5 gives 8.", " 8"], "step_labels": [1.0, 0.0],
     "step_shares": [0.75, 0.0], "domain": "sums"},
    {"id": "b", "prompt": "9 #1-5", "steps": [" 9 gives 4.", " 4.", " 4"], "step_labels": [0.0],
     "step_shares": [0.25], "domain": "sums"},
    {"id": "c", "prompt": "1 #1+1", "steps": [" 2"], "step_labels": [1.0], "step_shares": [1.0],
     "domain": "more"},
]  # fmt: skip


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer("tiny")
    return Text(tokenizer, load_template("tiny", tokenizer))


@pytest.fixture(scope="module")
def policy(make_small, text):
    return make_small(vocab_size=text.tokenizer.vocab_size, tied=False)


def source(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"file": {"path": str(path)}}


def settings(**changes):
    plain = {
        "labels": "hard", "aggregate": "product", "marker": "", "length": 24, "batch_size": 3,
        "microbatches": 1, "head": {"layers": 2, "outputs": 2}, "seed": 0,
    }  # fmt: skip
    return ConfigDict(plain | changes)


def one_update(policy, text, tmp_path, **changes):
    """Parameters and metrics after one step of descent on all rows."""
    config, descent = settings(**changes), optax.trace(decay=0.0)
    solutions, _ = stage.read_labelled(config, {}, source(tmp_path, ROWS))
    rows, _ = stage.pack_rows(config, solutions, text)
    params = reward_model.add_head(policy.model, policy.params, policy.mesh, 1, heads.PROCESS)
    state = train_state.init_state(jax.tree.map(jnp.copy, params), descent)
    update = head_training.make_update(stage.make_objective(policy.model), descent)
    batch = shard_rows(policy.mesh, stage.take(stage.mark(rows), range(len(rows.tokens))))
    state, metrics = update(state, batch, jnp.float32(1.0))
    return solutions, params, len(rows.tokens), state.params, metrics


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_the_loss_is_read_at_the_ends_of_steps(policy, text, tmp_path, hidden_float64, labels):
    solutions, params, _, _, metrics = one_update(policy, text, tmp_path, labels=labels)
    head, lost, right = jax.tree.map(np.float64, params["head"]), [], []
    for solution in solutions:
        steps = stage.encode(settings(), solution, text)
        hidden = hidden_float64(policy.exact, policy.model.config, steps.tokens)
        for end, y in zip(steps.ends, solution.labels, strict=False):
            logits = np.maximum(hidden[end] @ head["hidden"], 0) @ head["weight"]
            logp = logits - np.log(np.exp(logits).sum())
            lost.append(-(y * logp[1] + (1 - y) * logp[0]))
            right.append((logits[1] > logits[0]) == (y > 0.5))
    assert len(lost) == 4  # nothing behind the labelled steps
    assert float(metrics["loss"]) == pytest.approx(np.mean(lost), abs=1e-4)
    assert float(metrics["step_accuracy"]) == pytest.approx(np.mean(right))


def test_packing_changes_no_update(policy, text, tmp_path):
    found = [one_update(policy, text, tmp_path, length=length)[2:] for length in (13, 48)]
    (rows, params, metrics), (packed, others, its) = found
    assert (rows, packed) == (3, 1)
    assert float(its["loss"]) == pytest.approx(float(metrics["loss"]), abs=1e-5)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_quality_by_hand():
    solutions = [
        stage.Labelled({"domain": d}, ("",) * n, hard, hard)
        for d, n, hard in (("x", 2, (1.0, 0.0)), ("x", 3, (1.0, 1.0, 1.0)), ("y", 3, (1.0,)))
    ]
    chances = [[0.9, 0.3], [0.9, 0.4, float("nan")], [0.2, 0.9, 0.9]]
    found = stage.quality(solutions, chances)
    assert found["step_accuracy"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["step_accuracy/y"]["mean"] == 0.0
    # the third is labelled in part only: nobody knows its first error
    assert found["found_error"] == {"mean": 1.0, "stderr": 0.0, "n": 1}
    assert found["passed_right"] == {"mean": 0.0, "stderr": 0.0, "n": 1}
    # confidences 0.9 (right), 0.7 (right), 0.9 (right), 0.6 and 0.8 (wrong), in (0.5, 0.6], ...
    e = 1 * 0.6 + 1 * 0.3 + 1 * 0.8 + 2 * 0.1
    assert found["calibration_error"] == pytest.approx(e / 5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "x"}, "example 'x' lacks steps or step_labels"),
        ({"steps": ["a"]}, "example 'x' lacks steps or step_labels"),
        ({"steps": ["a"], "step_labels": [1, 0]}, r"'x': step_labels=\[1, 0\] of 1 steps"),
        ({"steps": ["a"], "step_labels": [2]}, r"'x': step_labels=\[2\] of 1 steps"),
        ({"steps": ["a"], "step_labels": []}, "none of the solutions has a labelled step"),
    ],
)
def test_labels_that_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        data = source(tmp_path, [{"id": "x", "prompt": "p", **row}])
        stage.read_labelled(settings(), {}, data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"outputs": 1}}, r"head\.outputs=1: a process reward model has 2"),
        ({"labels": "both"}, "labels='both'.*expected one of hard, soft"),
        ({"aggregate": "mean"}, "aggregate='mean': expected .* one of product, min, last"),
        ({"microbatches": 2}, "microbatches=2 does not divide batch_size=3"),
    ],
)
def test_settings_that_can_not_be(changes, message):
    with pytest.raises(ValueError, match=message):
        stage.check(settings(**changes))


def test_what_does_not_fit_is_counted(text, tmp_path):
    long = {"id": "d", "prompt": "1 " * 40, "steps": ["1"], "step_labels": [1.0]}
    config = settings()
    solutions, _ = stage.read_labelled(config, {}, source(tmp_path, [*ROWS, long]))
    rows, counts = stage.pack_rows(config, solutions, text)
    assert counts == {"dropped_long": 1, "dropped_step_ends": 0}
    assert (rows.mask > 0).sum() == 4


@pytest.mark.parametrize(("how", "expected"), [("product", 0.125), ("min", 0.25), ("last", 0.5)])
def test_aggregates(how, expected):
    assert process_reward.aggregate([1.0, 0.25, 0.5], how) == expected
    assert np.isnan(process_reward.aggregate([], how))
    with pytest.raises(ValueError, match="aggregate='mean': expected one of product"):
        process_reward.aggregate([1.0], "mean")


def test_a_killed_stage_goes_on_to_the_same_model(policy, text, tmp_path, run_stage, monkeypatch):
    save_policy(tmp_path / "sft", policy.model, policy.params)
    inputs = {"policy": Artifact("sft", "sft", "0" * 64, tmp_path / "sft")}
    data = source(tmp_path, ROWS)
    given = {
        "data": data, "heldout": data, "separators": (".",), "length": 24, "batch_size": 2,
        "steps": 4, "lr": 1e-2, "save_every": 0, "aggregate": "min",
    }  # fmt: skip
    whole = run_stage("process_reward", given, inputs, "whole")
    asked = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked))
        with pytest.raises(interrupt.Interrupted):
            run_stage("process_reward", given, inputs, "killed")
    killed = run_stage("process_reward", given, inputs, "killed")
    loaded = [process_reward.load(each, policy.mesh) for each in (whole, killed)]
    assert tree.digest(loaded[0].params) == tree.digest(loaded[1].params)
    assert loaded[0]._replace(params=None, model=None) == process_reward.ProcessModel(
        None,
        None,
        24,
        (".",),
        "min",  # pyright: ignore[reportArgumentType]
    )
    assert whole.metrics == killed.metrics
    assert set(whole.metrics) >= {"step_accuracy", "step_accuracy/sums", "first_error_f1"}
    with pytest.raises(ValueError, match="holds a policy: expected a process_reward"):
        process_reward.load(inputs["policy"], policy.mesh)

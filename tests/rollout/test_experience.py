"""From a rollout to minibatches, by hand: scores, rewards, advantages, what is left out."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from posttrain_jax.api import Batch, Rollout
from posttrain_jax.mesh import shard_rows
from posttrain_jax.rewards import make_terms
from posttrain_jax.rollout import engine, experience

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def rollout():
    """Two prompts of two samples; prompts of one token, completions of 3, 1, 2 and 3 tokens."""
    mask = np.array([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], bool)
    ints = np.arange(16, dtype=np.int32).reshape(4, 4)
    logp = np.where(mask, -1.0 - ints, 0).astype(np.float32)
    return Rollout(ints, ints, ints, mask, logp, 2 * logp, np.array([True, True, True, False]))


SCORED = experience.Scored(
    # accuracy, format, preference; the preference term speaks of the second prompt only
    np.array([[1, 0.5, 9], [0, 0.5, 9], [1, 1, 0.25], [1, 0, 0.75]], np.float32),
    np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool),
    np.array([True, True, True, True]),
)
WEIGHTS = np.array([1.0, 0.5, 2.0], np.float32)


def assemble(rollout, scored=SCORED, **changes):
    settings = {"group_size": 2, "truncated": False, "mask_truncated": False, "options": ()}
    return experience.assemble(rollout, scored, WEIGHTS, **{**settings, **changes})


def test_rewards_become_advantages(rollout):
    batch, metrics = assemble(rollout)
    # rewards 1.25, 0.25 | 1 + 0.5 + 0.5 = 2, 1 + 0 + 1.5 = 2.5
    expected = np.repeat([[1.0], [-1.0], [-1.0], [1.0]], 4, axis=1)
    np.testing.assert_allclose(batch.advantage_BT, expected, atol=1e-5)
    np.testing.assert_array_equal(batch.weight_BT, rollout.completion_mask_BT)
    np.testing.assert_array_equal(batch.behaviour_logp_BT, rollout.behaviour_logp_BT)
    numbers = jax.device_get(metrics)
    np.testing.assert_allclose(numbers.pop("terms_W"), [3 / 4, 1 / 2, 1 / 2])
    assert numbers == pytest.approx({
        "reward": (1.25 + 0.25 + 2 + 2.5) / 4, "length": 9 / 4, "tokens": 9, "truncated": 1 / 4,
        "masked": 0, "all_equal_groups": 0,
    })  # fmt: skip


def test_options_reach_the_advantage(rollout):
    batch, _ = assemble(rollout, options=(("divide_by_std", False),))
    np.testing.assert_allclose(batch.advantage_BT[:, 0], [0.5, -0.5, -0.25, 0.25], atol=1e-6)


def test_truncated_sampling_compares_under_the_untempered_model(rollout):
    batch, _ = assemble(rollout, truncated=True)
    np.testing.assert_array_equal(batch.behaviour_logp_BT, rollout.model_logp_BT)


def test_rows_that_are_left_out(rollout):
    """A failed verifier and an unfinished sample: no weight, no advantage, counted."""
    failed = SCORED._replace(valid_B=np.array([True, False, True, True]))
    batch, metrics = assemble(rollout, failed, mask_truncated=True)
    assert np.asarray(batch.weight_BT).sum(axis=1).tolist() == [3, 0, 2, 0]
    assert not np.asarray(batch.advantage_BT).any()  # one valid row a group
    assert float(metrics["masked"]) == 0.5
    # the verifier's mean leaves out the sample it failed on, not the unfinished one
    np.testing.assert_allclose(metrics["terms_W"], [1.0, 0.5, 0.5])
    assert float(metrics["all_equal_groups"]) == 1.0


def test_a_term_that_is_off_has_no_mean(rollout):
    off = SCORED._replace(applies_BW=SCORED.applies_BW & np.array([True, True, False]))
    _, metrics = assemble(rollout, off)
    numbers = jax.device_get(metrics)
    assert np.isnan(numbers["terms_W"]).tolist() == [False, False, True]
    assert float(numbers["reward"]) == pytest.approx((1.25 + 0.25 + 1.5 + 1) / 4)


def test_a_minibatch_has_the_rows_and_the_weights_of_its_own(rollout):
    batch, _ = assemble(rollout)
    part = experience.take(batch, np.array([3, 1]), "seq_mean_token_mean", 1, None)
    np.testing.assert_array_equal(part.tokens_BT, rollout.tokens_BT[[3, 1]])
    np.testing.assert_allclose(part.advantage_BT[:, 0], [1, -1], atol=1e-5)
    np.testing.assert_allclose(part.weight_BT, [[0, 1 / 6, 1 / 6, 1 / 6], [0, 1 / 2, 0, 0]])
    constant = experience.take(batch, np.array([0, 2]), "constant", 2, 8.0)
    np.testing.assert_allclose(np.asarray(constant.weight_BT).sum(axis=1), [3 / 16, 2 / 16])


TERMS = make_terms({
    "b": {"verifier": "format"}, "a": {"reward_model": "one"},
    "c": {"reward_model": "two", "transform": "none", "start_step": 5},
}).terms  # fmt: skip


@pytest.fixture
def scored_stub(monkeypatch, small):
    """`score` of two texts a prompt, with stubs for the verifier and both reward models."""
    scores = {"one": [0.0, math.log(3), 0.0, 0.0], "two": [1.0, 2.0, 3.0, 4.0]}
    monkeypatch.setattr(engine, "responses", lambda *_: list("wxyz"))
    monkeypatch.setattr(
        experience.reward_models, "score_local", lambda name, *_: np.float32(scores[name])
    )
    seen = []

    def submit(texts, examples):
        seen.append((texts, [e["id"] for e in examples]))
        table = np.array([[0.0], [1.0], [0.5], [0.0]], np.float32)
        verdicts = SimpleNamespace(rewards_BW=table, mask_B=np.array([True, True, False, True]))
        return SimpleNamespace(result=lambda: verdicts)

    pool = SimpleNamespace(names=("b",), submit=submit)
    judges = experience.Judges(TERMS, pool, {"one": "one", "two": "two"})
    examples = [{"id": 1, "prompt": "p1"}, {"id": 2, "prompt": "p2"}]
    nothing = np.zeros((2, 1), np.int32)
    prompts = engine.Prompts(examples, nothing, nothing, 0)

    def call(step, rollout):
        placed = shard_rows(small.mesh, rollout)
        text = SimpleNamespace(tokenizer=None)
        return experience.score(judges, placed, prompts, 2, step, text, small.mesh)

    return call, seen


def test_scores_of_verifiers_and_reward_models_side_by_side(rollout, scored_stub):
    call, seen = scored_stub
    texts, scored = call(4, rollout)
    assert seen == [(list("wxyz"), [1, 1, 2, 2])]
    assert texts.responses == list("wxyz")
    assert [e["id"] for e in texts.examples] == [1, 1, 2, 2]
    expected = [[0, 0.5, 1], [1, 0.75, 2], [0.5, 0.5, 3], [0, 0.5, 4]]  # sigmoid(log 3) = 3/4
    np.testing.assert_allclose(scored.rewards_BW, expected, atol=1e-6)
    assert np.asarray(scored.applies_BW).tolist() == [[True, True, False]] * 4
    assert np.asarray(call(5, rollout)[1].applies_BW).all()
    assert scored.valid_B.tolist() == [True, True, False, True]


def test_samples_for_the_report(small, rollout, scored_stub):
    texts, scored = scored_stub[0](0, rollout)
    rows = experience.shown(texts, scored, TERMS, shard_rows(small.mesh, rollout), 2)
    assert [(r["prompt"], r["response"], r["example_id"]) for r in rows] == [
        ("p1", "w", 1), ("p2", "y", 2)
    ]  # fmt: skip
    assert rows[1]["rewards"] == {"b": 0.5, "a": 0.5}
    assert [r["reward"] for r in rows] == [0.5, 1.0]
    assert rows[0]["finished"] is True


def test_every_row_is_in_one_minibatch():
    parts = experience.shuffled(32, 4, seed=1, step=8)
    assert sorted(parts.reshape(-1).tolist()) == list(range(32))
    assert parts.shape == (4, 8)
    np.testing.assert_array_equal(parts, experience.shuffled(32, 4, seed=1, step=8))
    assert not np.array_equal(parts, experience.shuffled(32, 4, seed=1, step=12))


def test_batches_are_named_tuples_of_arrays_only(rollout):
    """`take` maps over a batch: None for a missing reference must pass through."""
    batch, _ = assemble(rollout)
    assert isinstance(batch, Batch) and batch.reference_logp_BT is None
    assert experience.take(batch, np.array([0]), "seq_sum", 1, None).reference_logp_BT is None

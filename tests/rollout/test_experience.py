"""From a rollout to minibatches, by hand: scores, rewards, advantages, what is left out."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from posttrain_jax.api import Batch, Rollout, Teacher, Verdict
from posttrain_jax.mesh import shard_rows
from posttrain_jax.rewards import make_terms
from posttrain_jax.rollout import experience, scoring
from posttrain_jax.verifiers.judging.judge import Judge


@pytest.fixture
def rollout():
    """Two prompts of two samples; prompts of one token, completions of 3, 1, 2 and 3 tokens."""
    mask = np.array([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], bool)
    ints = np.arange(16, dtype=np.int32).reshape(4, 4)
    logp = np.where(mask, -1.0 - ints, 0).astype(np.float32)
    return Rollout(ints, ints, ints, mask, logp, 2 * logp, np.array([True, True, True, False]))


SCORED = scoring.Scored(
    # accuracy, format, preference; the preference term speaks of the second prompt only
    np.array([[1, 0.5, 9], [0, 0.5, 9], [1, 1, 0.25], [1, 0, 0.75]], np.float32),
    np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool),
    np.array([True, True, True, True]),
)
MIX = experience.Mix(np.array([1.0, 0.5, 2.0], np.float32), np.zeros(3, np.float32))


def assemble(
    rollout, scored=SCORED, mix=MIX, truncated=False, greedy_P=None, annotate=None, **credit
):
    """The batch with advantages, and metrics."""
    credit = experience.Credit(**{"group_size": 2, **credit})
    batch = experience.to_batch(rollout, scored, truncated=truncated, credit=credit)
    batch = batch._replace(**(annotate or {}))
    return experience.assemble(batch, rollout, scored, mix, greedy_P, credit=credit)


def test_rewards_become_advantages(rollout):
    batch, metrics = assemble(rollout)
    # rewards 1.25, 0.25 | 1 + 0.5 + 0.5 = 2, 1 + 0 + 1.5 = 2.5
    expected = np.array([[1.0], [-1.0], [-1.0], [1.0]]) * rollout.completion_mask_BT
    np.testing.assert_allclose(batch.advantage_BT, expected, atol=1e-5)
    np.testing.assert_array_equal(batch.weight_BT, rollout.completion_mask_BT)
    np.testing.assert_array_equal(batch.behaviour_logp_BT, rollout.behaviour_logp_BT)
    numbers = jax.device_get(metrics)
    np.testing.assert_allclose(numbers.pop("terms_W"), [3 / 4, 1 / 2, 1 / 2])
    assert numbers == pytest.approx({
        "reward": (1.25 + 0.25 + 2 + 2.5) / 4, "length": 9 / 4, "tokens": 9, "truncated": 1 / 4,
        "masked": 0, "all_equal_groups": 0, "groups_of_one": 0,
    })  # fmt: skip


def test_options_reach_the_advantage(rollout):
    batch, _ = assemble(rollout, options=(("divide_by_std", False),))
    np.testing.assert_allclose(batch.advantage_BT[:, 1], [0.5, -0.5, -0.25, 0.25], atol=1e-6)


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
    np.testing.assert_allclose(part.advantage_BT[:, 1], [1, -1], atol=1e-5)
    np.testing.assert_allclose(part.weight_BT, [[0, 1 / 6, 1 / 6, 1 / 6], [0, 1 / 2, 0, 0]])
    constant = experience.take(batch, np.array([0, 2]), "constant", 2, 8.0)
    np.testing.assert_allclose(np.asarray(constant.weight_BT).sum(axis=1), [3 / 16, 2 / 16])


def test_shaping_of_a_score_and_a_verdict(rollout):
    """Qwen2.5-Math, eq. 3: sigmoid(0.5 r_m) + (r_v - 1); metrics keep the verdict as it is."""
    terms = make_terms({
        "right": {"verifier": "math_answer", "offset": -1.0},
        "model": {"reward_model": "rm", "scale": 0.5},
    }).terms  # fmt: skip
    assert [(t.name, t.scale, t.offset) for t in terms] == [("right", 1, -1), ("model", 0.5, 0)]
    chances = 1 / (1 + np.exp(-0.5 * np.array([2.0, -1.0, 0.0, 3.0])))  # the judge's, of r_m
    scores = np.stack([[1, 0, 0, 1], chances], axis=1).astype(np.float32)
    scored = scoring.Scored(scores, np.ones((4, 2), bool), np.ones(4, bool))
    batch, metrics = assemble(
        rollout, scored, experience.make_mix(terms), estimator="none", group_size=1
    )
    expected = chances + np.array([0, -1, -1, 0])
    assert (expected > 0).tolist() == [True, False, False, True] and (abs(expected) < 1).all()
    np.testing.assert_allclose(batch.advantage_BT[:, 1], expected, atol=1e-6)
    np.testing.assert_allclose(metrics["terms_W"], [0.5, chances.mean()], atol=1e-6)


def test_an_unfinished_response_has_the_reward_of_no_end(rollout):
    """In place of what it scored; the last row met the limit."""
    batch, metrics = assemble(rollout, no_eos=-10.0, estimator="none", group_size=1)
    np.testing.assert_allclose(batch.advantage_BT[:, 1], [1.25, 0.25, 2.0, -10.0])
    assert float(metrics["reward"]) == pytest.approx((1.25 + 0.25 + 2 - 10) / 4)
    by_term, _ = assemble(rollout, no_eos=-10.0, estimator="gdpo")
    assert by_term.advantage_BT[2, 1] > 0 > by_term.advantage_BT[3, 1]
    equal = experience.equal_rewards(
        SCORED._replace(rewards_BW=np.ones((4, 3), np.float32)), rollout.finished_B, MIX,
        experience.Credit(group_size=2, no_eos=-10.0),
    )  # fmt: skip
    assert np.asarray(equal).tolist() == [True, True, False, False]


def test_a_divergence_in_the_reward_is_what_each_token_costs(rollout):
    """k1 under the proximal policy where there is one: beta (log pi - log reference)."""
    kl = (("coef", 0.5), ("estimator", "k1"))
    reference = rollout.behaviour_logp_BT - 0.25
    annotate = {"reference_logp_BT": reference}
    batch, metrics = assemble(rollout, estimator="none", group_size=1, kl=kl, annotate=annotate)
    # to go from the first token: the reward less 0.5 * 0.25 a token
    expected = np.array([1.25, 0.25, 2, 2.5]) - 0.125 * np.array([3, 1, 2, 3])
    np.testing.assert_allclose(batch.advantage_BT[:, 1], expected, atol=1e-5)
    assert float(metrics["kl_in_reward"]) == pytest.approx(0.125 * 9 / 4)
    annotate["proximal_logp_BT"] = reference
    _, metrics = assemble(rollout, estimator="none", group_size=1, kl=kl, annotate=annotate)
    assert float(metrics["kl_in_reward"]) == 0


def test_a_greedy_reward_is_the_baseline_of_its_prompt(rollout):
    batch, metrics = assemble(rollout, estimator="remax", greedy_P=np.float32([1.0, 2.25]))
    np.testing.assert_allclose(batch.advantage_BT[:, 1], [0.25, -0.75, -0.25, 0.25], atol=1e-6)
    assert float(metrics["greedy_reward"]) == pytest.approx(1.625)


def test_a_teacher_is_weighed_as_the_tokens_are(rollout):
    batch, _ = assemble(rollout)
    tokens = np.zeros((4, 4, 2), np.int32)
    batch = batch._replace(teacher=Teacher(tokens, tokens * 1.0, batch.weight_BT))
    part = experience.take(batch, np.array([3, 1]), "seq_mean_token_mean", 1, None)
    np.testing.assert_allclose(part.teacher.weight_BT, part.weight_BT)
    silent = batch._replace(teacher=batch.teacher._replace(weight_BT=batch.weight_BT * 0))
    part = experience.take(silent, np.array([3, 1]), "seq_mean_token_mean", 1, None)
    assert not np.any(part.teacher.weight_BT)


TERMS = make_terms({
    "b": {"verifier": "format"}, "a": {"reward_model": "one"},
    "c": {"judge": {"form": "p_yes", "mesh": {}}, "start_step": 5, "kinds": ["helpful"]},
}).terms  # fmt: skip


class Opinions:
    """The scores of a table as a judge, None where it fails; keeps what it was asked."""

    def __init__(self, scores):
        self.scores, self.seen = scores, []

    def __call__(self, examples, responses):
        self.seen.append([(e["id"], r) for e, r in zip(examples, responses, strict=True)])
        found = [self.scores[r] for r in responses]
        return [Verdict(0.0, "infra_error", "down") if s is None else Verdict(s) for s in found]


@pytest.fixture
def scored_stub(small):
    """`step -> (what is judged, its scores)` of two texts a prompt; a verifier and two judges."""
    table = np.array([[0.0], [1.0], [0.5], [0.0]], np.float32)
    mask = np.array([True, True, False, True])
    examples = [{"id": i, "prompt": f"p{i}", "kind": k} for i, k in ((1, "helpful"), (2, "safety"))]
    judging = SimpleNamespace(
        responses=list("wxyz"), examples=[e for e in examples for _ in range(2)],
        verdicts=lambda: SimpleNamespace(rewards_BW=table, mask_B=mask),
        sound_B=np.ones(4, bool),
    )  # fmt: skip
    opinions = {
        "a": Opinions({"w": 0.5, "x": 0.75, "y": 0.5, "z": 0.5}),
        "c": Opinions({"w": 1.0, "x": None}),
    }  # fmt: skip
    models = {name: Judge(opinion) for name, opinion in opinions.items()}
    judges = scoring.Judges(TERMS, None, models)

    def call(step):
        return judging, scoring.score(judges, judging, step, small.mesh)

    return call, opinions


def test_scores_of_verifiers_and_judges_side_by_side(scored_stub):
    call, opinions = scored_stub
    _, scored = call(4)
    # the second judge is off before update 5, and then speaks of helpful examples only
    expected = [[0, 0.5, 0], [1, 0.75, 0], [0.5, 0.5, 0], [0, 0.5, 0]]
    np.testing.assert_allclose(scored.rewards_BW, expected, atol=1e-6)
    assert np.asarray(scored.applies_BW).tolist() == [[True, True, False]] * 4
    assert scored.valid_B.tolist() == [True, True, False, True]
    assert opinions["a"].seen == [[(1, "w"), (1, "x"), (2, "y"), (2, "z")]]
    assert opinions["c"].seen == [[]]


def test_a_judge_that_fails_masks_the_sample(scored_stub):
    call, opinions = scored_stub
    _, scored = call(5)
    expected = [[0, 0.5, 1], [1, 0.75, 0], [0.5, 0.5, 0], [0, 0.5, 0]]
    np.testing.assert_allclose(scored.rewards_BW, expected, atol=1e-6)
    assert np.asarray(scored.applies_BW)[:, 2].tolist() == [True, True, False, False]
    assert scored.valid_B.tolist() == [True, False, False, True]
    assert opinions["c"].seen == [[(1, "w"), (1, "x")]]


def test_samples_for_the_report(small, rollout, scored_stub):
    judging, scored = scored_stub[0](0)
    rows = scoring.shown(judging, scored, TERMS, shard_rows(small.mesh, rollout), 2)
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

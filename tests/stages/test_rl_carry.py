"""RL whose rollouts leave sequences unfinished: who is judged and learnt from; a resumed run."""

import jax
import numpy as np
import pytest

from posttrain_jax import interrupt, tree
from posttrain_jax.stages import rl

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")
SETTINGS = {
    "carry_over": 2, "max_off_policy_steps": 1, "slots": 6, "max_new": 14, "looks": 4, "lr": 0.05,
    "loss_options": {"off_policy_weight": "token", "off_policy_cap": 2.0, "kl_coef": 0.01},
    "steps": 8,
}  # fmt: skip


def test_what_is_learnt_from_is_what_was_judged(train_rl, rl_setting, tmp_path, monkeypatch):
    """Responses, scores and prompts of every row, those that went on from a rollout before too."""
    rollouts, prepare = [], rl.prepare

    def noting(setting, carried, sampled, scored, greedy_P):
        rollouts.append((jax.device_get(sampled.rollout), sampled.judging, np.asarray(scored[0])))
        return prepare(setting, carried, sampled, scored, greedy_P)

    monkeypatch.setattr(rl, "prepare", noting)
    scored = lambda response, example: float(len(response) % 7)  # noqa: E731
    found = train_rl(tmp_path, score=scored, **SETTINGS)
    _, stream = rl_setting(**SETTINGS)
    learnt, older = [], 0
    for rollout, judging, rewards_BW in rollouts:
        for row, example in enumerate(judging.examples):
            said = rollout.tokens_BT[row, 5:][rollout.completion_mask_BT[row, 5:]].tolist()
            response = str([t for t in said if t != 1])
            assert judging.responses[row] == response
            assert rewards_BW[row, 0] == scored(response, example)
            source = int(example["id"])
            np.testing.assert_array_equal(
                rollout.tokens_BT[row, :5], stream.take([source]).tokens[0]
            )
            learnt.append(source)
        older += np.sum(judging.sound_B)
    assert older == len(learnt) == 4 * 16
    assert sorted(learnt) == sorted(s for s in set(learnt) for _ in range(4))  # whole groups, once
    shares = [row["carried_tokens"] for row in found.rows]
    assert shares[0] == 0 and all(0 < share < 0.5 for share in shares[1:])
    assert any(row["left_unfinished"] for row in found.rows)
    weights = [row["off_policy_weight"] for row in found.rows]
    assert weights[0] == pytest.approx(1.0, abs=1e-4) and "logprob_gap" not in found.rows[0]


def test_a_resumed_run_is_the_same_bit_for_bit(train_rl, tmp_path, monkeypatch):
    """What goes on is part of the checkpoint."""
    whole = train_rl(tmp_path / "whole", **SETTINGS)
    stops = iter([False, True])
    monkeypatch.setattr(interrupt, "requested", lambda: next(stops, False))
    with pytest.raises(interrupt.Interrupted):
        train_rl(tmp_path / "cut", **SETTINGS)
    found = train_rl(tmp_path / "cut", **SETTINGS)
    assert found.rows == whole.rows and len(found.rows) == 4
    assert tree.digest(found.params) == tree.digest(whole.params)

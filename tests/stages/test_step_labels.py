"""Labels of steps: what is completed, the labels by hand, consensus, and a resumed run."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax import interrupt
from posttrain_jax.api import Artifact, Verdict
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.steps import Steps
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.policy import Text, save_policy
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.stages import step_labels as stage
from posttrain_jax.verifiers.judging.judge import Judge

NAN = float("nan")
NOTHING = Steps(np.zeros(0, np.int32), 0, ())


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer("tiny")
    return Text(tokenizer, load_template("tiny", tokenizer))


def solution(name, *steps):
    return stage.Solution({"id": name}, list(steps), NOTHING)


def test_labels_by_hand():
    """Any of n right is right; steps behind the first wrong one, or one not known, go."""
    rows, counts = stage.label(
        [solution(n, "a", "b", "c") for n in "wxyz"],
        [[0.125, 0.0, 0.5], [1.0, 0.5, 1.0], [0.5, NAN, 0.0], [NAN, 1.0, 1.0]],
    )
    assert [(r["id"], r["step_labels"], r["step_shares"]) for r in rows] == [
        ("w", [1.0, 0.0], [0.125, 0.0]), ("x", [1.0, 1.0, 1.0], [1.0, 0.5, 1.0]),
        ("y", [1.0], [0.5]),
    ]  # fmt: skip
    assert all(r["steps"] == ["a", "b", "c"] for r in rows)
    assert counts == {
        "steps": 6, "dropped_after_error": 1, "dropped_unknown": 2 + 3, "dropped_unlabelled": 1
    }  # fmt: skip


def test_shares_of_completions():
    solutions = [solution("x", "a", "b"), solution("y", "a", "b")]
    prefixes = [stage.Prefix(0, 0), stage.Prefix(1, 0)]
    rows = [{"index": 1, "right": 1, "asked": 4}, {"index": 0, "right": 0, "asked": 0}]
    shares = stage.tally(solutions, prefixes, rows, [True, False], [True, True])
    np.testing.assert_equal(shares, [[NAN, 1.0], [0.25, 0.0]])
    shares = stage.tally(solutions, prefixes, rows, [True, False], [True, False])
    np.testing.assert_equal(shares[1], [0.25, NAN])


def test_consensus_keeps_what_both_find():
    """The judge's chances by the text of the prefix; below a half is wrong."""
    said = {"a": 0.9, "ab": 0.2, "abc": 0.9, "d": 0.9, "de": 0.9, "f": 0.1, "g": 0.9}
    asked = []

    def score(examples, responses):
        asked.extend(e["step"] for e in examples)
        return [
            Verdict(0.0, "infra_error") if r == "g" else Verdict(said[r]) for r in responses
        ]  # fmt: skip

    rows = [
        {"id": "agree", "steps": ["a", "b", "c"], "step_labels": [1.0, 0.0]},
        {"id": "later", "steps": ["d", "e"], "step_labels": [1.0, 0.0]},
        {"id": "early", "steps": ["f"], "step_labels": [1.0]},
        {"id": "broken", "steps": ["g"], "step_labels": [1.0]},
    ]
    kept, counts = stage.consensus(Judge(score), rows)
    assert [row["id"] for row in kept] == ["agree"]
    assert counts == {"dropped_judge_disagrees": 2, "dropped_judge_failed": 1}
    assert asked == ["a", "b", "d", "e", "f", "g"]


ROWS = [
    {"id": "a", "prompt": "3 #1+5", "response": " 3 #1 +5 gives 8. 8"},
    {"id": "b", "prompt": "9 #1-5 #2+1", "response": " 9 gives 4. 4 gives 5. 5"},
    {"id": "c", "prompt": "1 #1+1", "response": " 2"},
    {"id": "d", "prompt": "1", "response": "x. y", "finished": False},
    {"id": "e", "prompt": "1", "response": "x.<|end|> y"},
    {"id": "f", "prompt": "1", "response": "x. y", "masked": True},
    {"id": "g", "prompt": "1", "response": " "},
]


def source(tmp_path, rows=ROWS):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"file": {"path": str(path)}}


def settings(tmp_path, **changes):
    plain = {
        "data": source(tmp_path), "seed": 0, "separators": (".",), "system": "", "prompt_length": 16
    }  # fmt: skip
    return ConfigDict(plain | changes)


def test_what_is_completed_is_what_was_said(tmp_path, text):
    config = settings(tmp_path)
    solutions, counts = stage.read_solutions(config, {}, text)
    assert [s.example["id"] for s in solutions] == ["a", "b", "c"]
    assert counts == {
        "dropped_masked": 1, "dropped_forged": 1, "dropped_unfinished": 1, "dropped_empty": 1
    }  # fmt: skip
    prefixes, prompts = stage.make_prompts(config, solutions, text)
    assert prefixes == [stage.Prefix(0, 0), stage.Prefix(1, 0), stage.Prefix(1, 1)]
    for prefix, tokens, segments in zip(prefixes, prompts.tokens, prompts.segments, strict=True):
        mine = solutions[prefix.solution]
        ids = tokens[segments > 0].tolist()
        assert ids == mine.encoded.tokens[: len(ids)].tolist()
        said = text.tokenizer.decode(ids[mine.encoded.prompt :])
        assert said.strip() == "".join(mine.steps[: prefix.step + 1]).strip()
        assert not segments[: 16 - len(ids)].any()
    short = settings(tmp_path, prompt_length=11)
    prefixes, prompts = stage.make_prompts(short, solutions, text)
    assert len(prefixes) + prompts.skipped == 3 and prompts.skipped > 0
    with pytest.raises(ValueError, match="example 'x' has no response to label"):
        bad = settings(tmp_path)
        source(tmp_path, [{"id": "x", "prompt": "p"}])
        stage.read_solutions(bad, {}, text)


VERIFIER = """
from posttrain_jax.api import Verdict

def score(response, example):
    return Verdict(float(len(response) % 3 == 0))
"""


def test_a_killed_stage_goes_on_to_the_same_labels(
    make_small, text, tmp_path, run_stage, monkeypatch
):
    policy = make_small(
        vocab_size=text.tokenizer.vocab_size, pad_id=text.tokenizer.pad_id, tied=False
    )
    save_policy(tmp_path / "sft", policy.model, policy.params)
    inputs = {"policy": Artifact("sft", "sft", "0" * 64, tmp_path / "sft")}
    (tmp_path / "thirds.py").write_text(VERIFIER)
    given = {
        "data": source(tmp_path), "separators": (".",), "prompt_length": 16, "max_new": 5,
        "samples": 3, "verifier": str(tmp_path / "thirds.py"), "workers": 1,
    }  # fmt: skip
    whole = run_stage("step_labels", {**given, "batch_size": 2}, inputs, "whole")
    other = run_stage("step_labels", {**given, "batch_size": 3}, inputs, "other")
    asked = iter([True])
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked))
        with pytest.raises(interrupt.Interrupted):
            run_stage("step_labels", {**given, "batch_size": 2}, inputs, "killed")
    killed = run_stage("step_labels", {**given, "batch_size": 2}, inputs, "killed")
    data = [(a.path / "data.jsonl").read_text() for a in (whole, other, killed)]
    assert data[0] == data[1] == data[2]
    # The shares, from completions sampled and verified by hand.
    config = settings(tmp_path)
    solutions, _ = stage.read_solutions(config, {}, text)
    prefixes, prompts = stage.make_prompts(config, solutions, text)
    job = engine.job(
        prompts, policy.mesh, text.tokenizer, sampling=Sampling(), seed=0, first_uid=0,
        group_size=3, max_new=5,
    )  # fmt: skip
    rollout = engine.roll_out(policy.model, policy.params, job)
    expected = {s.example["id"]: [NAN] * len(s.steps) for s in solutions}
    for s in solutions:
        expected[s.example["id"]][-1] = float(len(s.example["response"]) % 3 == 0)
    for number, prefix in enumerate(prefixes):
        right = []
        for row in range(3 * number, 3 * number + 3):
            mask = np.asarray(rollout.completion_mask_BT)[row] | (
                np.asarray(rollout.segments_BT)[row] > 0
            )
            ids = np.asarray(rollout.tokens_BT)[row][mask].tolist()
            said = ids[solutions[prefix.solution].encoded.prompt :]
            said = text.tokenizer.decode([t for t in said if t != text.tokenizer.eos_id])
            right.append(len(said) % 3 == 0)
        expected[solutions[prefix.solution].example["id"]][prefix.step] = np.mean(right)
    for row in map(json.loads, data[0].splitlines()):
        shares = expected[row["id"]]
        assert row["step_shares"] == pytest.approx(shares[: len(row["step_shares"])])
        assert row["step_labels"] == [float(share > 0) for share in row["step_shares"]]
    assert whole.metrics["completions"]["mean"] == 9

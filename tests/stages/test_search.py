"""The search stage: its rows and figures, a resumed run, and what it refuses."""

import json
from types import SimpleNamespace

import pytest

from posttrain_jax import interrupt, process_reward, reward_model
from posttrain_jax.api import Artifact
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import heads
from posttrain_jax.policy import Text, save_policy
from posttrain_jax.stages import search as stage

pytestmark = pytest.mark.usefixtures("quick_compile")
SETTINGS = {
    "data": {"sums": {"tasks": {"arithmetic": 1.0}, "count": 6}}, "beams": 4, "width": 2,
    "rounds": 3, "batch_size": 4, "prompt_length": 16, "max_step": 4, "max_new": 12, "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(make_small, tmp_path_factory):
    tokenizer = load_tokenizer("tiny")
    text = Text(tokenizer, load_template("tiny", tokenizer))
    policy = make_small(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, tied=False)
    folder = tmp_path_factory.mktemp("search")
    save_policy(folder / "sft", policy.model, policy.params)
    found = {"policy": Artifact("sft", "sft", "0" * 64, folder / "sft")}
    params = reward_model.add_head(policy.model, policy.params, policy.mesh, 1, heads.PROCESS)
    for name, length, marker in (("whole", 32, ""), ("short", 20, ""), ("marked", 32, "<think>")):
        made = process_reward.ProcessModel(
            policy.model, params, length, (".", "。"), "min", marker
        )  # fmt: skip
        process_reward.save(folder / name, made)
        found[name] = Artifact(name, "process_reward", "1" * 64, folder / name)
    return found, text, policy.mesh


def test_a_killed_search_goes_on_to_the_same_beams(inputs, run_stage, monkeypatch):
    found, _, _ = inputs
    roles = {"policy": found["policy"], "process_reward": found["whole"]}
    whole = run_stage("search", SETTINGS, roles, "whole")
    asked = iter([True])
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked))
        with pytest.raises(interrupt.Interrupted):
            run_stage("search", SETTINGS, roles, "killed")
    killed = run_stage("search", SETTINGS, roles, "killed")
    rows = [(a.path / "data.jsonl").read_text() for a in (whole, killed)]
    assert rows[0] == rows[1]
    rows = [json.loads(line) for line in rows[0].splitlines()]
    assert [(r["index"], r["sample"]) for r in rows] == [(i, n) for i in range(6) for n in range(4)]
    for row in rows:
        assert row["scores"]["process"] == (row["chances"][-1] if row["chances"] else 0.0)
        assert "".join(row["steps"]) == row["response"] or not row["response"].strip()
    assert whole.metrics["problems"]["mean"] == 6
    assert set(whole.metrics) >= {"beam_best", "beam_weighted", "beam_majority", "tokens_sampled"}


def row(index, answer, right, score, finished=True, masked=False):
    return {
        "index": index, "response": f"<answer>{answer}</answer>", "finished": finished,
        "masked": masked, "tokens_sampled": 30,
        "scores": {"correct": float(right), "process": score},
    }  # fmt: skip


def test_figures_by_hand():
    found = stage.summarise([
        row(0, 7, True, 0.9), row(0, 8, False, 0.8), row(0, 8, False, 0.3),
        row(0, 7, True, 1, False), row(1, 5, True, 0.9, False), row(1, 5, True, 0.9, False),
    ])  # fmt: skip
    means = {name: value["mean"] for name, value in found.items()}
    assert means == {
        "beam_best": 0.5, "beam_weighted": 0.0, "beam_majority": 0.0, "beam_any": 0.5,
        "finished": pytest.approx((0.75 + 0) / 2), "tokens_sampled": 30.0,
    }  # fmt: skip
    assert stage.summarise([row(0, 7, True, 0.9, masked=True)])["beam_best"]["mean"] == 0.0


@pytest.mark.parametrize(
    ("changes", "judge", "message"),
    [
        ({"width": 3}, "whole", "width=3 does not divide beams=4"),
        ({"aggregate": "mean"}, "whole", "aggregate='mean': expected one of product, min, last"),
        ({}, "marked", "reads a marker, '<think>'; search needs none"),
        ({}, "short", r"prompt_length \+ max_new = 28, over the process model's length=20"),
    ],
)
def test_what_can_not_be_searched(inputs, run_stage, changes, judge, message):
    found, _, _ = inputs
    roles = {"policy": found["policy"], "process_reward": found[judge]}
    with pytest.raises(ValueError, match=message):
        run_stage("search", SETTINGS | changes, roles)


def test_every_host_has_its_part(monkeypatch):
    monkeypatch.setattr(stage, "process", SimpleNamespace(count=lambda: 4, index=lambda: 2))
    assert list(stage._share(8)) == [4, 5]

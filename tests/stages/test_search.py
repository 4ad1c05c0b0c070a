"""The search stage: its rows and figures, data for training, a resumed run, what it refuses."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from posttrain_jax import interrupt, process_reward, reward_model
from posttrain_jax.api import Artifact
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import heads
from posttrain_jax.policy import Text, save_policy
from posttrain_jax.rollout import search_methods
from posttrain_jax.stages import process_reward as process_stage
from posttrain_jax.stages import reject
from posttrain_jax.stages import search as stage

SETTINGS = {
    "data": {"sums": {"tasks": {"arithmetic": 1.0}, "count": 6}}, "beams": 4, "width": 2,
    "rounds": 3, "batch_size": 4, "prompt_length": 16, "max_step": 4, "max_new": 12, "workers": 1,
}  # fmt: skip
DIGITS = tuple("0123456789")
TREE = {**stage.DEFAULTS["mcts"], "iterations": 3, "candidates": 3, "depth": 3, "traces": 4}


@pytest.fixture(scope="module")
def inputs(make_small, tmp_path_factory):
    tokenizer = load_tokenizer("tiny")
    text = Text(tokenizer, load_template("tiny", tokenizer))
    policy = make_small(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, tied=False)
    folder = tmp_path_factory.mktemp("search")
    save_policy(folder / "sft", policy.model, policy.params)
    found = {"policy": Artifact("sft", "sft", "0" * 64, folder / "sft")}
    # One that often ends: its logit of the end is four times as large.
    head = policy.params["head"]
    brief = policy.params | {"head": head.at[:, tokenizer.eos_id].multiply(4.0)}
    save_policy(folder / "brief", policy.model, brief)
    found["brief"] = Artifact("brief", "sft", "2" * 64, folder / "brief")
    params = reward_model.add_head(policy.model, policy.params, policy.mesh, 1, heads.PROCESS)
    for name, length, ends, marker in (
        ("whole", 32, (".", "。"), ""), ("short", 20, (".", "。"), ""),
        ("marked", 32, (".", "。"), "<think>"), ("digits", 32, DIGITS, ""),
    ):  # fmt: skip
        made = process_reward.ProcessModel(policy.model, params, length, ends, "min", marker)
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


def rows_of(artifact, name="data.jsonl"):
    return [json.loads(line) for line in (artifact.path / name).read_text().splitlines()]


def test_a_tree_judged_by_the_process_model(inputs, run_stage):
    """An evaluation: no labels; the same solutions for batches of another size."""
    found, _, _ = inputs
    roles = {"policy": found["brief"], "process_reward": found["digits"]}
    settings = SETTINGS | {"method": "mcts", "mcts": TREE}
    runs = [run_stage("search", settings | {"batch_size": n}, roles, str(n)) for n in (4, 3)]
    rows, other = map(rows_of, runs)
    assert [(r["index"], r["sample"]) for r in rows] == [(i, n) for i in range(6) for n in range(4)]
    for one, two in zip(rows, other, strict=True):
        assert one["scores"] == pytest.approx(two["scores"], abs=1e-5)
        assert one["chances"] == pytest.approx(two["chances"], abs=1e-5)
        plain = {"scores": 0, "chances": 0}
        assert one | plain == two | plain
        assert one["scores"]["process"] == (one["chances"][-1] if one["chances"] else 0.0)
        assert one["scores"]["posterior"] == one["scores"]["process"] * one["scores"]["prior"]
        assert one["nodes"] > 0 and 1 <= one["iterations"] <= 3
        assert one["length"] <= 12 + one["finished"]
    assert sum(r["finished"] for r in rows) > 6
    for index in range(6):
        mine = [r for r in rows if r["index"] == index]
        ranks = [(r["finished"], r["scores"]["value"] * r["scores"]["prior"]) for r in mine]
        once = [rank for rank in ranks if rank[1]]  # a tree with fewer leaves repeats them
        assert once == sorted(once, reverse=True)
    assert not (runs[0].path / "steps").exists()
    names = {"trace_best", "trace_weighted", "trace_majority", "trace_any", "nodes", "iterations"}
    assert set(runs[0].metrics) >= names | {"tokens_sampled", "finished"}


VERIFIER = """
from posttrain_jax.api import Verdict

def score(response, example):
    return Verdict(float(len(response) % 2 == 0))
"""


def test_data_of_verified_trees(inputs, run_stage, tmp_path, monkeypatch):
    """No process model: a killed run goes on to the same solutions and steps, which others read."""
    found, text, _ = inputs
    roles = {"policy": found["brief"]}
    (tmp_path / "halves.py").write_text(VERIFIER)
    settings = SETTINGS | {
        "method": "mcts", "separators": DIGITS, "verifier": str(tmp_path / "halves.py"),
        "mcts": TREE | {"ends": "verifier", "rollouts": 1, "pairs": 3},
    }  # fmt: skip
    with pytest.raises(ValueError, match="method='beam' needs an input process_reward"):
        run_stage("search", settings | {"method": "beam", "mcts": TREE}, roles, "beam")
    with pytest.raises(ValueError, match="expected texts that end a step"):
        run_stage("search", settings | {"separators": ()}, roles, "none")
    whole = run_stage("search", settings, roles, "whole")
    asked = iter([True])
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked))
        with pytest.raises(interrupt.Interrupted):
            run_stage("search", settings, roles, "killed")
    torn = tmp_path / "killed-1" / "steps" / "part-0.jsonl"
    torn.write_text(torn.read_text() + '{"index": 4, "sam')  # the power went off
    killed = run_stage("search", settings, roles, "killed")
    for name in ("data.jsonl", "steps/data.jsonl"):
        assert rows_of(whole, name) == rows_of(killed, name)
    rows, steps = rows_of(whole), rows_of(whole, "steps/data.jsonl")
    for row in rows:
        assert row["scores"]["correct"] == float(len(row["response"]) % 2 == 0)
        assert "process" not in row["scores"] and row["chances"] == []
    kept, counts = reject.select(rows, {"correct": 1.0}, 2, "value")
    assert kept and all(r["finished"] and r["scores"]["correct"] == 1 for r in kept)
    assert max(Counter(r["index"] for r in kept).values()) <= 2 and counts["unfinished"] > 0
    check_pairs(steps)
    assert whole.metrics["step_pairs"]["mean"] == len(steps) / 2
    assert "trace_any" in whole.metrics and "trace_best" not in whole.metrics
    data = ConfigDict({"steps": {"input": "search", "folder": "steps"}})
    config = ConfigDict({"labels": "soft", "seed": 0, "marker": "", "length": 64})
    read, left_out = process_stage.read_labelled(config, {"search": whole}, data)
    assert len(read) == len(steps) and not left_out["dropped_unlabelled"]
    _, left_out = process_stage.pack_rows(config, read, text)
    assert left_out["dropped_long"] == 0


def check_pairs(steps):
    """Rows two by two: the same steps but the last, whose share is larger in the first."""
    assert len(steps) > 6 and len(steps) % 2 == 0
    for better, worse in zip(steps[::2], steps[1::2], strict=True):
        assert (better["better"], worse["better"]) == (True, False)
        assert better["sample"] + 1 == worse["sample"] and better["index"] == worse["index"]
        assert better["steps"][:-1] == worse["steps"][:-1]
        assert better["step_shares"][:-1] == worse["step_shares"][:-1]
        assert better["steps"] != worse["steps"]
        assert better["step_shares"][-1] > worse["step_shares"][-1]
        for each in (better, worse):
            assert each["step_labels"] == [float(share > 0) for share in each["step_shares"]]
            assert len(each["steps"]) == len(each["step_shares"])


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


def test_solutions_of_a_tree_count_as_often_as_the_policy_says_them():
    rows = [row(0, 7, True, 0.5), row(0, 8, False, 0.9), row(0, 8, False, 0.3), row(0, 8, False, 0)]
    for each, prior in zip(rows, (0.5, 0.1, 0.3, 0.0), strict=True):
        each["scores"] |= {"prior": prior, "posterior": prior * each["scores"]["process"]}
    # best 0.25 of 7, weighted 0.25 against 0.09 + 0.09, votes 0.5 against 0.4
    means = {name: value["mean"] for name, value in stage.summarise(rows, "mcts").items()}
    assert [means[f"trace_{n}"] for n in ("best", "weighted", "majority", "any")] == [1.0] * 4
    # votes 0.5 against 0.55, weighted 0.25 against 0.09 + 0.135
    rows[2]["scores"] |= {"prior": 0.45, "posterior": 0.135}
    means = {name: value["mean"] for name, value in stage.summarise(rows, "mcts").items()}
    assert [means[f"trace_{n}"] for n in ("best", "weighted", "majority")] == [1.0, 1.0, 0.0]
    verified = stage.summarise(rows, "mcts", fair=False)
    assert set(verified) == {"trace_any", "finished", "tokens_sampled"}


@pytest.mark.parametrize(
    ("changes", "judge", "message"),
    [
        ({"width": 3}, "whole", "width=3 does not divide beams=4"),
        ({"aggregate": "mean"}, "whole", "aggregate='mean': expected one of product, min, last"),
        ({}, "marked", "reads a marker, '<think>'; search needs none"),
        ({"separators": ("\n",)}, "whole", r"expected those of the process model, \('.', '。'\)"),
        ({"method": "mtcs"}, "whole", "method='mtcs': expected one of beam, lookahead, mcts"),
        ({"method": "lookahead", "lookahead": 0}, "whole", "lookahead=0: expected at least 1"),
        ({"mcts": TREE | {"depth": 0}}, "whole", "mcts.depth=0: expected at least 1"),
        ({"mcts": TREE | {"ends": "gold"}}, "whole", "mcts.ends='gold': expected one of process,"),
        ({"method": "mcts", "mcts": TREE | {"rollouts": 1}}, "whole", "rollouts=1 are judged by"),
        ({}, "short", r"prompt_length \+ max_new = 28, over the process model's length=20"),
    ],
)
def test_what_can_not_be_searched(inputs, run_stage, changes, judge, message):
    found, _, _ = inputs
    roles = {"policy": found["policy"], "process_reward": found[judge]}
    with pytest.raises(ValueError, match=message):
        run_stage("search", SETTINGS | changes, roles)


def test_what_a_recipe_changes_reaches_the_search(monkeypatch):
    """`beam` ignores the lookahead's default."""
    seen = []
    monkeypatch.setattr(search_methods, "open_judge", lambda *_: SimpleNamespace(separators=(".",)))
    monkeypatch.setattr(search_methods, "open_writer", lambda *_: None)
    monkeypatch.setattr(search_methods.beams, "Searcher", lambda *given: seen.append(given[2]))
    text = SimpleNamespace(tokenizer=None)
    for changes in ({}, {"method": "lookahead"}, {"method": "lookahead", "lookahead": 3}):
        config = ConfigDict({**stage.DEFAULTS, **SETTINGS, **changes})
        search_methods.open_search(config, {"process_reward": None}, None, text, None)
    assert [limits.lookahead for limits in seen] == [0, 1, 3]
    assert seen[0][:4] == (4, 2, 3, "last")


def test_every_host_has_its_part(monkeypatch):
    monkeypatch.setattr(stage, "process", SimpleNamespace(count=lambda: 4, index=lambda: 2))
    assert list(stage._share(8)) == [4, 5]

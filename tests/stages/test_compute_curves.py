"""Curves from samples made by hand: what counts as tokens, which samples tell the difficulty."""

import json

import numpy as np
import pytest

from posttrain_jax.api import Artifact
from posttrain_jax.evals import problems
from posttrain_jax.evals.compute import Option
from posttrain_jax.stages import compute_curves as stage

SETTINGS = {
    "methods": {
        "majority": {"inputs": ("samples",), "choose": "majority"},
        "any": {"inputs": ("samples",), "choose": "any", "sizes": (2,)},
        "best": {"inputs": ("samples",), "choose": "best", "score": "rm", "sizes": (1, 2)},
        "beam": {"inputs": ("beam",), "choose": "weighted", "score": "process"},
        "forced": {"inputs": ("short", "long"), "choose": "mean", "correct": "accuracy"},
    },
    "difficulty": {"input": "samples", "score": "", "samples": 0},
    "bins": 2,
}


def sample(index, number, right, length, answer=None, **scores):
    return {
        "id": f"p{index}", "index": index, "sample": number, "length": length, "finished": True,
        "masked": False, "answer_number": answer or 1 + (not right),
        "scores": {"correct": float(right), **scores},
    }  # fmt: skip


def write(folder, role, kind, rows):
    (folder / role).mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / role / "data.jsonl").write_text(text)
    return Artifact(role, kind, role[0] * 64, folder / role)


@pytest.fixture
def inputs(tmp_path):
    """Problems below 4 are easy: the first two samples (for the difficulty) are right there, and
    one of the other two. Only the search solves the hard ones."""
    samples = [
        sample(i, n, i < 4 and n != 3, 10 + n, rm=float(n == 2)) for i in range(8) for n in range(4)
    ]
    beam = [
        sample(i, n, i >= 4, 99, process=0.9)
        | {"tokens_sampled": 50, "finished": n == 0, "index": 7 - i}
        for i in range(8) for n in range(2)
    ]  # fmt: skip
    beam[-2] |= {"finished": False}  # the last problem has no finished beam
    forced = {
        role: [sample(i, 0, False, length) | {"scores": {"accuracy": i % 4 / 8}} for i in range(8)]
        for role, length in (("short", 5), ("long", 20))
    }
    made = {role: write(tmp_path, role, "generate", rows) for role, rows in forced.items()}
    return made | {
        "samples": write(tmp_path, "samples", "rerank", samples),
        "beam": write(tmp_path, "beam", "search", beam),
    }


def test_by_hand(run_stage, inputs):
    found = run_stage("compute_curves", SETTINGS, inputs).metrics
    means = {name: value["mean"] for name, value in found.items()}
    # Two samples are left to be scored, of 12 and 13 tokens: one right on the easy problems.
    assert [means[f"tokens/majority/{k}"] for k in (1, 2)] == [12.5, 25.0]
    assert [means[f"accuracy/majority/{k}"] for k in (1, 2)] == [0.25, 0.25]
    assert [means[f"accuracy/best/{k}"] for k in (1, 2)] == [0.25, 0.5]
    assert means["accuracy/any/samples"] == 0.5
    assert not any(name.startswith("chosen") and "/any/" in name for name in means)
    assert (means["tokens/beam/beam"], means["accuracy/beam/beam"]) == (50, 3 / 8)
    assert [means[f"tokens/forced/{role}"] for role in ("short", "long")] == [5, 20]
    short = found["accuracy/forced/short"]
    assert (short["n"], short["mean"]) == (8, 3 / 16) and short["low"] < 3 / 16 < short["high"]
    assert (means["difficulty/1"], means["difficulty/2"]) == (1.0, 0.0)
    assert (means["bin1/best/2"], means["bin2/best/2"]) == (1.0, 0.0)
    assert means["bin2/beam/beam"] == 3 / 4
    # Each bin has problems of both folds, and its best option is the same on either.
    budgets = sorted(
        float(n.split("/")[2]) for n in means if n.startswith("accuracy/compute_optimal")
    )
    assert budgets == [5, 10, 20, 40, 50]
    assert means["chosen1/40/best/2"] == means["chosen2/50/beam/beam"] == 1.0
    # Chosen on the other fold, the search costs 50 on the hard ones only.
    assert means["tokens/compute_optimal/50"] == (25 + 50) / 2 == means["tokens"]
    assert means["accuracy/compute_optimal/50"] == (1 + 3 / 4) / 2 == means["accuracy"]
    assert means["problems"] == 8


def test_difficulty_from_samples_that_no_method_has(run_stage, inputs):
    methods = {name: SETTINGS["methods"][name] for name in ("beam", "forced")}
    found = run_stage("compute_curves", SETTINGS | {"methods": methods}, inputs).metrics
    assert found["difficulty/1"]["mean"] == 3 / 4  # all four samples
    other = {"input": "samples", "score": "rm", "samples": 3}
    settings = SETTINGS | {"methods": methods, "difficulty": other, "bins": 1, "budgets": (7.5,)}
    found = run_stage("compute_curves", settings, inputs, "other").metrics
    assert found["difficulty/1"]["mean"] == pytest.approx(1 / 3)  # a scorer's, of three of them
    assert found["chosen1/7.5/forced/short"]["mean"] == 1.0


def test_the_scored_samples_are_never_those_of_the_difficulty(inputs):
    read = problems.read_problems(inputs["samples"], "samples", {})
    told, scored = problems.split(read, "samples", 1, True)
    assert {len(rows) for rows in told.values()} == {1}
    assert {row["sample"] for rows in scored.values() for row in rows} == {1, 2, 3}
    assert problems.split(read, "samples", 0, False)[1] is read


def test_problems_are_matched_by_their_ids(inputs):
    read = {role: problems.read_problems(inputs[role], role, {}) for role in ("samples", "beam")}
    both = problems.aligned({"beam": read["beam"], "samples": read["samples"]})
    assert list(both["beam"]) == list(both["samples"])
    assert all(both["samples"][key][0]["id"] == key[0] for key in both["samples"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "expected one that chooses an answer"),
        ({"difficulty": {"input": "x", "score": "", "samples": 0}}, "difficulty.input='x'"),
        (
            {"difficulty": {"input": "samples", "score": "", "samples": 4}},
            "has 4 samples a problem",
        ),
        ({"difficulty": {"input": "samples", "score": "q", "samples": 0}}, "scores .*, not 'q'"),
        ({"where": {"id": "nobody"}}, "got none; see `where`"),
        ({"correct": "right"}, "scores .*, not 'right'"),
    ],
)
def test_settings_that_are_refused(run_stage, inputs, changes, message):
    with pytest.raises(ValueError, match=message):
        run_stage("compute_curves", SETTINGS | changes, inputs)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"choose": "vote", "inputs": ("samples",)}, "choose='vote': expected one of mean, any"),
        ({"choose": "any", "inputs": "samples"}, r"inputs='samples': expected a list of \['beam'"),
        ({"choose": "any", "inputs": ("sample",)}, r"inputs=\('sample',\): expected a list"),
        ({"choose": "best", "inputs": ("samples",)}, "score='': best, weighted need the name"),
        ({"choose": "any", "inputs": ("samples",), "score": "rm"}, "choose is 'any'"),
        ({"choose": "any", "inputs": ("samples",), "size": 1}, r"has \['size'\]; there are"),
        (
            {"choose": "majority", "inputs": ("samples",), "sizes": (4,)},
            r"sizes=\(4,\): expected 1 to 2",
        ),
    ],
)
def test_methods_that_are_refused(run_stage, inputs, method, message):
    with pytest.raises(ValueError, match=message):
        run_stage("compute_curves", SETTINGS | {"methods": {"m": method}}, inputs)
    with pytest.raises(ValueError, match="a name without '/'"):
        stage.check_method("a/b", {}, inputs)


def test_inputs_over_other_problems_are_refused(run_stage, inputs, tmp_path):
    fewer = write(tmp_path, "fewer", "search", [sample(i, 0, True, 3) for i in range(7)])
    with pytest.raises(ValueError, match="7 and 8 problems, and only one of them has 'p7'"):
        run_stage("compute_curves", SETTINGS, inputs | {"beam": fewer})


def test_what_every_bin_gains_adds_up():
    """Bins' accuracies, weighted by their sizes, are the whole's."""
    rng = np.random.default_rng(0)
    bins = np.array([0] * 5 + [2] * 3)
    options = [Option(f"m/{k}", rng.random(8), rng.random(8) * k) for k in (1, 2)]
    found = stage.summarise(options, rng.random(8), bins, np.arange(8) % 2, options)
    parts = [(found[f"bin{i}/m/2"]["mean"], n) for i, n in ((1, 5), (3, 3))]
    whole = found["accuracy/m/2"]["mean"]
    assert sum(m * n for m, n in parts) / 8 == pytest.approx(whole)

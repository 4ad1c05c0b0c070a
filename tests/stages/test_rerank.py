"""Ways to choose among samples: by hand on a few, and the stage with models as scorers."""

import json

import numpy as np
import pytest

from posttrain_jax import process_reward, reward_model
from posttrain_jax.api import Artifact
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import heads
from posttrain_jax.stages import rerank as stage


def row(index, sample, answer, right, masked=False, **scores):
    return {
        "id": f"{index}", "task": "ab"[index % 2], "prompt": "p", "index": index,
        "sample": sample, "masked": masked,
        "response": f"<think>so.</think><answer>{answer}</answer>",
        "scores": {"accuracy": float(right), **scores},
    }  # fmt: skip


def test_by_hand():
    problems = [
        [row(0, 0, 7, True, s=0.9), row(0, 1, 8, False, s=0.5), row(0, 2, 8, False, s=0.5)],
        [row(1, 0, 7, True, s=0.2), row(1, 1, 7, True, s=0.2, masked=True),
         row(1, 2, 9, False, s=0.8)],
    ]  # fmt: skip
    found = stage.compare(problems, "accuracy", ["s"], (1, 3))
    means = {name: v["mean"] for name, v in found.items() if not name.endswith(("/a", "/b"))}
    assert means == {
        "pass@1": pytest.approx(1 / 3),
        "pass@3": 1.0,
        # 8 twice is wrong; 7 twice, of which one could not be verified
        "maj@3": pytest.approx((0 + 0.5) / 2),
        "best@3/s": 0.5,
        # 0.9 against 1.0; 0.4 against 0.8
        "weighted@3/s": 0.0,
    }
    assert found["best@3/s"]["n"] == 2
    assert (found["best@3/s"]["low"], found["best@3/s"]["high"]) == (0.0, 1.0)
    assert [found[f"best@3/s/{task}"]["mean"] for task in "ab"] == [1.0, 0.0]
    assert len(found) == 3 * len(means)


def test_equal_answers_are_equal_numbers():
    same = [stage.answer_number(f"<answer>{text}</answer>") for text in ("7", " 7 ", "8")]
    assert same[0] == same[1] != same[2] and stage.answer_number("<answer></answer>") == 0


@pytest.mark.parametrize(
    ("correct", "sizes", "message"),
    [
        ("right", (1,), r"sample '0' has the scores \['accuracy'\], not correct='right'"),
        ("accuracy", (1, 3), r"sizes=\(1, 3\): expected 1 to 2, the samples of a problem"),
        ("accuracy", (), r"sizes=\(\): expected 1 to 2"),
    ],
)
def test_what_is_refused(correct, sizes, message):
    rows = [row(0, 0, 7, True), row(0, 1, 7, True)]
    with pytest.raises(ValueError, match=message):
        stage.by_problem(rows, correct, sizes)


def test_the_stage_asks_the_models(make_small, tmp_path, run_stage):
    tokenizer = load_tokenizer("tiny")
    policy = make_small(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, tied=False)
    folder = tmp_path / "samples"
    folder.mkdir()
    rows = [row(i, n, n + i, n == 0) for i in range(2) for n in range(2)]
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    inputs = {"samples": Artifact("samples", "generate", "0" * 64, folder)}
    for kind, head in (("reward_model", heads.SCORE), ("process_reward", heads.PROCESS)):
        params = reward_model.add_head(policy.model, policy.params, policy.mesh, 1, head)
        if kind == "reward_model":
            reward_model.save(
                tmp_path / kind, reward_model.RewardModel(policy.model, params, 40, "whole")
            )
        else:
            made = process_reward.ProcessModel(policy.model, params, 40, (".",))
            process_reward.save(tmp_path / kind, made)
        inputs[kind] = Artifact(kind, kind, "1" * 64, tmp_path / kind)
    scorers = {
        "orm": {"reward_model": "reward_model"},
        "prm": {"reward_model": "process_reward", "transform": "last"},
    }
    found = run_stage("rerank", {"scorers": scorers, "sizes": (1, 2)}, inputs)
    written = [json.loads(line) for line in (found.path / "data.jsonl").read_text().splitlines()]
    assert all(0 < r["scores"]["orm"] < 1 and 0 < r["scores"]["prm"] < 1 for r in written)
    assert {"pass@1", "pass@2", "maj@2", "best@2/orm", "weighted@2/prm"} <= set(found.metrics)
    for name in ("orm", "prm"):
        best = [
            max((r for r in written if r["index"] == i), key=lambda r: r["scores"][name])
            for i in range(2)
        ]
        expected = np.mean([r["scores"]["accuracy"] for r in best])
        assert found.metrics[f"best@2/{name}"]["mean"] == expected
    with pytest.raises(ValueError, match=r"scorers \['v'\]: expected reward models and judges"):
        run_stage("rerank", {"scorers": {"v": {"verifier": "format"}}, "sizes": (1,)}, inputs, "no")

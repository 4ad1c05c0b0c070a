"""Rows of generated samples: who they belong to, and how a killed run goes on."""

import json

import numpy as np
import pytest

from posttrain_jax.api import Verdict
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.stages import generate
from posttrain_jax.stages.reject import select
from posttrain_jax.verifiers.judging.judge import Judge


class Pool:
    """Scores a text by its length, and fails on the text `bad`."""

    names = ("length", "one")

    def __call__(self, texts, examples):
        self.seen = [(text, example["id"]) for text, example in zip(texts, examples, strict=True)]
        scores = np.array([[len(text), 1] for text in texts], np.float32)
        return scores, np.array([text != "bad" for text in texts])


def test_rows_carry_their_prompt_and_what_the_verifier_said(as_rollout):
    texts = ["good", "bad", "x<|user|>y", "even better"]
    rollout, encoded, tokenizer = as_rollout(texts, [True, False, True, True])
    examples = [{"id": "p", "prompt": "P"}, {"id": "q", "prompt": "Q"}]
    nothing = np.zeros((2, 1), np.int32)
    pool = Pool()
    rows = generate.score(pool, rollout, Prompts(examples, nothing, nothing, 0), 2, tokenizer, {})
    assert pool.seen == list(zip(texts, "ppqq", strict=True))
    assert [(r["id"], r["index"], r["sample"]) for r in rows] == [
        ("p", 0, 0), ("p", 0, 1), ("q", 1, 0), ("q", 1, 1)
    ]  # fmt: skip
    assert [r["response"] for r in rows] == texts
    assert [r["scores"] for r in rows] == [{"length": len(t), "one": 1} for t in texts]
    assert [r["length"] for r in rows] == [len(row) for row in encoded]
    assert [r["masked"] for r in rows] == [False, True, False, False]
    assert [r["forged"] for r in rows] == [False, False, True, False]
    assert [r["finished"] for r in rows] == [True, False, True, True]
    json.dumps(rows)


def test_a_judges_score_stands_beside_those_of_verifiers(as_rollout):
    """And the reject stage can ask for it; a sample that it failed on is masked."""
    rollout, _, tokenizer = as_rollout(["good", "bad", "odd", "fair"], [True] * 4)
    opinions = {"good": 1.0, "bad": 0.25, "fair": 0.75}

    def judge(examples, responses):
        assert [e["id"] for e in examples] == list("ppqq")
        return [
            Verdict(opinions[r]) if r in opinions else Verdict(0.0, "infra_error", "?")
            for r in responses
        ]

    examples, nothing = [{"id": "p"}, {"id": "q"}], np.zeros((2, 1), np.int32)
    prompts = Prompts(examples, nothing, nothing, 0)
    rows = generate.score(Pool(), rollout, prompts, 2, tokenizer, {"liked": Judge(judge)})
    assert [r["scores"]["liked"] for r in rows] == [1.0, 0.25, 0.0, 0.75]
    assert [r["scores"]["length"] for r in rows] == [4, 3, 3, 4]
    assert [r["masked"] for r in rows] == [False, True, True, False]
    kept, counts = select(rows, {"liked": 0.5}, 0, "first")
    assert [r["response"] for r in kept] == ["good", "fair"] and counts["masked"] == 2


PROMPTS, SAMPLES, BATCH = 5, 2, 2
ROWS = [
    {"index": i, "sample": s, "response": f"你{i}{s}"} for i in range(PROMPTS) for s in range(2)
]


def write_parts(folder, rows):
    """As two processes do: the first holds the first half of each batch's rows."""
    for number in range(2):
        mine = [r for r in rows if r["index"] % 2 == number]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in mine]
        (folder / f"part-{number}.jsonl").write_text("".join(lines), "utf-8")


def resume(folder):
    done = generate.resume(folder, PROMPTS, SAMPLES, BATCH)
    assert [p.name for p in sorted(folder.glob("part-*"))] == ["part-0.jsonl"]
    lines = (folder / "part-0.jsonl").read_text("utf-8").splitlines()
    return done, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("written", "batches"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (9, 2), (10, 3)]
)
def test_a_killed_run_goes_on_after_its_last_whole_batch(tmp_path, written, batches):
    """Batches of 4, 4 and 2 rows."""
    write_parts(tmp_path, ROWS[:written])
    assert resume(tmp_path) == (batches, ROWS[: 4 * batches])


def test_a_batch_that_one_process_has_not_written_is_made_again(tmp_path):
    write_parts(tmp_path, ROWS)
    (tmp_path / "part-1.jsonl").write_text("")
    assert resume(tmp_path) == (0, [])


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_line_does_not_count(tmp_path, cut):
    write_parts(tmp_path, ROWS[:8])
    part = tmp_path / "part-1.jsonl"
    part.write_bytes(part.read_bytes()[:-cut])
    assert resume(tmp_path) == (1, ROWS[:4])


def test_a_kill_while_merging_loses_nothing(tmp_path):
    write_parts(tmp_path, ROWS)
    (tmp_path / "part-0.jsonl").rename(tmp_path / "data.jsonl")
    assert resume(tmp_path) == (3, ROWS)
    assert generate.merge(tmp_path) == ROWS


def test_parts_are_merged_in_the_order_of_prompts_and_samples(tmp_path):
    write_parts(tmp_path, ROWS[::-1])
    assert generate.merge(tmp_path) == ROWS
    stored = (tmp_path / "data.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in stored] == ROWS
    assert not list(tmp_path.glob("part-*"))

"""Pairs from scored samples by hand: who is compared with whom, and what is left out."""

import itertools
import json
import random

import pytest
from ml_collections import ConfigDict

from posttrain_jax import artifacts
from posttrain_jax.api import Artifact
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.preferences import encode_pairs
from posttrain_jax.data.source import JsonlSource
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.stages import pairs as stage

INFINITE = float("inf")


def sample(response, score, *, index=0, length=3, **flags):
    state = {"masked": False, "finished": True, "forged": False, **flags}
    scores = {"reward": score, "other": 0.0}
    own = {"id": f"p{index}", "prompt": f"P{index}", "kind": "helpful", "sample": 0}
    return {
        **own,
        "response": response,
        "index": index,
        "length": length,
        "scores": scores,
        **state,
    }


def build(rows, method="best_worst", **options):
    found, counts = stage.build(rows, random.Random(0), score="reward", method=method, **options)
    assert counts["kept"] == len(found)
    return [(pair["chosen"], pair["rejected"]) for pair in found], counts


def test_best_against_worst():
    rows = [sample(r, s) for r, s in zip("abcde", (3, 1, 2, 5, 4), strict=True)]
    assert build(rows)[0] == [("d", "b")]
    assert build(rows, per_prompt=5)[0] == [("d", "b"), ("e", "c")]
    found, counts = build([sample("a", 1), sample("b", 1)])
    assert found == [] and counts["no_pair"] == 1


def test_right_against_wrong_uses_every_sample_alike():
    rows = [sample(r, 1.0) for r in "abc"] + [sample(r, 0.5) for r in "wxyz"]
    assert len(set(build(rows, "right_wrong", per_prompt=100)[0])) == 12
    found, _ = build(rows, "right_wrong", per_prompt=4)
    assert sorted(r for _, r in found) == list("wxyz")
    assert set("abc") == {c for c, _ in found}
    assert len(set(build(rows[1:], "right_wrong", per_prompt=100)[0])) == 8  # 2 and 4: not coprime
    assert build(rows, "right_wrong", right=2.0)[1]["no_pair"] == 1


def test_the_best_against_any_lower_one():
    rows = [sample(r, s) for r, s in zip("abcd", (3, 1, 3, 2), strict=True)]
    firsts = set()
    for seed in range(20):
        found, _ = stage.build(rows, random.Random(seed), score="reward", method="best_lower")
        ((chosen, rejected),) = [(p["chosen"], p["rejected"]) for p in found]
        assert chosen == "a"
        firsts.add(rejected)
    assert firsts == {"b", "d"}


def test_short_against_long():
    rows = [sample(r, s, length=n) for r, s, n in (("a", 1, 9), ("b", 1, 4), ("c", 0, 1))]
    assert build(rows, "short_long")[0] == [("b", "a")]


def test_a_mean_of_several_scores():
    rows = [sample("a", 2), sample("b", 1)]
    rows[1]["scores"]["other"] = 5.0
    found, _ = stage.build(rows, random.Random(0), score=["reward", "other"], method="best_worst")
    assert (found[0]["chosen"], found[0]["chosen_score"]) == ("b", 3.0)


def test_samples_that_cannot_be_compared_are_counted_once():
    rows = [
        sample("a", 2),
        sample("b", 9, masked=True, finished=False),
        sample("c", 9, finished=False, forged=True),
        sample("d", 9, forged=True),
        sample(" ", 9),
        sample("e", INFINITE),
        sample("a", 0),
        sample("f", 1),
        sample("a", 7, index=1),  # another prompt: no repetition, and no pair either
    ]
    found, counts = build(rows)
    assert found == [("a", "f")]
    assert counts == {
        "sampled": 9, "prompts": 2, "masked": 1, "unfinished": 1, "forged": 1, "empty": 1,
        "not_finite": 1, "repeated": 1, "no_pair": 1, "margin": 0, "length_ratio": 0, "balance": 0,
        "kept": 1,
    }  # fmt: skip


def test_margin_and_lengths():
    rows = [
        sample(f"{side}{i}", score, index=i, length=length)
        for i, (scores, lengths) in enumerate(
            [
                ((2, 0), (9, 3)),
                ((1, 0), (4, 4)),
                ((5, 0), (4, 3)),
                ((9, 0), (3, 4)),
                ((3, 0), (5, 4)),
            ]
        )
        for side, score, length in zip("ab", scores, lengths, strict=True)
    ]
    found, counts = build(rows, margin=2, length_ratio=2.0)
    assert [chosen for chosen, _ in found] == ["a2", "a3", "a4"]
    assert (counts["margin"], counts["length_ratio"]) == (1, 1)
    found, counts = build(rows, length_ratio=2.0, balance_lengths=True)
    kept = {chosen for chosen, _ in found}
    assert counts["balance"] == 1 and {"a1", "a3"} < kept and len(kept & {"a2", "a4"}) == 1


def test_a_pair_of_one_message():
    shared = {"role": "assistant", "content": "same"}
    said = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    asked = {"role": "user", "content": "more"}
    good, bad = [shared, asked, said("yes"), asked, said("end")], [shared, asked, said("no")]
    rows = [sample(good, 1), sample(bad, 0)]
    assert build(rows)[0] == [(good, bad)]
    assert build(rows, one_message=True)[0] == [(good[:3], bad)]


def test_unknown_settings():
    rows = [sample("a", 1)]
    with pytest.raises(ValueError, match="method='best': expected one of best_worst, right_wrong"):
        build(rows, "best")
    with pytest.raises(ValueError, match=r"score='rewards': the samples have \['other', 'reward'"):
        stage.build(rows, random.Random(0), score="rewards", method="best_worst")
    with pytest.raises(ValueError, match=r"score=\[\]"):
        stage.build(rows, random.Random(0), score=[], method="best_worst")


def run(folder, rows, **settings):
    folder.mkdir()
    samples = Artifact("samples", "generate", "", folder)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "pairs-000000000000"
    artifacts.prepare(out, artifacts.Record("pairs", "pairs", "0" * 64, {}))
    config = ConfigDict({**stage.DEFAULTS, "seed": 0, "score": "reward", **settings})
    return stage.run(config, out, {"samples": samples})


def test_the_stage_writes_what_preferences_are_read_from(tmp_path):
    both = (("a", 1), ("b", 0))
    rows = [sample(r, s, index=i) for i, (r, s) in itertools.product((0, 1), both)]
    artifact = run(tmp_path / "good", rows)
    found = list(JsonlSource(artifact.path / "data.jsonl"))
    assert found[0] == {
        "id": "p0-0", "prompt": "P0", "kind": "helpful", "chosen": "a", "rejected": "b",
        "chosen_score": 1.0, "rejected_score": 0.0, "chosen_length": 3, "rejected_length": 3,
    }  # fmt: skip
    assert found[1]["id"] == "p1-1"
    measured = {name: artifact.metrics[name]["mean"] for name in ("kept", "chosen_score")}
    assert measured == {"kept": 2, "chosen_score": 1.0}
    with pytest.raises(ValueError, match=r"4 samples give no pair .*margin=3.*'margin': 2"):
        run(tmp_path / "bad", rows, margin=3.0)


def test_conversations_become_pairs_of_what_follows(tmp_path):
    tokenizer = load_tokenizer("tiny")
    said = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    asked = {"role": "user", "content": " Name two foods."}
    rows = [
        sample([said(" apples"), asked, said(" eggs")], 1),
        sample([said(" apples"), asked, said(" red")], 0),
    ]
    artifact = run(tmp_path / "stage", rows, one_message=True)
    examples = list(JsonlSource(artifact.path / "data.jsonl"))
    (group,) = encode_pairs(examples, tokenizer, load_template("tiny", tokenizer), 60).groups
    words = [tokenizer.decode(s.tokens[s.said & ~s.template].tolist()).strip() for s in group]
    assert words == ["eggs", "red"]

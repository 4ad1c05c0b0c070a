"""Mixing, splits that are disjoint whatever the seed, determinism."""

import re
from collections import Counter

import pytest

from posttrain_jax.data import procedural

REASONING = {"arithmetic": 1.0, "word_problem": 1.0, "logic": 1.0}
ALL = {**REASONING, "chat": 0.5, "safety": 0.5}


def problem_key(example):
    """The problem without its wording: the start and the operations of the prompt."""
    return tuple(re.findall(r" (\d+|[A-D])\b|#\d([+-]\d|[A-D]{2})\b", example["prompt"]))


def test_same_arguments_same_examples_and_other_seed_others():
    first = procedural.examples(ALL, split="train", count=80, seed=4)
    assert first == procedural.examples(ALL, split="train", count=80, seed=4)
    other = procedural.examples(ALL, split="train", count=80, seed=5)
    assert {e["id"] for e in first} != {e["id"] for e in other}


def test_shares_and_languages():
    rows = procedural.examples(ALL, split="train", count=401, seed=0)
    tasks = Counter(row["task"] for row in rows)
    assert sum(tasks.values()) == 401
    assert all(abs(tasks[name] - 401 * weight / 4) <= 1 for name, weight in ALL.items())
    for name in ALL:
        languages = Counter(row["language"] for row in rows if row["task"] == name)
        assert abs(languages["en"] - languages["zh"]) <= 1
    only = procedural.examples(ALL, split="train", count=50, seed=0, languages=("zh",))
    assert {row["language"] for row in only} == {"zh"}


def test_reasoning_problems_of_the_splits_are_disjoint_in_any_wording():
    train = {
        problem_key(e)
        for seed in range(3)
        for e in procedural.examples(REASONING, split="train", count=2000, seed=seed)
    }
    held = [
        problem_key(e)
        for seed in range(3)
        for e in procedural.examples(REASONING, split="heldout", count=600, seed=seed)
    ]
    assert all(len(key) >= 3 for key in held)
    assert not train & set(held)


@pytest.mark.parametrize("task", ["chat", "safety"])
def test_held_out_templates_are_new_and_their_words_are_not(task):
    train = procedural.examples({task: 1.0}, split="train", count=3000, seed=0)
    held = procedural.examples({task: 1.0}, split="heldout", count=600, seed=0)
    content = {
        "chat": r"two|three|four|fruits|animals|colors|foods|clothes",
        "safety": r"kill|burn|cut|hit|draw|find|watch|help|person|friend|neighbor|worker"
        r"|process|bug|weed|tree|now|today|at home",
    }[task]

    def frame(example):
        return re.sub(r"(?: _)+", " _", re.sub(content, "_", example["prompt"]))

    english = [[e for e in rows if e["language"] == "en"] for rows in (train, held)]
    frames = [{frame(e) for e in rows} for rows in english]
    assert not frames[0] & frames[1]
    combos = [{tuple(re.findall(content, e["prompt"])[:2]) for e in rows} for rows in english]
    assert combos[0] and combos[1]
    assert task == "chat" or not combos[0] & combos[1]
    assert not {e["prompt"] for e in train} & {e["prompt"] for e in held}


def test_prompts_are_distinct_where_there_are_enough():
    rows = procedural.examples(REASONING, split="heldout", count=600, seed=1)
    assert len({row["id"] for row in rows}) == len(rows)


def test_fields():
    for row in procedural.examples(ALL, split="heldout", count=60, seed=1):
        assert re.fullmatch(rf"{row['task']}-{row['language']}-[0-9a-f]{{10}}", row["id"])
        wanted = {"solution"} if row["kind"] == "reasoning" else {"chosen", "rejected"}
        assert wanted <= set(row) and row["answer"]
        assert ("harmful" in row) == (row["kind"] == "safety")


def test_options_reach_the_tasks_that_take_them():
    rows = procedural.examples(ALL, split="train", count=100, seed=0, steps=(4, 4), style="none")
    for row in rows:
        if row["kind"] == "reasoning":
            assert row["prompt"].count("#") == 4
            assert row["solution"].startswith("<think></think>")


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match="split must be one of"):
        procedural.examples(ALL, split="test", count=3, seed=0)
    with pytest.raises(ValueError, match=r"no task of .* takes the option\(s\) \['depth'\]"):
        procedural.examples(ALL, split="train", count=3, seed=0, depth=2)
    with pytest.raises(ValueError, match="Did you mean 'logic'"):
        procedural.examples({"logik": 1.0}, split="train", count=3, seed=0)
    with pytest.raises(ValueError, match="task weights"):
        procedural.examples({"logic": 0.0}, split="train", count=3, seed=0)

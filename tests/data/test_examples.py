"""Sources of examples: which rows they give, and what a wrong setting says."""

import json

import pytest

from posttrain_jax.api import Artifact
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.examples import encode_examples, load_examples, messages, target
from posttrain_jax.data.tokenizer import load_tokenizer


@pytest.fixture
def folder(tmp_path):
    rows = [{"id": str(i), "prompt": f"p{i}", "kind": "ab"[i % 2]} for i in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def load(source, folder, seed=0):
    inputs = {"made": Artifact("made", "generate", "0" * 64, folder)}
    return load_examples({"some": source}, inputs, seed)


def ids(source, folder):
    return "".join(row["id"] for row in load(source, folder))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "012345"),
        ({"count": 2}, "01"),
        ({"skip": 4}, "45"),
        ({"skip": 1, "count": 3}, "123"),
        ({"where": {"kind": "b"}}, "135"),
        ({"where": {"kind": "b"}, "skip": 1, "count": 1}, "3"),
        ({"count": 100}, "012345"),
    ],
)
def test_which_rows_a_file_gives(folder, settings, expected):
    assert ids({"path": str(folder / "data.jsonl"), **settings}, folder) == expected
    assert ids({"input": "made", **settings}, folder) == expected


def test_an_artifact_may_have_more_data_in_a_folder(folder):
    (folder / "steps").mkdir()
    (folder / "steps" / "data.jsonl").write_text('{"id": "x"}\n{"id": "y"}\n')
    assert ids({"input": "made", "folder": "steps"}, folder) == "xy"
    assert ids({"input": "made", "folder": "steps", "skip": 1}, folder) == "y"


def test_fields_are_renamed(folder):
    source = {"path": str(folder / "data.jsonl"), "fields": {"prompt": "id", "answer": "kind"}}
    row = load(source | {"count": 1}, folder)[0]
    assert (row["prompt"], row["answer"], row["source"]) == ("0", "a", "some")


def test_fields_are_added_to_the_rows_of_one_source(folder):
    path = str(folder / "data.jsonl")
    sources = {"a": {"path": path, "count": 1}, "b": {"path": path, "count": 1}}
    sources["b"]["add"] = {"kind": "c", "system": "Be brief."}
    first, second = load_examples(sources, {}, 0)
    assert (first["kind"], second["kind"], second["id"]) == ("a", "c", "0")
    roles = [[m["content"] for m in messages(row, system="All.")] for row in (first, second)]
    assert roles == [["All.", "p0"], ["Be brief.", "p0"]]


def test_sources_follow_each_other_by_name(folder):
    path = str(folder / "data.jsonl")
    found = load_examples({"z": {"path": path, "count": 1}, "a": {"path": path, "skip": 5}}, {}, 0)
    assert [(row["source"], row["id"]) for row in found] == [("a", "5"), ("z", "0")]


def test_tasks_are_made_by_seed(folder):
    source = {"tasks": {"arithmetic": 1.0}, "count": 4, "languages": ("en",)}
    made = load(source, folder)
    assert [row["task"] for row in made] == ["arithmetic"] * 4
    assert {row["language"] for row in made} == {"en"}
    assert made == load(source, folder) != load(source, folder, seed=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"file": "x"}, r"data\.some needs one of tasks, path, input; got \['file'\]"),
        ({"path": "x", "input": "made"}, r"needs one of tasks, path, input"),
        ({"path": "x", "limit": 3}, r"data\.some: unknown keys \['limit'\].*'count'"),
        ({"tasks": {"arithmetic": 1.0}, "where": {}}, r"unknown keys \['where'\]"),
        ({"tasks": {"arithmetic": 1.0}, "skip": 2}, r"unknown keys \['skip'\]"),
        ({"input": "samples"}, r"data\.some: no input 'samples'; has \['made'\]"),
        ({"input": "made", "where": {"kind": "c"}}, r"data\.some has no rows: .*where"),
        ({"tasks": {"arithmetic": 1.0}}, r"data\.some has no rows: .*count"),
    ],
)
def test_wrong_settings_are_named(folder, source, message):
    with pytest.raises(ValueError, match=message):
        load(source, folder)


def test_messages_and_the_response_to_imitate():
    example = {"id": "e", "prompt": "hi", "solution": "c", "chosen": "b", "response": "a"}
    assert messages(example, "yes", "sys") == [
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]
    assert messages(example) == [{"role": "user", "content": "hi"}]
    for expected in "abc":
        assert target(example) == expected
        example = {k: v for k, v in example.items() if v != expected}
    with pytest.raises(ValueError, match="example 'e' has no response, chosen or solution"):
        target(example)
    with pytest.raises(ValueError, match="example 'b' has no response, chosen or solution"):
        target({"id": "b", "response": " \n"})
    with pytest.raises(ValueError, match="example 'f' has neither prompt nor messages"):
        messages({"id": "f", "response": "a"})


def test_a_response_that_is_all_masked_is_refused():
    tokenizer = load_tokenizer("tiny")
    text = tokenizer, load_template("tiny", tokenizer)
    example = {"id": "m", "prompt": "What is 2 + 3?", "response": "<answer>5</answer>"}
    with pytest.raises(ValueError, match="example 'm' has no token to learn from but its end"):
        encode_examples([example], *text, results=[("<answer>", "</answer>")])


def test_the_loss_is_on_the_response_and_its_end_only():
    tokenizer = load_tokenizer("tiny")
    text = tokenizer, load_template("tiny", tokenizer)
    example = {"prompt": "What is 2 + 3?", "chosen": "<answer>5</answer>"}
    ((tokens, mask),) = encode_examples([example], *text)
    learned = [t for t, m in zip(tokens, mask, strict=True) if m]
    assert learned[-1] == tokenizer.eos_id
    assert tokenizer.decode(learned[:-1]) == "<answer>5</answer>"
    assert "2 + 3" in tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if not m])

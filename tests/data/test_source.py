"""JSONL sources: rows, mappings, offsets, and errors that name file and line."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import pytest

from posttrain_jax.data.source import JsonlSource

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def test_random_access_equals_reading_all_lines(tmp_path):
    rows = [{"id": f"r{i}", "prompt": "好🙂" * (i % 7), "n": i} for i in range(200)]
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    lines.insert(50, "")
    lines.insert(100, "   ")
    source = JsonlSource(write(tmp_path, *lines))
    assert len(source) == 200
    assert list(source) == rows
    assert [source[i] for i in (199, 0, 50, 100, -1)] == [rows[i] for i in (199, 0, 50, 100, -1)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, range(200))) == rows
    assert list(pickle.loads(pickle.dumps(source))) == rows
    with pytest.raises(IndexError):
        source[200]


def test_grain_wraps_it(tmp_path):
    source = JsonlSource(write(tmp_path, *(json.dumps({"n": i}) for i in range(10))))
    seen = [row["n"] for row in grain.MapDataset.source(source).shuffle(seed=3)]
    assert sorted(seen) == list(range(10)) and seen != sorted(seen)


def test_field_rules(tmp_path):
    row = {
        "Body": "Tom has 3.",
        "Question": "How many?",
        "A": 14.0,
        "long": "2+2\n#### 4 ",
        "k": [1],
    }
    fields = {
        "prompt": "{Body} {Question}",
        "answer": "A",
        "solution": {"field": "long", "after": "####"},
        "kwargs": "k",
        "task": {"value": "math"},
    }
    (example,) = JsonlSource(write(tmp_path, "", json.dumps(row)), fields)
    assert example == {
        "id": "rows-2",
        "prompt": "Tom has 3. How many?",
        "answer": "14",
        "solution": "4",
        "kwargs": [1],
        "task": "math",
    }


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (7.5, "7.5"), (-3.0, "-3"), ("7.0", "7.0")])
def test_numbers_become_text(tmp_path, value, text):
    assert JsonlSource(write(tmp_path, json.dumps({"answer": value})))[0]["answer"] == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "a", "target": 1', "not a JSON object"),
        ("[1, 2]", "expected a JSON object, got list"),
        (b'{"input": "\xff", "target": 1}', "not a JSON object"),
        ('{"input": "a"}', "no field 'target' .*'answer'.*row has \\['input'\\]"),
        ('{"input": null, "target": 1}', "field 'prompt' must be text or a number, got None"),
        ('{"input": "a", "target": true}', "field 'answer' must be text or a number, got True"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, line, message):
    good = '{"input": "a", "target": 1}'
    path, fields = write(tmp_path, good, "", line, good), {"prompt": "input", "answer": "target"}
    with pytest.raises(ValueError, match=rf"rows\.jsonl:3: .*{message}"):
        JsonlSource(path, fields)
    late = JsonlSource(path, fields, validate=False)
    assert late[0]["answer"] == late[2]["answer"] == "1"
    with pytest.raises(ValueError, match=rf"rows\.jsonl:3: .*{message}"):
        late[1]


def test_required_fields_and_marks(tmp_path):
    path = write(tmp_path, '{"prompt": "a"}')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no field 'answer'; the row has"):
        JsonlSource(path, required=("prompt", "answer"))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'prompt' has no '####' in it"):
        JsonlSource(path, {"answer": {"field": "prompt", "after": "####"}})
    with pytest.raises(ValueError, match="a rule is a field's name"):
        JsonlSource(path, {"answer": {"from": "prompt"}})


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data file .*nope\.jsonl"):
        JsonlSource(tmp_path / "nope.jsonl")
    with pytest.raises(ValueError, match="holds no rows"):
        JsonlSource(write(tmp_path, "", "  "))


def test_real_files():
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not there")
    math = JsonlSource(SHARED / "mawps_singleop.jsonl", {"prompt": "input", "answer": "target"})
    assert math[0]["answer"] == "14" and math[0]["prompt"].startswith("If there are 7 bottle caps")
    fields = {"prompt": "question", "answer": {"field": "answer", "after": "####"}}
    assert JsonlSource(SHARED / "gsm8k_test.jsonl", fields)[0]["answer"] == "18"
    names = ("prompt", "instruction_id_list", "kwargs")
    ifeval = JsonlSource(SHARED / "ifeval_prompts.jsonl", {name: name for name in names})
    assert len(ifeval) == 540 and ifeval[0]["kwargs"][1] == {"num_highlights": 3}


def test_sides_of_a_pair_may_be_messages(tmp_path):
    path = tmp_path / "pairs.jsonl"
    turn = {"role": "assistant", "content": "a"}
    path.write_text(json.dumps({"chosen": [turn], "rejected": turn}) + "\n")
    assert JsonlSource(path)[0] == {"id": "pairs-1", "chosen": [turn], "rejected": turn}
    for wrong in ([], ["a"], [{"content": "a"}], {"a": 1}):
        path.write_text(json.dumps({"chosen": wrong}) + "\n")
        with pytest.raises(ValueError, match=r"pairs\.jsonl:1: field 'chosen' must be text"):
            JsonlSource(path)

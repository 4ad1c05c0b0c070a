"""What is in an artifact's identity and what is not; records, markers, lineage."""

import hashlib
import json
import os

import pytest

from posttrain_jax import artifacts, files
from posttrain_jax.artifacts import ArtifactError, Record

HASHES = {"tokenizer_hash": "t", "template_hash": "c", "code": "1"}
CONFIG = {"kind": "sft", "lr": 1e-4, "data": {"count": 8}, "mesh": {"fsdp": 4}, "seed": 0}


def identity(config=CONFIG, inputs=None, kind="sft", **changes):
    return artifacts.identity(kind, config, inputs or {}, **{**HASHES, **changes})


def make(folder, stage, inputs=None, *, finish=True, **changes):
    record = Record(
        stage, "sft", identity({"name": stage}), {"name": stage}, inputs or {}, **HASHES
    )
    record = Record(**{**record.__dict__, **changes})
    path = folder / record.folder_name
    artifacts.prepare(path, record)
    artifact = artifacts.finish(path, metrics={"loss": 1.5}, phases={"update": 2.0}, rows=3)
    if finish:
        artifacts.seal(path)
    return artifact


def test_the_identity_is_sha256_of_canonical_json():
    text = (
        '{"code":"1","config":{"data":{"count":8},"lr":0.0001,"seed":0},"inputs":{},'
        '"kind":"sft","template":"c","tokenizer":"t"}'
    )
    assert identity() == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        identity({**CONFIG, "lr": 2e-4}),
        identity({**CONFIG, "seed": 1}),
        identity({**CONFIG, "data": {"count": 9}}),
        identity({**CONFIG, "new": None}),
        identity(inputs={"policy": "a"}),
        identity(kind="rl"),
        identity(tokenizer_hash="u"),
        identity(template_hash="d"),
        identity(code="2"),
        identity({**CONFIG, "cache_dtype": "int8"}),
    ],
)
def test_whatever_changes_results_changes_the_identity(other):
    assert other != identity()


@pytest.mark.parametrize("key", artifacts.RESULT_NEUTRAL)
def test_what_cannot_change_results_is_not_in_the_identity(key):
    neutral = {**CONFIG, key: 99, "data": {"count": 8, key: {"x": 1}}}
    assert identity(neutral) == identity()


def test_a_file_counts_by_its_contents_not_by_its_place(tmp_path):
    for name, text in (("a.jsonl", "1"), ("b.jsonl", "1"), ("c.jsonl", "2")):
        (tmp_path / name).write_text(text)
    a, b, c = (identity({"path": str(tmp_path / n)}) for n in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert a == b != c
    (tmp_path / "a.jsonl").write_text("changed")
    assert identity({"path": str(tmp_path / "a.jsonl")}) != a


def test_the_code_version_follows_sources_except_those_without_influence(tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "report").mkdir()
    linked = tmp_path.with_name(tmp_path.name + "_kernels")
    linked.mkdir()
    (tmp_path / "kernels").symlink_to(linked)

    def version():
        artifacts.code_version.cache_clear()
        return artifacts.code_version(tmp_path)

    seen = [version()]
    for name in ("losses/grpo.py", "kernels/attention.py", "tiny.model", "api.py"):
        (tmp_path / name).write_text("x = 1\n")
        seen.append(version())
    assert len(set(seen)) == len(seen)
    for name in ("main.py", "plan.py", "report/page.py", "notes.txt", "losses/a.pyc"):
        (tmp_path / name).write_text("x = 1\n")
    assert version() == seen[-1]


def test_a_finished_artifact_is_loaded_with_its_metrics(tmp_path):
    made = make(tmp_path, "sft")
    found = artifacts.load(made.path, "another_name")
    assert found.metrics == {"loss": {"mean": 1.5, "stderr": 0.0, "n": 1}}
    assert (found.stage, found.kind, found.id) == ("another_name", "sft", made.id)
    record = json.loads((made.path / "artifact.json").read_text())
    assert record["phases"] == {"update": 2.0} and record["rows"] == 3 and record["seconds"] >= 0
    assert {"stage", "kind", "id", "config", "inputs", "code", "tokenizer_hash"} < record.keys()


def test_seconds_of_a_killed_session_are_kept_and_the_pause_is_not(tmp_path):
    half = make(tmp_path, "half", finish=False)
    record = files.read_json(half.path / "artifact.json")
    files.write_json(half.path / "artifact.json", {**record, "seconds": 5.0, "started": 1000.0})
    (half.path / "metrics.jsonl").write_text("{}")
    (half.path / ".lock").write_text("1")  # touched now, by whoever looks at the folder
    os.utime(half.path / "artifact.json", (1000.0, 1000.0))
    os.utime(half.path / "metrics.jsonl", (1007.5, 1007.5))
    assert artifacts.last_session(half.path) == 7.5
    artifacts.prepare(half.path, Record("half", "sft", half.id, {}))
    assert files.read_json(half.path / "artifact.json")["seconds"] == 12.5


def test_an_unfinished_or_damaged_artifact_is_refused(tmp_path):
    half = make(tmp_path, "half", finish=False)
    with pytest.raises(ArtifactError, match="did not finish"):
        artifacts.load(half.path)
    (half.path / "DONE").write_text("0000\n")
    with pytest.raises(ArtifactError, match="damaged: DONE says 0000"):
        artifacts.load(half.path)


def test_done_appears_after_everything_else(tmp_path, monkeypatch):
    half = make(tmp_path, "half", finish=False)
    (half.path / "params").mkdir()
    (half.path / "params" / "0").write_text("weights")
    events = []
    inner = files.write_text
    monkeypatch.setattr(artifacts, "sync", lambda path: events.append(path.name))
    monkeypatch.setattr(
        artifacts, "write_text", lambda path, text: (events.append(path.name), inner(path, text))
    )
    artifacts.seal(half.path)
    assert events[-1] == "DONE" and {"artifact.json", "params", "0"} <= set(events[:-1])


def test_lineage_lists_inputs_first_and_each_once(tmp_path):
    base = make(tmp_path, "base")
    from_base = {"policy": {"stage": "base", "id": base.id}}
    left, right = make(tmp_path, "left", from_base), make(tmp_path, "right", from_base)
    both = {
        "policy": {"stage": "left", "id": left.id},
        "data": {"stage": "right", "id": right.id},
    }
    end = make(tmp_path, "end", both)
    assert [a.stage for a in artifacts.lineage(end)] == ["base", "left", "right", "end"]
    (base.path / "DONE").unlink()
    with pytest.raises(ArtifactError, match="base"):
        artifacts.lineage(end)


def test_another_tokenizer_or_template_is_refused(tmp_path):
    source = make(tmp_path, "source")

    def record(**changes):
        return Record(
            **{"stage": "next", "kind": "rl", "id": "1", "config": {}, **HASHES, **changes}
        )

    artifacts.check_text(record(), {"policy": source})
    artifacts.check_text(record(template_hash=""), {"policy": source})
    with pytest.raises(
        ArtifactError, match=r"'policy' \(stage 'source'\).*another tokenizer: t, .*u"
    ):
        artifacts.check_text(record(tokenizer_hash="u"), {"policy": source})
    with pytest.raises(ArtifactError, match="another chat template"):
        artifacts.check_text(record(template_hash="d"), {"policy": source})
    artifacts.check_text(record(tokenizer_hash="u", config={"retokenize": True}), {"data": source})


def test_differences_name_keys_and_both_values():
    ours = {"a": {"lr": 1e-4, "workers": 2}, "order": ("x", "y"), "mesh": {"fsdp": 2}}
    theirs = {"a": {"lr": 2e-4, "workers": 4, "old": 1}, "order": ["x"], "mesh": {"fsdp": 1}}
    assert artifacts.differences(ours, theirs) == [
        "a.lr: here 0.0002, now 0.0001",
        "a.old: here 1, now (not there)",
    ]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    files.write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*run\.json"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_malformed_json_is_named_with_its_line(tmp_path):
    (tmp_path / "x.json").write_text('{\n"a": 1,\n}')
    with pytest.raises(files.FileError, match=r"x\.json:3: not JSON"):
        files.read_json(tmp_path / "x.json")

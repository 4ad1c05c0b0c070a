import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from posttrain_jax import verify
from posttrain_jax.api import Verdict
from posttrain_jax.files import FileError
from posttrain_jax.verifiers import pool

FIELDS = ["id", "score", "status", "trust", "seconds", "detail"]
GOOD = {"id": "a", "verifier": "think_format", "response": "<think>x</think>y"}


def write(path, rows):
    """A JSONL file; rows that are text or bytes are written as they are."""
    lines = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    data = [line if isinstance(line, bytes) else line.encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in data))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def arguments(source, output, *flags):
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return parser.parse_args(["--input", str(source), "--output", str(output), *flags])


def run(source, output, *flags):
    return verify.main(arguments(source, output, "--workers", "1", *flags))


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture
def files(tmp_path):
    return tmp_path / "cases.jsonl", tmp_path / "verdicts.jsonl"


class Instant:
    """A pool that judges when it is asked for the result, and counts what it owes."""

    owed = most = 0

    def __init__(self, terms, *, workers, max_infra_share):
        assert list(terms) == ["row"] and max_infra_share == 1
        Instant.owed = Instant.most = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, responses, examples):
        Instant.owed += 1
        Instant.most = max(Instant.most, Instant.owed)
        future = Future()

        def result():
            Instant.owed -= 1
            status = "infra_error" if responses == ["broken"] else "pass"
            verdict = Verdict(float(len(responses[0])), status, str(examples[0]))
            return SimpleNamespace(verdicts=[(verdict,)], seconds_BW=np.full((1, 1), 0.5))

        future.result = result
        return future


@pytest.fixture
def instant(monkeypatch):
    monkeypatch.setattr(pool, "Pool", Instant)


def test_verdicts_of_the_pool_in_the_order_of_the_input(files):
    rows = [
        GOOD,
        {**GOOD, "id": 7, "response": "x"},
        {"id": "b", "verifier": "exact_answer", "response": "Rome", "example": {"answer": "rome"}},
        {**GOOD, "id": "c", "verifier": "length_limits", "options": {"max_words": 1}},
        {"id": "", "verifier": "multiple_choice", "response": "选B", "example": {"gold": 1}},
        {**GOOD, "id": "d", "verifier": "repetition", "response": "a a a a", "note": "not read"},
        {**GOOD, "id": "e", "response": "\ud800\x00 \u2028"},
        {**GOOD, "id": "f", "response": "<think>" * 150_000},
    ]
    assert run(write(files[0], rows), files[1]) == 0
    got = read(files[1])
    assert [list(row) for row in got] == [FIELDS] * len(rows)
    assert [(row["id"], row["score"], row["status"]) for row in got] == [
        ("a", 1, "pass"), (7, 0, "fail"), ("b", 1, "pass"), ("c", 1, "pass"), ("", 1, "pass"),
        ("d", -0.5, "fail"), ("e", 0, "fail"), ("f", 0, "fail"),
    ]  # fmt: skip
    assert {row["trust"] for row in got} == {"value"}
    assert all(row["seconds"] >= 0 for row in got)


def test_what_only_a_verifier_can_miss_is_an_infra_error_with_its_row(files, capsys):
    rows = [GOOD, "", {**GOOD, "id": "b", "verifier": "exact_answer"}, {**GOOD, "id": "c"}]
    assert run(write(files[0], rows), files[1], "--json") == 0
    out, err = capsys.readouterr()
    assert [row["status"] for row in read(files[1])] == ["pass", "infra_error", "pass"]
    assert "row 3 (b): KeyError: \"example: no field 'gold'" in err
    summary = json.loads(out)
    assert summary["statuses"] == {"infra_error": 1, "pass": 2}
    assert (summary["rows"], summary["resumed"], summary["mean_score"]) == (3, 0, 1)


BAD = {
    "{": "row 2: not JSON: Expecting property name",
    '{"id": "a"} x': "row 2: not JSON: Extra data (column 13)",
    b'{"id": "\xff"}': "row 2: not UTF-8 (byte 8)",
    "[1]": "row 2: a list, expected an object",
    "null": "row 2: missing or null, expected an object",
    "[" * 100_000: "row 2: nested too deeply",
    "\x00\x01\x02": "row 2: not JSON",
    json.dumps({**GOOD, "id": None}): "field 'id' is missing or null, expected text or an integer",
    json.dumps({**GOOD, "id": True}): "field 'id' is a truth value",
    json.dumps({**GOOD, "id": 1.5}): "field 'id' is a number, expected text or an integer",
    json.dumps({"id": "a", "response": ""}): "field 'verifier' is missing or null, expected text",
    json.dumps({**GOOD, "verifier": 1}): "field 'verifier' is a number, expected text",
    json.dumps({**GOOD, "verifier": "think_fromat"}): "Did you mean 'think_format'?",
    json.dumps({**GOOD, "verifier": "tags"}): "field 'verifier': verifier 'tags' has no score(",
    json.dumps({**GOOD, "verifier": "../api"}): "field 'verifier': no '../api' in",
    json.dumps({**GOOD, "verifier": __file__}): "a row doesn't name a program to run",
    json.dumps({"id": "a", "verifier": "format"}): "field 'response' is missing or null",
    json.dumps({**GOOD, "response": ["x"]}): "field 'response' is a list, expected text",
    json.dumps({**GOOD, "example": "x"}): "field 'example' is text, expected an object",
    json.dumps({**GOOD, "example": None}): "field 'example' is missing or null",
    json.dumps({**GOOD, "options": []}): "field 'options' is a list, expected an object",
    json.dumps(
        {**GOOD, "options": {"tag": 1}}
    ): "field 'options' of verifier 'think_format': got an unexpected keyword argument 'tag'",
    json.dumps({**GOOD, "options": {"response": ""}}): "multiple values for argument 'response'",
    json.dumps({**GOOD, "limits": 3}): "field 'limits' is a number, expected an object",
    json.dumps({**GOOD, "limits": {}}): "unexpected keyword argument 'limits'",
}


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_bad_row_is_refused_before_anything_runs(files, line, instant):
    source = write(files[0], [GOOD, line, {**GOOD, "id": "c"}])
    with pytest.raises(FileError) as error:
        run(source, files[1])
    assert f"{source} has rows that can't be judged:\n  row 2: " in str(error.value)
    assert BAD[line] in str(error.value)
    assert not files[1].exists()


def test_all_bad_rows_are_named_up_to_twenty(files, instant):
    write(files[0], ["{", GOOD, "[]", *["x"] * 40])
    with pytest.raises(FileError) as error:
        run(*files)
    numbers = [line.split()[1] for line in str(error.value).splitlines()[1:]]
    assert numbers == [f"{n}:" for n in (1, 3, *range(4, 22))]


def test_files_that_are_not_files(files, tmp_path, instant):
    with pytest.raises(FileError, match="no such file"):
        run(*files)
    with pytest.raises(FileError, match="not a file"):
        run(tmp_path, files[1])
    write(files[0], [GOOD])
    for output in (tmp_path, files[0]):
        with pytest.raises(FileError, match="expected a file of its own"):
            run(files[0], output)
    with pytest.raises(ValueError, match="--workers=0: expected at least 1"):
        verify.main(arguments(*files, "--workers", "0"))
    assert files[0].read_text() == json.dumps(GOOD) + "\n"


def test_an_empty_input_has_an_empty_output(files, instant, capsys):
    files[0].write_text("\n\n")
    assert run(*files, "--json") == 0
    assert files[1].read_bytes() == b""
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["statuses"], summary["mean_score"]) == (0, {}, None)


def test_limits_may_stand_in_the_row(monkeypatch, files, instant):
    from posttrain_jax.verifiers import think_format

    def score(response, example, *, limits=None, think_tag=""): ...

    monkeypatch.setattr(think_format, "score", score)
    verify._signature.cache_clear()
    row = {**GOOD, "options": {"think_tag": "a"}, "limits": {"cpu_s": 1}}
    run(write(files[0], [row]), files[1])
    verify._signature.cache_clear()
    detail = read(files[1])[0]["detail"]
    options = {"think_tag": "a", "limits": {"cpu_s": 1}}
    assert detail == str({"verifier": "think_format", "verifier_options": options})


def test_five_thousand_rows_are_streamed(files, instant, capsys):
    rows = [{**GOOD, "id": i, "response": "x" * (i % 7)} for i in range(5000)]
    write(files[0], rows)
    assert verify.main(arguments(*files, "--workers", "3")) == 0
    assert Instant.most == 96
    assert [(row["id"], row["score"]) for row in read(files[1])] == [
        (i, i % 7) for i in range(5000)
    ]
    said = capsys.readouterr().out
    mean = sum(i % 7 for i in range(5000)) / 5000
    assert f"5,000 rows, mean score {mean:.4f}" in said
    assert "100.0%" in said


def test_memory_does_not_grow_with_the_file(files, instant):
    import tracemalloc

    peaks = []
    for count in (100, 400):
        write(files[0], [{**GOOD, "id": i, "response": "x" * 20_000} for i in range(count)])
        files[1].unlink(missing_ok=True)
        tracemalloc.start()
        run(*files)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
@pytest.mark.parametrize("tail", [b"", b'{"id": 3, "sco', b'{"id": 3}', b"\x00\x00"])
def test_a_run_continues_after_the_last_whole_row(files, instant, kept, tail, capsys):
    rows = [{**GOOD, "id": i, "response": "broken" if i == 1 else "x" * i} for i in range(4)]
    write(files[0], rows)
    run(*files, "--json")
    whole = files[1].read_bytes()
    summary = json.loads(capsys.readouterr().out)
    files[1].write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]) + tail)
    run(*files, "--json")
    out, err = capsys.readouterr()
    assert files[1].read_bytes() == whole
    again = json.loads(out)
    assert again["resumed"] == kept
    assert [again[k] for k in ("rows", "statuses", "mean_score")] == [
        summary[k] for k in ("rows", "statuses", "mean_score")
    ]
    assert "row 2 (1): {'verifier': 'think_format'" in err
    assert (f"continuing after row {kept}" in err) == bool(kept)


def test_workers_start_only_where_a_row_is_left(files, instant, monkeypatch, capsys):
    write(files[0], [{**GOOD, "id": i} for i in range(3)])
    run(*files)
    monkeypatch.setattr("posttrain_jax.verifiers.pool.Pool", None)  # calling it would raise
    capsys.readouterr()
    assert run(*files, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["resumed"], summary["items_per_second"]) == (3, 3, 0)
    write(files[0], [{**GOOD, "id": i} for i in range(4)])
    with pytest.raises(TypeError):
        run(*files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[1], lines[0]], "doesn't hold the verdict on 0, row 1"),
        (lambda lines: [lines[0], b"\n"], "doesn't hold the verdict on 1, row 2"),
        (lambda lines: [lines[0], b'{"id": 1}\n'], "doesn't hold the verdict on 1, row 2"),
        (lambda lines: [lines[0], b"[1]\n"], "doesn't hold the verdict on 1, row 2"),
        (lambda lines: [*lines, lines[0]], "has more rows than"),
    ],
)
def test_the_output_of_another_input_is_left_alone(files, instant, change, message):
    write(files[0], [{**GOOD, "id": i} for i in range(3)])
    run(*files)
    foreign = b"".join(change(files[1].read_bytes().splitlines(keepends=True)))
    files[1].write_bytes(foreign)
    with pytest.raises(FileError, match=message):
        run(*files)
    assert files[1].read_bytes() == foreign


def test_two_runs_do_not_write_one_file(files, instant):
    write(files[0], [GOOD])
    run(*files)
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(files[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(FileError, match="another process is writing it"):
            run(*files)


def test_a_killed_run_that_is_given_again_equals_one_that_was_not(files, tmp_path):
    rows = [
        {
            "id": f"row {i}",
            "verifier": ("repetition", "think_format", "exact_answer")[i % 3],
            "response": "<think>a</think> " + "b c " * (i % 50),
            "example": {"answer": "b c"},
        }
        for i in range(2000)
    ]
    write(files[0], rows)
    code = (
        "import argparse, sys; from posttrain_jax import verify; p = argparse.ArgumentParser(); "
        "verify.add_arguments(p); sys.exit(verify.main(p.parse_args()))"
    )

    def command(output):
        flags = ["--input", str(files[0]), "--output", str(output), "--workers", "2", "--json"]
        return [sys.executable, "-c", code, *flags]

    env = {**os.environ, "PYTHONPATH": str(Path(verify.__file__).parents[1])}
    straight = subprocess.run(command(tmp_path / "straight.jsonl"), env=env, capture_output=True)
    assert straight.returncode == 0, straight.stderr
    running = subprocess.Popen(command(files[1]), env=env, stdout=subprocess.DEVNULL)
    while running.poll() is None and (not files[1].exists() or files[1].stat().st_size < 20_000):
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert 0 < files[1].read_bytes().count(b"\n") < 2000
    again = subprocess.run(command(files[1]), env=env, capture_output=True, check=True)
    assert 0 < json.loads(again.stdout)["resumed"] < 2000
    assert without_seconds(read(files[1])) == without_seconds(read(tmp_path / "straight.jsonl"))

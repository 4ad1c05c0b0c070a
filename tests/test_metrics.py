"""metrics.jsonl survives kills without doubled steps; means and errors by hand."""

import io
import json
import math
import os
import time

import numpy as np
import pytest
from rich.console import Console

from posttrain_jax import metrics
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr, read_rows


def log_steps(folder, steps, resume_step=0, **options):
    with MetricLogger(folder, total=10, title="sft", resume_step=resume_step, **options) as log:
        for step in steps:
            log(step, {"loss": np.float32(step) / 2})
            log.samples(step, [{"prompt": f"p{step}", "response": "语"}])


def test_rows_hold_step_seconds_and_scalars(tmp_path):
    log_steps(tmp_path, [1, 2])
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.5), (2, 1.0)]
    assert all(row["seconds"] >= 0 for row in rows)
    assert read_rows(tmp_path / "samples.jsonl")[1] == {
        "step": 2, "prompt": "p2", "response": "语",
    }  # fmt: skip


def test_resuming_cuts_the_rows_after_the_restored_step(tmp_path):
    log_steps(tmp_path, [1, 2, 3, 4, 5])
    log_steps(tmp_path, [4, 5, 6], resume_step=3)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert [row["step"] for row in read_rows(tmp_path / name)] == [1, 2, 3, 4, 5, 6]


def test_a_torn_last_line_is_dropped(tmp_path):
    log_steps(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    log_steps(tmp_path, [3], resume_step=2)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


def test_a_malformed_line_is_named_with_its_number(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON"):
        read_rows(tmp_path / "rows.jsonl")


def test_not_a_number_is_valid_json(tmp_path):
    with MetricLogger(tmp_path, total=1, title="sft") as log:
        log(1, {"loss": math.nan, "kl": math.inf})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["loss"] is None and row["kl"] is None


def test_without_a_terminal_plain_lines_are_printed(tmp_path):
    out = io.StringIO()
    log_steps(tmp_path, [1, 10], every=1e9, console=Console(file=out))
    assert out.getvalue() == "sft 10/10  loss 5\n"


def test_the_last_step_is_printed_where_a_stage_ends_early_or_late(tmp_path):
    for steps, last in (([1, 2], "sft 2/10  loss 1\n"), ([10, 11, 12], "sft 12/10  loss 6\n")):
        out = io.StringIO()
        log_steps(tmp_path, steps, every=1e9, console=Console(file=out))
        assert out.getvalue().endswith(last) and out.getvalue().count("\n") == 1 + (steps[0] == 10)


def test_on_a_terminal_the_bar_shows_the_scalars(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    log_steps(tmp_path, [1, 2], console=console)
    assert "2/10" in out.getvalue() and "loss 1" in out.getvalue()


def test_a_full_disk_names_the_file(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with MetricLogger(tmp_path, total=1, title="sft") as log:
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl"):
            log(1, {"loss": 1.0})
        log._files.clear()


def test_phases_add_up_and_laps_start_anew():
    phases = PhaseTimer({"sample": 100.0})
    for _ in range(2):
        with phases("sample"):
            time.sleep(0.002)
    lap = phases.lap()
    assert lap.keys() == {"seconds_sample"} and lap["seconds_sample"] >= 0.004
    assert phases.seconds["sample"] == pytest.approx(100 + lap["seconds_sample"], abs=1e-3)
    assert phases.lap() == {}


def test_mean_and_standard_error_by_hand():
    # mean 3; squared deviations 4+1+0+1+4 = 10; variance 10/4; error sqrt(2.5/5)
    assert mean_stderr([1, 2, 3, 4, 5]) == {"mean": 3.0, "stderr": math.sqrt(0.5), "n": 5}
    assert mean_stderr([0.25]) == {"mean": 0.25, "stderr": 0.0, "n": 1}
    with pytest.raises(ValueError, match="no values"):
        mean_stderr([])


def test_standard_error_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    means = [mean_stderr(rng.random(50))["mean"] for _ in range(2000)]
    assert mean_stderr(rng.random(50))["stderr"] == pytest.approx(np.std(means), rel=0.15)


def test_truncate_keeps_a_file_without_later_rows(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n')
    metrics.truncate(path, 5)
    assert path.read_text() == '{"step": 1}\n'

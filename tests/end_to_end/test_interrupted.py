"""Killed or interrupted anywhere, the same command ends in the same result, bit for bit."""

import random
import signal

import pytest

MOMENTS = [
    ("base", 5, 0.0), ("base", 7, 0.3), ("samples", 2, 0.0), ("sft", 2, 0.2), ("rl", 2, 0.0),
    ("rl", 6, 0.2), ("evaluation", 3, 0.0),
]  # fmt: skip
"""Stage, row of its log, and the most seconds after it."""


def test_killed_at_random_moments_a_run_ends_the_same(
    whole, faulty, posttrain, mini, tmp_path, results, same
):
    draw, inside = random.Random(0), set()
    for stage, row, most in MOMENTS:
        if any(tmp_path.glob(f"artifacts/{stage}-*/DONE")):
            continue
        delay = draw.uniform(0.0, most)
        code, out, err = faulty("SIGKILL", stage, row, delay, mini, "--workdir", tmp_path)
        assert code == -signal.SIGKILL, out + err
        inside |= set() if any(tmp_path.glob(f"artifacts/{stage}-*/DONE")) else {stage}
    assert inside >= {"base", "rl", "samples", "evaluation"}
    code, out, err = posttrain("run", mini, "--workdir", tmp_path)
    assert code == 0, out + err
    same(results(tmp_path))


@pytest.mark.parametrize(("stage", "row"), [("rl", 4), ("samples", 3)])
def test_ctrl_c_saves_says_how_to_continue_and_nothing_is_lost(
    whole, faulty, posttrain, mini, tmp_path, results, same, stage, row
):
    run = whole.without(stage, into=tmp_path / "run")
    code, out, err = faulty("SIGINT", stage, row, 0, mini, "--workdir", run)
    assert code == 130, out + err
    assert "Stopping: saving after this step" in err and "Traceback" not in err
    again = f"stopped and saved at step {row}. Continue with the same command:\n  posttrain run"
    assert again in out
    code, out, err = posttrain("run", mini, "--workdir", run)
    assert code == 0, out + err
    assert f"{stage}: continues in" in out and "base: done before" in out
    same(results(run))


def test_a_verifier_worker_that_dies_costs_nothing(
    whole, faulty, mini, tmp_path, results, same, record
):
    run = whole.without("rl", into=tmp_path / "run")
    code, out, err = faulty("worker", "rl", 2, 0, mini, "--workdir", run)
    assert code == 0, out + err
    metrics = record(run, "rl")["metrics"]
    assert metrics["verifier_deaths"]["mean"] == metrics["verifier_restarts"]["mean"] == 1
    assert metrics["verifier_samples"]["mean"] == 4 * 32 and metrics["masked"]["mean"] == 0
    found = results(run)
    assert found.params["rl"] == whole.results.params["rl"]
    same(found, *(stage for stage in whole.results.rows if stage != "rl"))

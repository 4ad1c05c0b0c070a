"""The stages of mini_others.py: stopped and killed, and as two processes."""

import signal
from pathlib import Path

STOPS = "step_labels:2,process_reward:1,ppo:1,cache:2,on_policy:1"
SHARED = (
    "reference", "dpo", "step_labels", "process_reward", "rerank", "search", "ppo", "cache",
    "on_policy",
)  # fmt: skip
"""What two processes run; the rest one has done."""


def test_stopped_and_killed_they_end_the_same(
    whole_others, posttrain, others, tmp_path, results, same_others
):
    again = [moment.partition(":")[0] for moment in STOPS.split(",")]
    run = whole_others.without(*again, into=tmp_path / "run")
    program = (str(Path(__file__).with_name("stops.py")),)
    code, out, err = posttrain(STOPS, others, "--workdir", run, program=program)
    assert code == -signal.SIGKILL, out + err
    assert out.count("Continue with the same command") == len(again) - 1
    code, out, err = posttrain("run", others, "--workdir", run)
    assert code == 0, out + err
    same_others(results(run))


def test_two_processes_give_the_results_of_one(
    whole_others, posttrain, others, tmp_path, results, near_others
):
    run = whole_others.without(*SHARED, into=tmp_path / "run")
    code, out, err = posttrain("launch", "local", "--processes", "2", others, "--workdir", run)
    assert code == 0, out + err
    near_others(results(run))

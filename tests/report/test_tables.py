"""report.json and the tables, against the numbers the run folder was written with."""

import json
import math

import pytest

from posttrain_jax.report import write_report
from posttrain_jax.report.reader import read_run
from posttrain_jax.report.tables import gain, headline, policy_table, root_of, task_tables


def test_report_json_holds_the_figures_of_the_folder(run_folder):
    folder = run_folder()
    write_report(folder)
    report = json.loads((folder / "report.json").read_text())
    assert list(report) == ["recipe", "preset", "seed", "seconds", "stages"]
    assert (report["recipe"], report["preset"], report["seed"]) == ("r1.py", "tiny", 0)
    # eleven stages as listed in conftest and eight evaluations of 2.5 s
    own = 81.0 + 30.5 + 6.2 + 22.4 + 7.0 + 1.3 + 9.1 + 9.0 + 14.0 + 44.0 + 18.0
    assert report["seconds"] == pytest.approx(own + 8 * 2.5)
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert len(stages) == len(report["stages"]) == 19
    assert all(set(s) == {"name", "kind", "seconds", "metrics"} for s in report["stages"])
    zero = stages["r1_zero"]
    assert (zero["kind"], zero["seconds"]) == ("rl", 30.5)
    # binomial standard error of 0.736 over 512: sqrt(0.194304 / 512) = 0.019481
    assert zero["metrics"]["pass@1"]["mean"] == 0.736
    assert zero["metrics"]["pass@1"]["stderr"] == pytest.approx(0.019481, abs=1e-6)
    assert zero["metrics"]["pass@1"]["n"] == 512
    assert zero["metrics"]["skipped_steps"] == {"mean": 0, "stderr": 0, "n": 26}
    assert stages["kept"]["metrics"]["kept"] == {"mean": 420, "stderr": None, "n": 1536}
    assert stages["evaluate_r1_zero"]["metrics"]["greedy"]["mean"] == 0.826


def test_markdown_rows_are_policies_in_pipeline_order_with_errors(run_folder):
    folder = run_folder()
    write_report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| policy | pass@1 (%)"))
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[start : start + 10]]
    assert [row[0] for row in table[2:]] == [
        "pretrain", "r1_zero", "cold_start", "reasoning_rl", "sft_from_base", "all_scenarios_rl",
        "student_pretrain", "student_distilled",
    ]  # fmt: skip
    assert table[0][:6] == [
        "policy", "pass@1 (%)", "greedy (%)", "maj@4 (%)", "pass@4 (%)", "length (tokens)",
    ]  # fmt: skip
    # sqrt(.178 * .822 / 512) = .0169; sqrt(.771 * .229 / 512) = .0186
    assert table[2][1:3] == ["17.8 ±1.7", "77.1 ±1.9"]
    assert table[2][5] == "13.5 ±0.2"
    assert table[9][1] == "44.1 ±2.2"


def test_gain_is_over_the_policy_the_weights_started_from(run_folder):
    run = read_run(run_folder())
    rows = {row.stage.name: row for row in policy_table(run).rows}
    assert rows["all_scenarios_rl"].root == "pretrain"
    assert rows["student_distilled"].root == "student_pretrain"
    assert gain(run, rows["all_scenarios_rl"], "pass@1") == pytest.approx(0.918 - 0.178)
    assert gain(run, rows["student_distilled"], "greedy") == pytest.approx(0.768 - 0.502)
    assert gain(run, rows["pretrain"], "pass@1") is None


def test_headline_names_base_and_best(run_folder):
    assert headline(read_run(run_folder())) == (
        "pass@1 goes from 17.8 ± 1.7 % (pretrain) to 91.8 ± 1.2 % (all_scenarios_rl), "
        "the highest of 8 evaluated policies."
    )


def test_headline_when_nothing_got_better(run_folder):
    stages = [
        ("base", "pretrain", {}, 1.0, (0.5, 0.5, 10.0, 1.0)),
        ("tuned", "sft", {"policy": "base"}, 1.0, (0.25, 0.5, 10.0, 1.0)),
    ]
    said = headline(read_run(run_folder(stages=stages)))
    assert said == "pass@1 is highest at the start: 50.0 ± 2.2 % for base, of 2 evaluated policies."


def test_tasks_stand_in_their_own_tables(run_folder):
    run = read_run(run_folder())
    assert all("/" not in c for c in policy_table(run).columns)
    first, second = task_tables(run)
    assert (first.title, second.title) == ("pass@1", "greedy")
    assert first.columns == ("pass@1/arithmetic", "pass@1/logic", "pass@1/word_problem")
    assert first.rows[1].metrics["pass@1/logic"].mean == pytest.approx(0.736 - 0.1)


def test_second_evaluation_of_a_policy_hides_nothing(run_folder):
    folder = run_folder(stages=[("base", "pretrain", {}, 1.0, (0.5, 0.5, 10.0, 1.0))])
    record = json.loads((folder / "run.json").read_text())
    other = folder / "artifacts" / "other_set-00000000ffff"
    other.mkdir()
    (other / "DONE").touch()
    metrics = {"pass@1": {"mean": 0.25, "stderr": 0.01, "n": 8}}
    (other / "artifact.json").write_text(json.dumps({"metrics": metrics}))
    record["order"].append("other_set")
    record["stages"]["other_set"] = {
        "kind": "evaluate", "inputs": {"policy": "base"}, "status": "done",
        "path": f"artifacts/{other.name}", "id": "00000000ffff",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    (row,) = policy_table(read_run(folder)).rows
    assert row.metrics["pass@1"].mean == 0.5
    assert row.metrics["pass@1 (other_set)"].mean == 0.25


def test_a_ring_of_inputs_ends(run_folder):
    stages = [("a", "sft", {"policy": "b"}, 1.0, None), ("b", "sft", {"policy": "a"}, 1.0, None)]
    folder = run_folder(stages=stages)
    run = read_run(folder)
    assert {root_of(run, s) for s in run.stages} == {"a", "b"}
    assert write_report(folder).exists()


def test_report_json_is_strict(run_folder):
    folder = run_folder()
    path = next((folder / "artifacts").glob("kept-*/artifact.json"))
    artifact = json.loads(path.read_text())
    artifact["metrics"] = {"kept": {"mean": math.nan}, "rate": 0.5, "odd": "text", "none": None}
    path.write_text(json.dumps(artifact))
    write_report(folder)
    text = (folder / "report.json").read_text()
    assert "NaN" not in text
    kept = next(s for s in json.loads(text)["stages"] if s["name"] == "kept")
    assert kept["metrics"] == {"rate": {"mean": 0.5, "stderr": None, "n": None}}


def test_counters_of_an_evaluation_are_no_columns(run_folder):
    folder = run_folder()
    path = next((folder / "artifacts").glob("evaluate_pretrain-*/artifact.json"))
    artifact = json.loads(path.read_text())
    artifact["metrics"] |= {"skipped_prompts": {"mean": 7, "stderr": 0, "n": 1}}
    artifact["metrics"] |= {"language/en": {"mean": 0.5, "stderr": 0.1, "n": 9}}
    path.write_text(json.dumps(artifact))
    run = read_run(folder)
    assert "skipped_prompts" not in policy_table(run).columns
    assert [(t.title, t.by) for t in task_tables(run)][-1] == ("language", "language")
    write_report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    assert "| evaluate_pretrain | skipped prompts | 7 |  |" in lines

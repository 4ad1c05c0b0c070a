"""Evaluations by domain: columns, cells, the page, the terminal, and what a run folder keeps."""

import json
import re

import pytest

from posttrain_jax.report import terminal
from posttrain_jax.report.domains import by_domain, cell, heading, interval
from posttrain_jax.report.markdown import render_markdown
from posttrain_jax.report.page import render_page
from posttrain_jax.report.reader import read_run
from posttrain_jax.report.records import Input, Metric, Run, Stage
from posttrain_jax.report.tables import between, policy_table, report_dict, task_tables

NAMES = ("pass@1", "greedy", "pass@2", "pass@16", "maj@2", "maj@16", "best@16/rm")
METRICS = {
    name + end: Metric(0.5, 0.02, n, 0.46, 0.541)
    for end, n in (("", 96), ("/logic", 32), ("/sums", 64)) for name in NAMES
} | {"length": Metric(27.0, 0.2, 96), "verifier_failures": Metric(0.0, 0.0, 1)}  # fmt: skip


@pytest.fixture
def stage():
    inputs = (Input("policy", "tuned"),)
    return Stage("exam", "evaluate", status="done", metrics=METRICS, inputs=inputs)


def test_lines_are_domains_and_columns_all_accuracies(stage):
    (table,) = by_domain(Run("here", stages=(stage, Stage("old", "evaluate"))))
    assert table.columns == NAMES
    assert [(name, n) for name, n, _ in table.lines] == [("all", 96), ("logic", 32), ("sums", 64)]
    assert heading("best@16/rm").label == "best of 16 rm" and heading("maj@2").unit == "%"
    assert cell("maj@2", METRICS["maj@2/sums"]) == "50.0 ±2.0 [46.0, 54.1]"
    assert cell("maj@2", None) == "–" and interval("length", METRICS["length"]) == ""
    without = {name: Metric(m.mean, m.stderr, m.n) for name, m in METRICS.items()}
    assert not by_domain(Run("here", stages=(Stage("old", "evaluate", metrics=without),)))


def test_the_tables_over_policies_have_one_and_the_most(stage):
    run = Run("here", stages=(Stage("tuned", "sft"), stage))
    assert policy_table(run).columns[:4] == ("pass@1", "greedy", "maj@16", "pass@16")
    assert [t.title for t in task_tables(run)] == ["pass@1", "greedy"]
    names = ["pass@1", "maj@2", "maj@4", "maj@16", "maj@4 (other)", "best@2/a", "best@4/a", "kl"]
    assert between(names) == {"maj@2", "maj@4", "best@2/a"}


def test_page_and_markdown(stage):
    run = Run("here", stages=(Stage("tuned", "sft"), stage))
    page = render_page(run)
    assert re.search(r"<h3>exam.*?best of 16 rm.*?logic.*?\[46\.0, 54\.1\]", page, re.S)
    assert "| logic | 32 | 50.0 ±2.0 \\[46.0, 54.1\\] |" in render_markdown(run)


def test_the_terminal_shows_every_figure_once(stage, capsys):
    terminal.print_evaluation(stage)
    out = capsys.readouterr().out
    assert out.count("[46.0, 54.1]") == 3 * 5  # of 2 and 16 samples only 16
    assert "best of 16 rm" in out and "maj@2" not in out
    assert "length 27.0 ±0.2 tokens, verifier failures 0" in out


def test_intervals_are_read_and_written_again(run_folder):
    folder = run_folder()
    path = next((folder / "artifacts").glob("evaluate_r1_zero-*/artifact.json"))
    artifact = json.loads(path.read_text())
    artifact["metrics"]["pass@1"] |= {"low": 0.7, "high": 0.77}
    path.write_text(json.dumps(artifact))
    stages = {s["name"]: s["metrics"] for s in report_dict(read_run(folder))["stages"]}
    found = stages["evaluate_r1_zero"]["pass@1"]
    assert (found["low"], found["high"]) == (0.7, 0.77)
    assert set(stages["evaluate_r1_zero"]["greedy"]) == {"mean", "stderr", "n"}


def test_artifacts_of_another_run_are_no_notice(run_folder):
    folder = run_folder(stages=[("exam", "evaluate", {"policy": "tuned"}, 1.0, None)])
    record = json.loads((folder / "run.json").read_text())
    assert "no stage of this run" in str(read_run(folder).notices)
    record["given"] = {"tuned": {"kind": "sft", "id": "", "path": "elsewhere"}}
    (folder / "run.json").write_text(json.dumps(record))
    assert "no stage of this run" not in str(read_run(folder).notices)

"""Unfinished, damaged and hostile run folders: the report says what is missing, never raises."""

import json
import shutil

import pytest

from posttrain_jax.report import write_report
from posttrain_jax.report.reader import number, read_run
from posttrain_jax.report.records import Run, Stage


def unfinished(folder, running: str):
    """Turn a finished run into one killed while `running` was writing its twelfth step."""
    record = json.loads((folder / "run.json").read_text())
    after = record["order"][record["order"].index(running) :]
    for name in after:
        stage = record["stages"][name]
        stage |= {"status": "running" if name == running else "pending", "seconds": None}
        if name != running:
            shutil.rmtree(folder / stage["path"])
    artifact = folder / record["stages"][running]["path"]
    (artifact / "DONE").unlink()
    (artifact / "artifact.json").unlink()
    lines = (artifact / "metrics.jsonl").read_text().splitlines()[:12]
    (artifact / "metrics.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    (folder / "run.json").write_text(json.dumps(record | {"seconds": None}))
    return folder


def stage_of(run: Run, name: str) -> Stage:
    stage = run.stage(name)
    assert stage is not None
    return stage


def test_unfinished_run_says_how_far_it_is(run_folder):
    folder = unfinished(run_folder(), "reasoning_rl")
    run = read_run(folder)
    stage = stage_of(run, "reasoning_rl")
    assert stage.status == "running"
    assert [row["step"] for row in stage.steps] == list(range(11))
    assert run.seconds == pytest.approx(81.0 + 30.5 + 6.2 + 3 * 2.5)
    page = write_report(folder).read_text()
    assert "6 of 19 stages are done" in page
    assert "reasoning_rl is running (step 10)." in page
    assert "1 line is no JSON object (first: line 12)" in page


def test_phases_of_a_running_stage_are_the_sums_of_its_steps(run_folder):
    run = read_run(unfinished(run_folder(), "reasoning_rl"))
    phases = stage_of(run, "reasoning_rl").phases
    assert phases == pytest.approx({"sample": 11 * 0.6, "verify": 11 * 0.01, "update": 11 * 0.8})


def test_step_written_twice_keeps_the_later_line(run_folder):
    folder = run_folder()
    path = next((folder / "artifacts").glob("reasoning_rl-*/metrics.jsonl"))
    with path.open("a") as file:
        file.write('{"step": 7, "accuracy": 0.125}\n{"step": 8, "accuracy": NaN}\n')
    run = read_run(folder)
    steps = {row["step"]: row for row in stage_of(run, "reasoning_rl").steps}
    assert len(steps) == 26
    assert steps[7.0] == {"step": 7.0, "accuracy": 0.125}
    assert steps[8.0] == {"step": 8.0}
    assert any("accuracy is not a finite number in 1 of 28 steps" in n for n in run.notices)


@pytest.mark.parametrize("missing", ["run.json", "config.json", "artifacts"])
def test_missing_piece_is_named(run_folder, missing):
    folder = run_folder()
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = write_report(folder).read_text()
    said = "its artifact folder is missing" if missing == "artifacts" else f"{missing} is missing"
    assert said in page


def test_without_run_json_the_artifacts_make_the_report(run_folder):
    folder = run_folder()
    (folder / "run.json").unlink()
    write_report(folder)
    stages = {s["name"]: s for s in json.loads((folder / "report.json").read_text())["stages"]}
    assert stages["reasoning_rl"]["metrics"]["pass@1"]["mean"] == 0.904
    assert stages["reasoning_rl"]["kind"] == "rl"


def test_empty_folder_has_a_report(tmp_path):
    page = write_report(tmp_path).read_text()
    assert "There are no stages" in page
    assert json.loads((tmp_path / "report.json").read_text())["stages"] == []


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the --workdir"):
        write_report(tmp_path / "nowhere")


BAD = ["", "[]", "null", "{", "3", '{"stages": 3, "order": {}}', '"\ud800"', "[" * 5000]


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("name", ["run.json", "config.json", "artifact.json", "metrics.jsonl"])
def test_no_damage_to_a_file_is_fatal(run_folder, name, text):
    folder = run_folder(steps=3)
    for path in folder.rglob(name):
        path.write_bytes(text.encode("utf-8", "surrogatepass") + b"\xff")
    write_report(folder)
    json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    "value", [None, True, -1, 1e308, -1e-320, 10**400, "<b>", [], [[1]], {"a": {"b": 1}}]
)
def test_no_value_of_a_field_is_fatal(run_folder, value):
    folder = run_folder(steps=3)

    def replaced(node, key=None):
        if isinstance(node, dict):
            return {k: replaced(v, k) for k, v in node.items()}
        return node if key in ("path", "kind") else value

    for path in [*folder.rglob("artifact.json"), folder / "config.json"]:
        path.write_text(json.dumps(replaced(json.loads(path.read_text()))))
    for path in folder.rglob("*.jsonl"):
        rows = [json.dumps(replaced(json.loads(line))) for line in path.read_text().splitlines()]
        path.write_text("\n".join(rows))
    record = json.loads((folder / "run.json").read_text())
    record["stages"] = {name: replaced(stage) for name, stage in record["stages"].items()}
    (folder / "run.json").write_text(json.dumps(record))
    write_report(folder)
    json.loads((folder / "report.json").read_text())


def test_wrong_parent_is_noticed(run_folder):
    folder = run_folder()
    path = next((folder / "artifacts").glob("cold_start-*/artifact.json"))
    artifact = json.loads(path.read_text())
    artifact["inputs"]["policy"]["id"] = "feedfacecafe"
    path.write_text(json.dumps(artifact))
    (notice,) = read_run(folder).notices
    assert notice.startswith("cold_start: made from pretrain feedfacecafe, but the run lists")


def test_number_takes_only_finite_numbers():
    assert [number(v) for v in (1, 0.5, True, "1", None, float("inf"), float("nan"), 10**400)] == [
        1.0, 0.5, None, None, None, None, None, None,
    ]  # fmt: skip

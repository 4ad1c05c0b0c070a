"""Running stages, with tiny pure-Python ones: killed anywhere, the same call ends in the same."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain_jax import artifacts, interrupt, pipeline
from posttrain_jax.metrics import MetricLogger, read_rows
from posttrain_jax.pipeline import RunError, run_recipe
from posttrain_jax.recipe import MESH, RecipeError

STEPS = 7
CONFIG = {
    "recipe": "toy",
    "preset": "tiny",
    "seed": 3,
    "tokenizer": "tiny",
    "tokenizer_options": {},
    "chat_template": "",
    "template_options": {},
    "mesh": MESH,
    "sources": "",
    "notes": "",
    "stages": {
        "base": {"kind": "walk", "inputs": {}, "factor": 3, "save_every": 2},
        "left": {"kind": "walk", "inputs": {"start": "base"}, "factor": 5, "save_every": 3},
        "join": {"kind": "add", "inputs": {"a": "base", "b": "left"}},
    },
    "order": ("base", "left", "join"),
}


@pytest.fixture(autouse=True)
def one_code_version(monkeypatch):
    monkeypatch.setattr(artifacts, "code_version", lambda: "code")


def walk(config, workdir, inputs):
    """x <- factor x + step (mod 1000003), STEPS times, saved every few steps."""
    state = workdir / "state.json"
    saved = json.loads(state.read_text()) if state.exists() else None
    first = int((inputs["start"].path / "out.txt").read_text()) if inputs else config.seed
    step, x = saved or (0, first)
    with MetricLogger(workdir, STEPS, "walk", resume_step=step) as log:
        while step < STEPS:
            step, x = step + 1, (config.factor * x + step + 1) % 1000003
            log(step, {"loss": x})
            if interrupt.requested() or step % config.save_every == 0:
                artifacts.write_text(state, json.dumps([step, x]))
            if interrupt.requested():
                raise interrupt.Interrupted(step)
    artifacts.write_text(workdir / "out.txt", str(x))
    return artifacts.finish(workdir, metrics={"loss": x})


def add(config, workdir, inputs):
    """The sum of two inputs."""
    total = sum(int((inputs[role].path / "out.txt").read_text()) for role in "ab")
    artifacts.write_text(workdir / "out.txt", str(total))
    return artifacts.finish(workdir, metrics={"loss": total})


def run(workdir, config=CONFIG, **options):
    stages = {"walk": walk, "add": add}
    options = {"load_stage": stages.__getitem__, "say": lambda line: None, **options}
    return run_recipe(config, workdir, fingerprint=lambda settings: ("tok", "tmpl"), **options)


def results(workdir):
    """All that must not depend on interruptions: files, metrics, records without times."""
    found = {}
    for folder in sorted((workdir / "artifacts").iterdir()):
        record = json.loads((folder / "artifact.json").read_text())
        rows = [{**row, "seconds": 0} for row in read_rows(folder / "metrics.jsonl")]
        out = (folder / "out.txt").read_text(), (folder / "DONE").read_text()
        found[folder.name] = ({**record, "seconds": 0}, rows, out)
    return found


def by_hand():
    def steps(x, factor):
        for step in range(1, STEPS + 1):
            x = (factor * x + step) % 1000003
        return x

    base = steps(3, 3)
    return base, steps(base, 5)


def test_a_run_holds_what_the_contract_says(tmp_path):
    stages = run(tmp_path)
    base, left = by_hand()
    assert [s.artifact.metrics["loss"]["mean"] for s in stages] == [base, left, base + left]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["order"] == ["base", "left", "join"]
    assert record.keys() >= {"recipe", "preset", "seed", "versions", "device", "stages", "seconds"}
    row = record["stages"]["join"]
    assert row["inputs"] == {"a": "base", "b": "left"} and row["status"] == "done"
    assert (tmp_path / row["path"] / "DONE").read_text().strip() == row["id"]
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3
    assert [a.stage for a in artifacts.lineage(stages[2].artifact)] == ["base", "left", "join"]


def test_finished_stages_are_skipped(tmp_path):
    run(tmp_path)
    before = results(tmp_path)

    def none(kind):
        raise AssertionError(f"{kind} ran again")

    lines = []
    stages = run(tmp_path, load_stage=none, say=lines.append)
    assert results(tmp_path) == before
    assert [line.split(" (")[0] for line in lines] == [f"{n}: done before" for n in CONFIG["order"]]
    assert not any(stage.reused for stage in stages)


def test_only_what_follows_a_changed_stage_is_made_again(tmp_path):
    stages = {s.record.stage: s.record.id for s in run(tmp_path / "a")}
    changed = json.loads(json.dumps(CONFIG))
    changed["stages"]["left"]["factor"] = 6
    again = {s.record.stage: s.record.id for s in run(tmp_path / "b", changed)}
    assert {name for name in stages if stages[name] != again[name]} == {"left", "join"}


def test_a_run_folder_of_another_config_is_refused(tmp_path):
    run(tmp_path)
    for key, value in (("factor", 6), ("save_every", 1)):
        changed = json.loads(json.dumps(CONFIG))
        changed["stages"]["left"][key] = value
        changed["mesh"]["fsdp"] = 2
        if key == "factor":
            with pytest.raises(
                RunError, match=r"another config.*\n.*left\.factor: here 5, now 6\n"
            ):
                run(tmp_path, changed)
        else:
            run(tmp_path, changed)


def test_recipes_share_stages_through_a_store(tmp_path):
    store = tmp_path / "store"
    run(tmp_path / "one", store=store)
    other = json.loads(json.dumps(CONFIG))
    other["stages"]["renamed"] = other["stages"].pop("base")
    other["stages"]["left"] |= {"inputs": {"start": "renamed"}, "factor": 7}
    other["order"] = ["renamed", "left"]
    stages = run(tmp_path / "two", other, store=store)
    assert [stage.reused for stage in stages] == [True, False]
    assert stages[0].artifact.stage == "renamed"
    links = list((tmp_path / "two" / "artifacts").iterdir())
    assert all(link.is_symlink() and not os.path.isabs(os.readlink(link)) for link in links)
    assert len(list(store.iterdir())) == 4
    assert [a.stage for a in artifacts.lineage(stages[1].artifact)] == ["base", "left"]


def test_a_missing_family_stops_before_anything_starts(tmp_path):
    config = json.loads(json.dumps(CONFIG))
    config["stages"]["join"]["model"] = "no_such_family:8b"
    with pytest.raises(RecipeError, match=r"no_such_family\.py does not exist"):
        run(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_stage_must_return_its_artifact(tmp_path):
    with pytest.raises(TypeError, match="must return"):
        run(tmp_path, load_stage=lambda kind: lambda config, workdir, inputs: {"loss": 1.0})


def test_an_unknown_tokenizer_is_a_clear_error():
    with pytest.raises(RecipeError, match=r"tokenizer='nowhere\.model'.*no tokenizer file"):
        pipeline.fingerprint({"tokenizer": "nowhere.model", "chat_template": ""})


# ---- as processes of their own, to be killed

DRIVER = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
toy.drive(*sys.argv[2:])
"""


def drive(workdir, at, sent):
    """Run; the signal `sent` reaches this process at its `at`-th sync to disk."""
    left = [int(at)]
    sync = os.fsync

    def counted(descriptor):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), getattr(signal, sent))
        sync(descriptor)

    os.fsync = counted
    artifacts.code_version = lambda: "code"
    try:
        with interrupt.watching():
            run(Path(workdir))
    except interrupt.Interrupted as stop:
        print(stop)
        sys.exit(130)
    except RunError as error:
        print(error)
        sys.exit(2)


def start(workdir, at, sent="SIGKILL"):
    root = Path(pipeline.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", DRIVER, __file__, str(workdir), str(at), sent],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


def test_killed_later_and_later_a_run_ends_the_same(tmp_path):
    run(tmp_path / "whole")
    for at in range(1, 200, 2):
        done = start(tmp_path / "killed", at)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        pytest.fail("the run never finished")
    assert at > 8
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_ctrl_c_saves_and_the_same_command_continues(tmp_path):
    run(tmp_path / "whole")
    first = start(tmp_path / "stopped", 11, "SIGINT")
    assert first.returncode == 130 and "stopped" in first.stdout
    assert "Stopping: saving" in first.stderr
    assert start(tmp_path / "stopped", 10**6).returncode == 0
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


def test_a_folder_in_use_is_refused_and_free_after_the_process(tmp_path):
    with pipeline.locked(tmp_path):
        second = start(tmp_path, 10**6)
        assert second.returncode == 2
        assert f"in use by another posttrain run (process {os.getpid()})" in second.stdout
    assert start(tmp_path, 10**6).returncode == 0


def test_artifacts_of_another_run_stand_in_for_stages(tmp_path):
    """The run of two stages whose input is the first run's: the same ids, the same results."""
    first = {s.record.stage: s for s in run(tmp_path / "a")}
    base = first["base"].artifact
    part = {**CONFIG, "order": ("left", "join")}
    lines = []
    stages = run(tmp_path / "b", part, given={"base": base}, say=lines.append)
    assert [s.record.id for s in stages] == [first[n].record.id for n in ("left", "join")]
    assert stages[1].artifact.metrics == first["join"].artifact.metrics
    said = json.loads((tmp_path / "b" / "run.json").read_text())
    assert said["given"] == {"base": {"kind": "walk", "id": base.id, "path": str(base.path)}}
    assert set(said["stages"]) == {"left", "join"} and lines[0].startswith("left: done in")
    assert "given" not in json.loads((tmp_path / "a" / "run.json").read_text())

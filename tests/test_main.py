"""The command: what it prints, its exit codes, one line for the user's mistakes."""

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from posttrain_jax import artifacts, main, registry, runtime, settings
from posttrain_jax.recipe import PACKAGE, RecipeError
from posttrain_jax.verifiers.pool import Pool

RECIPE = '''"""A recipe for tests."""
from ml_collections import ConfigDict
from posttrain_jax.recipe import preset

PRESETS = ("tiny", "671b")

def get_config(arg=""):
    name = preset(arg, choices=PRESETS)
    size = "tiny:base" if name == "tiny" else "no_such_family:671b"
    needed = {needed}
    return ConfigDict(dict(
        preset=name, tokenizer="tiny", sources="a paper", order=("base", "tuned"),
        stages=dict(
            base=dict(kind="pretrain", **needed["pretrain"] | dict(model=size)),
            tuned=dict(kind="sft", inputs=dict(policy="base"), **needed["sft"]),
        ),
    ))
'''


def required(kind):
    """A value for every setting that a stage needs and has no default for."""
    defaults = settings.stage_defaults(PACKAGE / "stages" / f"{kind}.py") or {}
    return {key: 4 for key, value in defaults.items() if value is ...}


def toy_stage(config, workdir, inputs):
    return artifacts.finish(workdir, metrics={"loss": {"mean": 0.5, "stderr": 0.25, "n": 4}})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {kind: required(kind) for kind in ("pretrain", "sft")}
    (tmp_path / "mine.py").write_text(RECIPE.replace("{needed}", repr(needed)))
    return tmp_path


@pytest.fixture
def toy(folder, monkeypatch):
    """`run` with stages that do nothing."""
    monkeypatch.setattr(registry, "load", lambda *name: types.SimpleNamespace(run=toy_stage))
    monkeypatch.setattr(runtime, "use_cache", lambda: None)
    monkeypatch.setattr(artifacts, "code_version", lambda: "code")
    report = types.SimpleNamespace(write_report=lambda path: path / "report.html")
    monkeypatch.setitem(sys.modules, "posttrain_jax.report", report)
    return folder


def test_ls_shows_presets_stages_source_and_what_is_missing(folder, capsys):
    (folder / "broken.py").write_text("def get_config(arg=''):\n    raise KeyError('oh')\n")
    assert main.main(["ls", "--json"]) == 0
    rows = {row["recipe"]: row for row in json.loads(capsys.readouterr().out)}
    mine = rows["mine.py"]
    assert (mine["summary"], mine["source"]) == ("A recipe for tests.", "a paper")
    assert [p["stages"] for p in mine["presets"]] == [["base", "tuned"]] * 2
    assert mine["presets"][0]["missing"] == []
    assert "no_such_family.py does not exist" in mine["presets"][1]["missing"][0]
    assert rows["broken.py"]["error"] == "KeyError: 'oh'"
    assert main.main(["ls"]) == 0
    assert "base > tuned" in capsys.readouterr().out


def test_ls_imports_no_jax(folder):
    code = (
        "import sys; from posttrain_jax.main import main; main(['ls']); print('jax' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "mine.py" in run.stdout and run.stdout.endswith("False\n"), run.stderr


def test_cp_copies_and_never_overwrites(folder, capsys):
    assert main.main(["cp", "mine:tiny", "copy.py"]) == 0
    assert (folder / "copy.py").read_text() == (folder / "mine.py").read_text()
    assert main.main(["cp", "mine", "copy.py"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_run_ends_with_a_table_and_the_report(toy, capsys):
    assert main.main(["run", "mine", "--config.seed=4"]) == 0
    out = capsys.readouterr().out
    assert "loss 0.5 ± 0.250" in out and "tuned" in out
    assert out.endswith("report: runs/mine-tiny-seed4/report.html\n")
    assert json.loads((toy / "runs/mine-tiny-seed4/run.json").read_text())["seed"] == 4
    assert main.main(["run", "mine", "--config.seed=4"]) == 0
    assert "base: done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "mien"], "Did you mean 'mine.py'"),
        (["run", "mine:tinny"], "Did you mean 'tiny'"),
        (["run", "mine", "--config.stages.tuned.batch_sise=8"], "mean 'stages.tuned.batch_size'"),
        (["run", "mine", "--config.seed"], "has no value"),
        (["run", "mine", "--workdri", "x"], "unknown argument '--workdri'"),
        (["run", "mine:671b"], "models/no_such_family.py does not exist"),
        (["ls", "--config.seed=1"], "ls takes no settings"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_exit_code_2(toy, capsys, words, message):
    assert main.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert not (toy / "runs").exists()


def test_a_run_folder_of_another_config_is_refused(toy, capsys):
    assert main.main(["run", "mine", "--workdir", "w"]) == 0
    assert main.main(["run", "mine", "--workdir", "w", "--config.seed", "1"]) == 2
    assert "seed: here 0, now 1" in capsys.readouterr().err


def test_plan_counts_without_running(folder, capsys):
    assert main.main(["plan", "mine", "--json", "--config.stages.tuned.batch_size=6"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in made["stages"]] == ["base", "tuned"]
    assert made["stages"][0]["parameters"] > 10_000
    assert made["stages"][1]["model"] == "tiny:base"
    assert made["stages"][1]["sizes"]["rows a batch"] == 6
    assert main.main(["plan", "mine:671b"]) == 0
    out = capsys.readouterr().out
    assert "└─ tuned [sft]" in out and "no_such_family.py does not exist" in out


def test_bugs_keep_their_traceback(folder, monkeypatch):
    def bug(*args):
        return int("not a number")

    monkeypatch.setattr(main, "recipe_paths", bug)
    with pytest.raises(ValueError, match="invalid literal"):
        main.main(["ls"])


def test_only_deliberate_errors_are_explained():
    with pytest.raises(RecipeError) as caught:
        main.find_recipe("no_such_recipe")
    assert "no recipe 'no_such_recipe'" in main.explain(caught.value)
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/x/run.json")
    assert main.explain(full).startswith("cannot write /runs/x/run.json: No space left on device")
    library = RuntimeError("UNKNOWN: write failed:\nNo space left on device [file /runs/x/0]")
    assert main.explain(library).startswith("No space left on device [file /runs/x/0]. What is")
    assert main.explain(KeyError("x")) is None
    pool = Pool({}, workers=1)
    pool.close()
    with pytest.raises(RuntimeError) as ours:
        pool.submit([], [])
    assert main.explain(ours.value) == "the verifier pool is closed"
    with pytest.raises(RuntimeError) as others:
        raise RuntimeError("a library's")
    assert main.explain(others.value) is None


def test_a_stages_own_error_names_the_stage(toy, capsys, monkeypatch):
    def stage(config, workdir, inputs):
        main.find_recipe("nowhere")

    monkeypatch.setattr(registry, "load", lambda *name: types.SimpleNamespace(run=stage))
    assert main.main(["run", "mine"]) == 2
    assert "no recipe 'nowhere'" in (err := capsys.readouterr().err) and "(in stage 'base')" in err


def test_a_run_folder_below_a_file_is_a_clear_error(toy, capsys):
    (toy / "file").touch()
    assert main.main(["run", "mine", "--workdir", "file/run"]) == 2
    assert "cannot write file/run: Not a directory" in capsys.readouterr().err


def test_doctor_reports_every_check(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    main.main(["doctor", "--json"])
    found = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"python", "jax", "devices", "allocator", "compilation cache"} <= found.keys()
    assert found["python"]["detail"].startswith(".".join(map(str, sys.version_info[:3])))
    assert str(tmp_path) in found["compilation cache"]["detail"]


SCRIPT = """
import os, signal, sys, types
from posttrain_jax import artifacts, interrupt, main, registry, runtime

def stage(config, workdir, inputs):
    if config.kind == "sft" and len(sys.argv) > 2:
        os.kill(os.getpid(), signal.SIGINT)
    if interrupt.requested():
        raise interrupt.Interrupted(3)
    return artifacts.finish(workdir, metrics={"loss": 1.0})

registry.load = lambda *name: types.SimpleNamespace(run=stage)
runtime.use_cache = lambda: None
artifacts.code_version = lambda: "code"
report = types.SimpleNamespace(write_report=lambda path: path / "report.html")
sys.modules["posttrain_jax.report"] = report
sys.exit(main.main(["run", sys.argv[1]]))
"""


def test_ctrl_c_says_how_to_continue(folder):
    def start(*words):
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, "mine", *words],
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)}, capture_output=True, text=True,
        )  # fmt: skip

    first = start("interrupt")
    assert first.returncode == 130, first.stderr
    assert "saved at step 3. Continue with the same command:\n  posttrain run mine" in first.stdout
    second = start()
    assert second.returncode == 0 and "base: done before" in second.stdout
    assert "tuned: continues in runs/mine-tiny/artifacts/tuned-" in second.stdout


def test_the_command_restarts_itself_with_the_allocator(folder):
    code = (
        "import os, sys\n"
        "from posttrain_jax import main, runtime\n"
        "runtime.has_accelerator = lambda: False\n"
        "main.run = lambda args: print(os.environ.get('GLIBC_TUNABLES'), args.recipe)\n"
        "main.main()\n"
    )
    (folder / "command.py").write_text(code)
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    if runtime.tuned_environment({"JAX_PLATFORMS": "cpu"}) is None:
        pytest.skip("not a glibc system")
    run = subprocess.run(
        [sys.executable, str(folder / "command.py"), "run", "mine"],
        env={**environment, "PYTHONPATH": str(PACKAGE.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout == "glibc.malloc.hugetlb=1 mine\n", run.stderr


def test_default_workdir_names_recipe_preset_and_seed():
    config = {"recipe": "r1", "preset": "tiny", "seed": 0}
    assert main.default_workdir(config) == Path("runs/r1-tiny")
    assert main.default_workdir({**config, "seed": 2}) == Path("runs/r1-tiny-seed2")

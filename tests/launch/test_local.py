"""The local launcher: command lines, shares of the cores, and what it does when a child fails."""

import os
import signal
import subprocess
import sys
import time

import pytest

from posttrain_jax import main
from posttrain_jax.launch import local
from posttrain_jax.recipe import PACKAGE


def test_render_gives_each_process_its_place():
    words = ["r1.py:tiny", "--workdir", "runs/a b", "--config.seed=1"]
    lines = local.render(words, 2, 3, "127.0.0.1:4711", [[0, 1], [2, 3]])
    assert lines[1] == [
        sys.executable, "-m", "posttrain_jax.launch._worker", "--coordinator", "127.0.0.1:4711",
        "--processes", "2", "--process", "1", "--devices", "3", "--cpus", "2,3",
        "--", "run", "r1.py:tiny", "--workdir", "runs/a b", "--config.seed=1",
    ]  # fmt: skip
    assert lines[0] == [w.replace("2,3", "0,1") if "," in w else w for w in lines[0]]
    assert lines[0][lines[0].index("--process") + 1] == "0"
    assert "--cpus" not in local.render(words, 1, 1, "127.0.0.1:1", [[]])[0]


@pytest.mark.parametrize(
    ("cpus", "processes", "shares"),
    [
        ([0, 1], 2, [[0], [1]]),
        ([0, 2, 4, 5, 7], 2, [[0, 2], [4, 5, 7]]),
        ([3, 5], 5, [[3], [5], [3], [5], [3]]),
        ([], 2, [[], []]),
    ],
)
def test_the_cores_are_shared_out(cpus, processes, shares):
    assert local.split_cpus(cpus, processes) == shares


def test_dry_run_prints_the_command_lines_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["r1.py", "--processes", "3", "--devices-per-process", "2", "--dry-run"]
    assert main.main(["launch", "local", *words, "--config.seed=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and not list(tmp_path.iterdir())
    for index, line in enumerate(lines):
        assert f"--processes 3 --process {index} --devices 2" in line
        assert line.endswith("-- run r1.py --config.seed=1")
    assert len({line.split("--coordinator ")[1].split()[0] for line in lines}) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r1.py", "--processes", "0"], "must be at least 1"),
        (["r2.py"], "no recipe 'r2.py'"),
        (["r1.py", "--config.sed=1"], "Did you mean 'seed'?"),
        (["r1.py", "--proceses=2"], "unknown argument '--proceses=2'"),
    ],
)
def test_mistakes_are_said_before_anything_starts(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main.main(["launch", "local", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def python(code):
    """The command line of a small program."""
    return [sys.executable, "-c", "import os, signal, sys, time\n" + code]


FOREVER = python("time.sleep(1000)")


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.3)


def test_all_well(tmp_path, capfd):
    lines = [python(f"print('this is', {index})") for index in range(3)]
    assert local.submit(lines, tmp_path / "logs") == 0
    assert capfd.readouterr().out == "this is 0\n"
    assert (tmp_path / "logs" / "process-2.log").read_text() == "this is 2\n"


@pytest.mark.parametrize(
    ("death", "code", "how"),
    [
        ("sys.exit(3)", 3, "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "signal SIGKILL"),
    ],
)
def test_the_others_are_stopped_and_the_log_is_shown(tmp_path, capfd, hasty, death, code, how):
    (tmp_path / "process-1.log").write_text("of another day\n")
    failing = python(f"print('last words', flush=True)\n{death}")
    assert local.submit([FOREVER, failing, FOREVER], tmp_path) == code
    err = capfd.readouterr().err
    assert f"process 1 of 3 ended with {how}" in err and "the same command continues" in err
    assert "  last words" in err and "another day" not in err


def test_a_message_that_all_give_is_shown_once(tmp_path, capfd):
    lines = [python("time.sleep(0.5); print('posttrain: wrong'); sys.exit(2)")] * 2
    assert local.submit(lines, tmp_path) == 2
    captured = capfd.readouterr()
    assert captured.out == "posttrain: wrong\n" and captured.err == ""


LAUNCHER = """
import sys
from pathlib import Path
from posttrain_jax.launch import local
child = [sys.executable, "-c", Path(sys.argv[1]).read_text()]
sys.exit(local.submit([child, child], Path(sys.argv[2])))
"""
PATIENT = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
print("ready", flush=True)
end = time.monotonic() + {life}
while time.monotonic() < end and not (asked and {stops}):
    time.sleep(0.01)
time.sleep(0.3)
print("asked", len(asked), flush=True)
sys.exit(130)
"""


def launch(tmp_path, stops):
    """A launcher with two children that wait to be asked, once they are ready."""
    (tmp_path / "child.py").write_text(PATIENT.format(life=60, stops=stops))
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path / "child.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "process-1.log"
    assert launcher.stdout is not None and launcher.stdout.readline() == "ready\n"
    while not log.exists() or "ready" not in log.read_text():
        time.sleep(0.01)
    return launcher, log


def test_ctrl_c_reaches_each_child_once(tmp_path):
    launcher, log = launch(tmp_path, stops=True)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == main.INTERRUPTED
    assert out == "asked 1\n" and log.read_text() == "ready\nasked 1\n"


def test_a_second_ctrl_c_kills(tmp_path):
    launcher, log = launch(tmp_path, stops=False)
    for _ in range(2):
        os.kill(launcher.pid, signal.SIGINT)
        time.sleep(0.2)
    launcher.communicate(timeout=30)
    assert launcher.returncode == main.INTERRUPTED
    assert log.read_text() == "ready\n"

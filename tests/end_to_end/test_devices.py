"""One process with one device, one with eight, two processes: the same run."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest


def test_eight_devices_give_the_results_of_one(whole, posttrain, mini, tmp_path, results, near):
    mesh = ("--config.mesh.fsdp=4", "--config.mesh.tensor=2")
    code, out, err = posttrain("run", mini, "--workdir", tmp_path, *mesh, devices=8)
    assert code == 0, out + err
    near(results(tmp_path))


def wait_for_row(workdir: Path, stage: str, launcher) -> None:
    """Until a stage has logged its first row."""
    while not any(p.stat().st_size for p in workdir.glob(f"artifacts/{stage}-*/metrics.jsonl")):
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)


def child(launcher: int, index: int) -> int:
    """The process id of a launched process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        place = words.index(b"--process") + 1 if b"--process" in words else 0
        if parent == launcher and words[place] == str(index).encode():
            return int(folder.name)
    raise AssertionError(f"no process {index}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_two_processes_stopped_and_killed_give_the_results_of_one(
    whole, start, posttrain, mini, tmp_path, results, near
):
    words = ("launch", "local", "--processes", "2", mini, "--workdir", tmp_path)
    with start(*words) as launcher:
        wait_for_row(tmp_path, "base", launcher)
        os.kill(launcher.pid, signal.SIGINT)
        out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 130, out + err
    assert "Continue with the same command:\n  posttrain launch local --processes 2" in out
    with start(*words) as launcher:
        wait_for_row(tmp_path, "samples", launcher)
        os.kill(child(launcher.pid, 1), signal.SIGKILL)
        out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 128 + signal.SIGKILL, out + err
    assert "process 1 of 2 ended with signal SIGKILL, the others were stopped" in err
    assert f"The end of {tmp_path / 'logs' / 'process-1.log'}:" in err
    code, out, err = posttrain(*words)
    assert code == 0, out + err
    near(results(tmp_path))

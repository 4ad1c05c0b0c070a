"""A folder is whole or not there, whenever its writer is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain_jax.folders import whole_folder

ROOT = Path(__file__).parents[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(target, contents, stale=("data*",)):
    with whole_folder(target, "mark", stale) as partial:
        for name, text in contents.items():
            (partial / name).write_text(text)


def test_a_new_folder_appears_by_one_rename(tmp_path):
    target = tmp_path / "deep" / "out"
    with whole_folder(target, "mark") as partial:
        (partial / "mark").write_text("1")
        assert partial.parent == target.parent and not target.exists()
    assert names(target) == ["mark"] and names(target.parent) == ["out"]


def test_an_error_leaves_everything_as_it_was(tmp_path):
    write(tmp_path / "out", {"mark": "old", "data": "old"})
    with pytest.raises(ValueError, match="stop"), whole_folder(tmp_path / "out", "mark") as partial:
        (partial / "data").write_text("new")
        raise ValueError("stop")
    assert (tmp_path / "out" / "data").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_stale_files_go_and_other_peoples_stay(tmp_path):
    target = tmp_path / "out"
    write(target, {"mark": "old", "data-1": "old", "data-2": "old"})
    (target / "notes.txt").write_text("mine")
    write(target, {"mark": "new", "data": "new"})
    assert names(target) == ["data", "mark", "notes.txt"]
    assert (target / "mark").read_text() == "new"


KILLED = """
import os, signal, sys
from pathlib import Path
from posttrain_jax import folders
target, stop = Path(sys.argv[1]), int(sys.argv[2])
steps = 0
def counted(function):
    def call(*args, **options):
        global steps
        steps += 1
        if steps == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call
for module, name in ((os, "rename"), (os, "replace"), (folders, "sync"), (Path, "unlink")):
    setattr(module, name, counted(getattr(module, name)))
with folders.whole_folder(target, "mark", ("data*",)) as partial:
    for name in ("data-b", "mark", "other"):
        (partial / name).write_text("new")
print(steps)
"""


def run_killed(target, stop):
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(target), str(stop)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_killed_before_every_step(tmp_path, there):
    """Dead at any moment: with the mark, all files are the old ones or all are the new ones."""
    old, new = {"mark": "old", "data-a": "old", "other": "old"}, ("data-b", "mark", "other")
    unkilled, stop, seen = None, 1, set()
    while unkilled is None:
        target = tmp_path / str(stop) / "out"
        if there:
            write(target, old)
        done = run_killed(target, stop)
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, done.stderr
            unkilled = stop
        found = {p.name: p.read_text() for p in target.iterdir()} if target.exists() else {}
        if "mark" in found:
            assert found in (old, dict.fromkeys(new, "new"))
        seen.add(found.get("mark", "no mark"))
        # What the dead process left beside it goes with the next attempt.
        write(target, {"mark": "newer"})
        assert (target / "mark").read_text() == "newer"
        assert names(target.parent) == ["out"]
        stop += 1
    assert unkilled > 5
    assert seen == ({"old", "no mark", "new"} if there else {"no mark", "new"})


def test_a_living_writers_folder_is_left_alone(tmp_path):
    target = tmp_path / "out"
    command = (
        "import sys; from pathlib import Path; from posttrain_jax.folders import whole_folder\n"
        f"with whole_folder(Path({str(target)!r}), 'mark') as partial:\n"
        " (partial / 'mark').write_text('theirs'); print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", command], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "in\n"
        write(target, {"mark": "ours"})
        other.communicate("")
    assert other.returncode == 0
    assert (target / "mark").read_text() == "theirs"  # the later one
    assert names(tmp_path) == ["out"]

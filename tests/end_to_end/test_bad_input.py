"""What the user can get wrong: one message that says what and where, exit code 2, nothing lost."""

import contextlib
import os
import subprocess

import pytest

ORDER = ["questions", "base", "samples", "rejection", "sft", "reward_model", "rl"]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["no_such.py"], ["no recipe 'no_such.py'", "There are: algorithms.py, "]),
        (["{mini}", "--config.stages.sft.lrr=1"], ["Did you mean 'stages.sft.lr'?"]),
        (["{mini}", "--config.stages.sft.lr=fast"], ["'fast'", "expected float"]),
        (["{mini}", "--config.mesh.tensr=2"], ["Did you mean 'mesh.tensor'?"]),
    ],
)
def test_a_wrong_word_stops_before_anything_starts(posttrain, mini, tmp_path, words, messages):
    words = [word.format(mini=mini) for word in words]
    for command in (["run"], ["launch", "local", "--processes", "2"]):
        code, out, err = posttrain(*command, *words, "--workdir", tmp_path / "run")
        assert code == 2 and "Traceback" not in err, out + err
        for message in messages:
            assert message in err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "devices", "messages"),
    [
        ("rl.prompt_length=2", 1,
         ["all 32 prompts are longer than prompt_length=2", "raise prompt_length"]),
        ("rl.max_new=100", 1,
         ["prompt_length=24 and max_new=100", "is for 64 (max_length)", "in stage 'rl'"]),
        ("rl.batch_size=24", 1,
         ["rollout_size=32 is not a multiple of batch_size=24", "24 or 48"]),
        ("rl.group_size=16", 8,
         ["rollout_size / group_size=2 does not divide over data x fsdp x expert = 8", "nearest"]),
        ("samples.batch_size=12", 8,
         ["batch_size=12 does not divide over data x fsdp x expert = 8", "8 or 16",
          "in stage 'samples'"]),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(whole, posttrain, mini, tmp_path, setting, devices, messages):
    stage = setting.partition(".")[0]
    before = ORDER[: ORDER.index(stage)]
    run = whole.only(*before, into=tmp_path / "run")
    words = ("run", mini, "--workdir", run, f"--config.stages.{setting}")
    code, out, err = posttrain(*words, devices=devices)
    assert code == 2 and "Traceback" not in err, out + err
    for message in messages:
        assert message in err
    assert "base: done before" in out


def test_a_mesh_that_does_not_fit(posttrain, mini, tmp_path):
    for mesh, message in (("fsdp=3", "does not fit 8 devices"), ("tensor=8", "does not divide")):
        words = ("run", mini, "--workdir", tmp_path / mesh, f"--config.mesh.{mesh}")
        code, out, err = posttrain(*words, devices=8)
        assert code == 2 and message in err and "config.mesh" in err, out + err


def test_the_run_folder_of_another_config_is_refused(whole, posttrain, mini, results, same):
    words = ("run", mini, "--workdir", whole.workdir, "--config.stages.sft.lr=1e-5")
    code, _, err = posttrain(*words)
    assert code == 2 and "stages.sft.lr: here 0.003, now 1e-05" in err
    same(results(whole.workdir))


def test_a_malformed_data_file_is_named_with_its_line(whole, posttrain, mini, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "resp\n')
    recipe = tmp_path / "other.py"
    recipe.write_text(
        "from posttrain_jax.recipe import load_module\n"
        "from pathlib import Path\n"
        "def get_config(arg=''):\n"
        f"    config = load_module(Path({mini!r})).get_config(arg)\n"
        f"    config.stages.sft.data = {{'mine': {{'path': {str(data)!r}}}}}\n"
        "    return config\n"
    )
    run = whole.only("questions", "base", "samples", "rejection", into=tmp_path / "run")
    code, out, err = posttrain("run", recipe, "--workdir", run)
    assert code == 2 and f"{data}:2: " in err and "in stage 'sft'" in err, out + err


def test_an_unwritable_folder(posttrain, mini, tmp_path):
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "run"]
    if os.geteuid() != 0:  # nothing is unwritable for root
        (tmp_path / "closed").mkdir(mode=0o500)
        places.append(tmp_path / "closed" / "run")
    for place in places:
        for command in (["run"], ["launch", "local", "--processes", "2"]):
            code, out, err = posttrain(*command, mini, "--workdir", place)
            assert code == 2 and f"cannot write {place}" in err, out + err


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes; skips the test where this user may not mount one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "none", folder]
    try:
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_said_and_the_run_continues_with_more_room(
    whole, posttrain, mini, tmp_path, results, same
):
    disk = tmp_path / "disk"
    with small_disk(disk, "160k"):
        words = ("run", mini, "--workdir", disk / "run", "--config.order=base")
        code, out, err = posttrain(*words)
        assert code == 2 and "No space left on device" in err, out + err
        assert "What is done is kept" in err  # a thread that was writing may have the last word
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        code, out, err = posttrain(*words)
        assert code == 0, out + err
        same(results(disk / "run"), "base")

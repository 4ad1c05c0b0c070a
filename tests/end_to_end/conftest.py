"""The small recipe, run once without any trouble, and the real command as a process."""

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from posttrain_jax import artifacts, policy, process_reward, reward_model
from posttrain_jax.metrics import read_rows
from posttrain_jax.tree import digest

ROOT = Path(__file__).parents[2]
MINI = ROOT / "tests" / "recipes" / "mini.py"
OTHERS = MINI.with_name("mini_others.py")
FIRST = ("base", "samples", "rejection", "sft", "reward_model")  # OTHERS begins with these of MINI
SAMPLED = ("samples", "rejection", "tries", "pairs", "step_labels")
"""Stages whose data are tokens and counts of them: the same on any mesh."""
FILES = ("data.jsonl", "model/model.safetensors", "logp.bin", "logp.npy", "tokens.npy")
PATIENCE = 600  # seconds until a run counts as hanging
CLOCKS = ("seconds", "tokens_per_second")


class Results(NamedTuple):
    """What a run made, by stage, without times.

    Attributes:
      params: digests of the parameters, bit for bit.
      data: the bytes of data.jsonl, of exported weights, and of kept log-probs and tokens.
      metrics: those of the artifact.
      rows: the rows of metrics.jsonl.
    """

    params: dict[str, str]
    data: dict[str, bytes]
    metrics: dict[str, dict]
    rows: dict[str, list[dict]]


def load_params(folder: Path):
    """The parameters of an artifact on one device."""
    artifact = artifacts.load(folder)
    mesh = policy.make_mesh(devices=jax.devices()[:1])
    if artifact.kind in ("reward_model", "process_reward"):
        module = reward_model if artifact.kind == "reward_model" else process_reward
        return module.load(artifact, mesh).params
    return policy.load_policy(artifact, mesh)[1]


def read_results(workdir: Path) -> Results:
    """Read the finished stages of a run folder."""
    found = Results({}, {}, {}, {})
    for folder in sorted((workdir / "artifacts").iterdir()):
        stage = folder.name.rpartition("-")[0]
        artifact = artifacts.load(folder)
        found.metrics[stage] = dict(artifact.metrics)
        found.rows[stage] = [
            {key: value for key, value in row.items() if not key.startswith(CLOCKS)}
            for row in read_rows(folder / "metrics.jsonl")
        ]
        if (folder / "params").exists():
            found.params[stage] = digest(jax.tree.map(np.asarray, load_params(folder)))
        if present := [folder / name for name in FILES if (folder / name).exists()]:
            found.data[stage] = b"".join(path.read_bytes() for path in present)
    return found


class Whole(NamedTuple):
    """The run that nothing happened to."""

    workdir: Path
    results: Results

    def without(self, *stages: str, into: Path) -> Path:
        """A copy of the run folder in which these stages have not run."""
        shutil.copytree(self.workdir, into)
        for stage in stages:
            (folder,) = (into / "artifacts").glob(f"{stage}-*")
            shutil.rmtree(folder)
        return into

    def only(self, *stages: str, into: Path) -> Path:
        """A run folder of no config yet, in which these stages are done."""
        for stage in stages:
            (folder,) = (self.workdir / "artifacts").glob(f"{stage}-*")
            shutil.copytree(folder, into / "artifacts" / folder.name)
        return into


@pytest.fixture(scope="session")
def mini() -> str:
    """The recipe, as it is named on the command line."""
    return str(MINI)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all test processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def environment(shared) -> dict[str, str]:
    """Of the runs: CPU only, compiled quickly (into slower programs), and only once."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
    }


@pytest.fixture(scope="session")
def start(environment, quick_xla):
    """`start(*words, devices=1) -> Popen` of the `posttrain` command."""

    def start(*words, devices: int = 1, program=("-m", "posttrain_jax.main")) -> subprocess.Popen:
        flags = f"--xla_force_host_platform_device_count={devices} {quick_xla}"
        return subprocess.Popen(
            [sys.executable, *program, *map(str, words)],
            env={**environment, "XLA_FLAGS": flags}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def posttrain(start):
    """`posttrain(*words, devices=1) -> (exit code, stdout, stderr)`."""

    def posttrain(*words, **options) -> tuple[int, str, str]:
        with start(*words, **options) as process:
            try:
                out, err = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
        return process.returncode, out, err

    return posttrain


@pytest.fixture(scope="session")
def faulty(posttrain):
    """`faulty(what, stage, row, delay, *words)`: `posttrain run` with a fault, see faults.py."""
    program = (str(Path(__file__).with_name("faults.py")),)
    return lambda *words: posttrain(*words, program=program)


@pytest.fixture(scope="session")
def whole(shared, posttrain, mini) -> Whole:
    """The recipe run to its end, once for all test processes."""
    return run_once(shared / "whole", posttrain, mini)


@pytest.fixture(scope="session")
def others() -> str:
    """The recipe of the other kinds of stage."""
    return str(OTHERS)


@pytest.fixture(scope="session")
def whole_others(shared, whole, posttrain, others) -> Whole:
    """The same for the recipe of the other kinds of stage, from the first one's base."""
    begin = functools.partial(whole.only, *FIRST)
    return run_once(shared / "whole_others", posttrain, others, begin)


def run_once(workdir: Path, posttrain, recipe: str, begin=None) -> Whole:
    """Run a recipe to its end, unless another test process has; `begin` makes its run folder."""
    with open(workdir.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "report.json").exists():
            if begin:
                begin(into=workdir)
            code, out, err = posttrain("run", recipe, "--workdir", workdir)
            assert code == 0, out + err
    return Whole(workdir, read_results(workdir))


@pytest.fixture(scope="session")
def results():
    """`results(workdir) -> Results`."""
    return read_results


@pytest.fixture
def same(whole):
    """`same(results, *stages)`: bit for bit what the whole run made; without stages, all of it."""
    return functools.partial(check_same, whole.results)


@pytest.fixture
def same_others(whole_others):
    """The same for the recipe of the other kinds of stage."""
    return functools.partial(check_same, whole_others.results)


@pytest.fixture
def near(whole):
    """`near(results)`: the same sampled tokens, and every logged number to 1e-5."""
    return functools.partial(check_near, whole.results)


@pytest.fixture
def near_others(whole_others):
    """The same for the recipe of the other kinds of stage."""
    return functools.partial(check_near, whole_others.results)


def check_same(whole: Results, found: Results, *stages: str) -> None:
    """See `same`."""
    for kind, of_whole, of_found in zip(Results._fields, whole, found, strict=True):
        names = stages or of_whole.keys()
        expected = {name: of_whole[name] for name in names if name in of_whole}
        got = {name: of_found.get(name) for name in expected}
        differing = [name for name in expected if got[name] != expected[name]]
        assert not differing, f"{kind} of {differing[0]}:\n{expected}\n{got}"


def check_near(whole: Results, found: Results) -> None:
    """See `near`."""
    assert found.data.keys() == whole.data.keys()
    for stage in whole.data.keys() & set(SAMPLED):
        assert found.data[stage] == whole.data[stage], stage
    for stage, rows in whole.rows.items():
        assert len(found.rows[stage]) == len(rows), stage
        for row, other in zip(rows, found.rows[stage], strict=True):
            assert other.keys() == row.keys()
            for name, value in row.items():
                check_close(f"{stage} {row['step']} {name}", value, other[name])
    for stage, metrics in whole.metrics.items():
        for name, value in metrics.items():
            check_close(f"{stage} {name}", value["mean"], found.metrics[stage][name]["mean"])


def check_close(name: str, expected, got) -> None:
    if isinstance(expected, str) or expected is None:
        assert got == expected, name
    else:
        assert abs(got - expected) <= 1e-5 * max(1.0, abs(expected)), (name, expected, got)


@pytest.fixture(scope="session")
def record():
    """`record(workdir, stage) -> the artifact.json of a stage`."""

    def record(workdir: Path, stage: str) -> dict:
        (folder,) = (workdir / "artifacts").glob(f"{stage}-*")
        return json.loads((folder / "artifact.json").read_text())

    return record

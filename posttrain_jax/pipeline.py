"""Runs a recipe: its stages in order, each into its own artifact, skipping what is done.

Every id is known before the first stage starts, because an id depends on settings and not on
results. Killed at any moment, the same call continues: finished artifacts are loaded, the
half-finished one is handed to its stage again. Process 0 keeps `config.json` and `run.json`; the
other processes of a run wait at the borders of stages.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from posttrain_jax import artifacts, interrupt, process, registry
from posttrain_jax.api import Artifact
from posttrain_jax.files import read_json, write_json
from posttrain_jax.recipe import TEXT, RecipeError, missing, stage_config

LOCK = ".lock"
LIBRARIES = ("posttrain_jax", "jax", "jaxlib", "flax", "numpy")

StageFn = Callable[[ConfigDict, Path, Mapping[str, Artifact]], Artifact]
Fingerprint = Callable[[Mapping[str, Any]], tuple[str, str]]


class RunError(ValueError):
    """A run folder that can't be used; the message says why and what to do."""


@dataclass
class StageRun:
    """One stage of a run: what goes in, where it comes out, how far it is."""

    record: artifacts.Record
    inputs: dict[str, str]
    config: ConfigDict
    status: str = "pending"
    seconds: float = 0.0
    reused: bool = False
    artifact: Artifact | None = None

    def folder(self, workdir: Path) -> Path:
        """Where the artifact lies below a run folder."""
        return workdir / "artifacts" / self.record.folder_name

    def row(self) -> dict[str, Any]:
        """The stage's entry in run.json."""
        return {
            "kind": self.record.kind,
            "id": self.record.id,
            "path": f"artifacts/{self.record.folder_name}",
            "inputs": self.inputs,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "reused": self.reused,
        }


def load_stage(kind: str) -> StageFn:
    """The `run` of posttrain_jax/stages/<kind>.py."""
    return registry.load("stages", kind).run


def fingerprint(settings: Mapping[str, Any]) -> tuple[str, str]:
    """The hashes of the tokenizer and of the chat template of a stage; empty for an empty name.

    Raises:
      RecipeError: one of them can't be loaded.
    """
    from posttrain_jax.data.text import open_text, open_tokenizer

    try:
        if not settings["chat_template"]:
            return open_tokenizer(settings).hash, ""
        tokenizer, template = open_text(settings)
        return tokenizer.hash, template.hash
    except (FileNotFoundError, ValueError) as error:
        given = ", ".join(f"{key}={settings[key]!r}" for key in TEXT if settings.get(key))
        raise RecipeError(f"{given}: {error}") from error


def prepare_stages(
    config: Mapping[str, Any], fingerprint: Fingerprint, given: Mapping[str, Artifact] | None = None
) -> dict[str, StageRun]:
    """All stages of a resolved config, in order, with their ids; `given`: see `run_recipe`."""
    known: dict[str, tuple[str, str]] = {}
    made = {name: artifact.id for name, artifact in (given or {}).items()}
    code = artifacts.code_version()
    stages: dict[str, StageRun] = {}
    for name in config["order"]:
        settings = stage_config(config, name)
        plain = settings.to_dict()
        inputs = plain["inputs"]
        ids = {role: made[source] for role, source in inputs.items()}
        text = {key: plain[key] for key in TEXT}
        key = json.dumps(text, sort_keys=True, default=str)
        if key not in known:
            known[key] = fingerprint(text)
        tokenizer_hash, template_hash = known[key]
        made_from = {
            "tokenizer_hash": tokenizer_hash,
            "template_hash": template_hash,
            "code": code,
        }
        record = artifacts.Record(
            stage=name,
            kind=plain["kind"],
            id=artifacts.identity(plain["kind"], plain, ids, **made_from),
            config=plain,
            inputs={role: {"stage": inputs[role], "id": ids[role]} for role in inputs},
            **made_from,
        )
        stages[name] = StageRun(record, inputs, settings)
        made[name] = record.id
    return stages


def run_recipe(
    config: Mapping[str, Any],
    workdir: Path,
    *,
    store: Path | None = None,
    given: Mapping[str, Artifact] | None = None,
    load_stage: Callable[[str], StageFn] = load_stage,
    fingerprint: Fingerprint = fingerprint,
    say: Callable[[str], None] = print,
) -> list[StageRun]:
    """Run every stage of a resolved, validated config that is not done yet.

    Args:
      config: from `settings.load_recipe`.
      workdir: the run folder; created, or continued.
      store: a folder of artifacts that several run folders share; the run folder then holds
        relative symlinks into it.
      given: artifacts of other runs, by the names under which stages have them as inputs.
      load_stage: kind -> the stage's `run`.
      fingerprint: text settings (`recipe.TEXT`) -> hashes of tokenizer and chat template.
      say: prints one line.

    Raises:
      RecipeError: a model family that does not exist yet.
      RunError: the folder is another config's, or another process works in it.
      ArtifactError: a damaged artifact, or inputs of another tokenizer.
      interrupt.Interrupted: asked to stop; everything is saved.
    """
    if lacks := missing(config):
        raise RecipeError("\n".join(["this preset can't run yet:", *lacks]))
    given = given or {}
    stages = prepare_stages(config, fingerprint, given)
    with locked(workdir):
        _claim(workdir, config)
        before = _read_run(workdir)
        if process.index() == 0 and store is not None:
            _link(workdir, store, stages)
        barrier("artifacts are in place")
        lines = _find_done(workdir, stages, before)
        spent = _spent(workdir, before)
        save = partial(_write_run, workdir, config, stages, given, spent, time.time())
        save()
        for line in lines:
            say(line)
        for name, stage in stages.items():
            if stage.artifact is None:
                if interrupt.requested():
                    raise interrupt.Interrupted
                inputs = {r: given.get(s) or stages[s].artifact for r, s in stage.inputs.items()}
                _run_stage(stage, inputs, workdir, load_stage(stage.record.kind), save)
                say(f"{name}: done in {stage.seconds:.1f} s")
    return list(stages.values())


def _run_stage(
    stage: StageRun,
    inputs: Mapping[str, Artifact | None],
    workdir: Path,
    run: StageFn,
    save: Callable[[], None],
) -> None:
    """One stage, from its folder to its DONE marker."""
    ready = {role: artifact for role, artifact in inputs.items() if artifact is not None}
    artifacts.check_text(stage.record, ready)
    folder = stage.folder(workdir)
    stage.status = "running"
    with locked(folder):
        if process.index() == 0:
            artifacts.prepare(folder, stage.record)
            save()
        barrier(f"{stage.record.folder_name} starts")
        try:
            result = run(stage.config, folder, ready)
        except Exception as error:
            error.add_note(f"in stage {stage.record.stage!r}")
            raise
        if not isinstance(result, Artifact) or result.path != folder:
            raise TypeError(
                f"stage kind {stage.record.kind!r} returned {result!r}; it must return "
                "artifacts.finish(workdir, ...)"
            )
        barrier(f"{stage.record.folder_name} ends")
        if process.index() == 0:
            artifacts.seal(folder)
        barrier(f"{stage.record.folder_name} is sealed")
    _take(stage, folder)
    save()


def barrier(name: str) -> None:
    """Wait for the other processes of the run; nothing when there are none."""
    if process.count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs; the lock dies with the process, however it dies.

    A record lock: it is not inherited by workers that outlive their parent. On process 0 only.

    Raises:
      RunError: another process holds it.
    """
    if process.index() != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise RunError(
                f"{folder} is in use by another posttrain run (process {file.read().strip()}); "
                "wait for it, or choose another --workdir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Make the run folder this config's, or refuse."""
    path = workdir / "config.json"
    if path.exists() and (differing := artifacts.differences(config, read_json(path))):
        raise RunError(
            f"{workdir} is the run folder of another config; it differs in\n  "
            + "\n  ".join(differing)
            + "\nChoose another --workdir, or delete this one."
        )
    if process.index() == 0:
        write_json(path, config)


def _find_done(workdir: Path, stages: Mapping[str, StageRun], before: Mapping) -> list[str]:
    """Load the artifacts that are there already; returns what to say about each stage."""
    lines = []
    for name, stage in stages.items():
        folder = stage.folder(workdir)
        known = before["stages"].get(name, {})
        ours = known.get("id") == stage.record.id and known.get("status") != "pending"
        if artifacts.is_done(folder):
            stage.reused = known["reused"] if ours else True
            _take(stage, folder)
            lines.append(f"{name}: done before ({stage.seconds:.1f} s)")
        elif (folder / artifacts.RECORD).exists():
            lines.append(f"{name}: continues in {folder}")
        elif known and known["id"] != stage.record.id:
            lines.append(f"{name}: made again, since the code or a file it reads changed")
    return lines


def _take(stage: StageRun, folder: Path) -> None:
    stage.artifact = artifacts.load(folder, stage.record.stage)
    stage.seconds = read_json(folder / artifacts.RECORD)["seconds"]
    stage.status = "done"


def _link(workdir: Path, store: Path, stages: Mapping[str, StageRun]) -> None:
    """Point the run folder at the store's artifacts, by relative symlinks."""
    for stage in stages.values():
        folder = stage.folder(workdir)
        if not folder.exists():
            shared = store / f"{stage.record.kind}-{stage.record.id[:12]}"
            shared.mkdir(parents=True, exist_ok=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.unlink(missing_ok=True)
            target = os.path.relpath(shared.resolve(), folder.parent.resolve())
            folder.symlink_to(target, target_is_directory=True)


def _read_run(workdir: Path) -> dict[str, Any]:
    path = workdir / "run.json"
    return read_json(path) if path.exists() else {"stages": {}, "seconds": 0.0}


def _spent(workdir: Path, before: Mapping[str, Any]) -> float:
    """Seconds of earlier sessions, up to the last file that a killed stage touched."""
    running = [row["path"] for row in before["stages"].values() if row["status"] == "running"]
    return before["seconds"] + sum(artifacts.last_session(workdir / path) for path in running)


def _write_run(
    workdir: Path,
    config: Mapping[str, Any],
    stages: Mapping[str, StageRun],
    given: Mapping[str, Artifact],
    spent: float,
    started: float,
) -> None:
    if process.index() == 0:
        others = {n: {"kind": a.kind, "id": a.id, "path": str(a.path)} for n, a in given.items()}
        write_json(
            workdir / "run.json",
            {
                **{key: config[key] for key in ("recipe", "preset", "seed")},
                "versions": versions(),
                "device": process.device(),
                "order": list(stages),
                "stages": {name: stage.row() for name, stage in stages.items()},
                **({"given": others} if others else {}),
                "seconds": round(spent + time.time() - started, 3),
            },
        )


def versions() -> dict[str, str]:
    """Versions of the libraries that decide results, without importing them."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = artifacts.__version__ if name == "posttrain_jax" else ""
    return found

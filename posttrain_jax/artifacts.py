"""The outputs of stages: folders named by what they were made from.

An artifact's id is the sha256 of its stage's kind and settings, its inputs' ids, the hashes of
tokenizer and chat template, and the code version. Its folder holds `artifact.json` from the first
moment on, the stage's own files, and `DONE`, written last. A folder without DONE is half-finished:
the same stage continues in it.

What the id leaves out: the settings of RESULT_NEUTRAL, the names of stages, where files lie (a
setting that is the path of a file counts by the file's contents; a folder by its files' names and
sizes). Versions of jax and the device are recorded in run.json and are not part of the id.

Imports no jax, directly or not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from posttrain_jax import __version__, process
from posttrain_jax.api import Artifact
from posttrain_jax.files import finite, read_json, sync, write_json, write_text

DONE = "DONE"
RECORD = "artifact.json"
PACKAGE = Path(__file__).parent
RESULT_NEUTRAL = (
    "mesh",
    "workers",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "samples_every",
    "sources",
    "notes",
    "looks",
    "slots",
    "drafts",
    # how a judge's endpoint is reached
    "api_key_file",
    "api_key_env",
    "concurrency",
    "attempts",
    "timeout",
    "first_wait",
    "longest_wait",
)
"""Settings that can't change a result, at any depth of a config."""
NOT_IN_CODE = (
    "report",
    "launch",
    "configs",
    "serve",
    "bench",
    "main.py",
    "plan.py",
    "doctor.py",
    "exchange.py",
    "evaluation.py",
    "verify.py",
)
"""Parts of the package that can't change a result: not in the code version."""
MAX_PATH = 255  # longer strings are text (a chat template, a system prompt)
SOURCES = (".py", ".model", ".jinja", ".json", ".jsonl")


@dataclass(frozen=True)
class Record:
    """What is known of an artifact before its stage runs: the head of `artifact.json`.

    Attributes:
      stage: the stage's name in its recipe.
      kind: the stage's kind.
      id: `identity(...)`, 64 hex digits.
      config: the stage's resolved settings.
      inputs: role -> {"stage": name, "id": id}.
      code: `code_version()`.
      tokenizer_hash, template_hash: of the text that the stage reads and writes.
    """

    stage: str
    kind: str
    id: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    code: str = ""
    tokenizer_hash: str = ""
    template_hash: str = ""

    @property
    def folder_name(self) -> str:
        """`<stage>-<first 12 digits of the id>`."""
        return f"{self.stage}-{self.id[:12]}"


class ArtifactError(ValueError):
    """An artifact that is unfinished, damaged, or of another tokenizer."""


def identity(
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    tokenizer_hash: str,
    template_hash: str,
    code: str,
) -> str:
    """The id of what a stage of this kind, with these settings and inputs (role -> id), makes."""
    settings = {k: v for k, v in without_neutral(config).items() if k not in ("kind", "inputs")}
    return digest(
        {
            "kind": kind,
            "config": _by_contents(settings),
            "inputs": dict(inputs),
            "tokenizer": tokenizer_hash,
            "template": template_hash,
            "code": code,
        }
    )


def digest(value: Any) -> str:
    """sha256 of the canonical JSON (sorted keys, no spaces) of a value, as hex."""
    text = json.dumps(finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def without_neutral(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the settings of RESULT_NEUTRAL, at every depth."""
    return {
        key: without_neutral(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in RESULT_NEUTRAL
    }


@cache
def code_version(package: Path = PACKAGE) -> str:
    """`<version>+<hash>` over the package's source and data files, except NOT_IN_CODE."""
    total = hashlib.sha256()
    for path in sorted(_source_files(package)):
        total.update(path.relative_to(package).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__}+{total.hexdigest()[:12]}"


def prepare(folder: Path, record: Record) -> None:
    """Create an artifact's folder, or enter a half-finished one, and write its record.

    The seconds that earlier, interrupted sessions spent in the folder are kept.
    """
    spent = 0.0
    if (folder / RECORD).exists():
        spent = read_json(folder / RECORD)["seconds"] + last_session(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, {**asdict(record), "seconds": spent, "started": time.time()})


def last_session(folder: Path) -> float:
    """Seconds of the session that left a folder half-finished: until the last file it touched."""
    if is_done(folder) or not (folder / RECORD).exists():
        return 0.0
    # Hidden files are locks: whoever looks at the folder touches them.
    touched = max(path.stat().st_mtime for path in folder.rglob("*") if path.name[0] != ".")
    return max(0.0, touched - read_json(folder / RECORD).get("started", touched))


def finish(
    folder: Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    phases: Mapping[str, float] | None = None,
    **extra: Any,
) -> Artifact:
    """What a stage returns: adds its results to `artifact.json`. On process 0; elsewhere, only
    the return value.

    Args:
      folder: the stage's `workdir`.
      metrics: name -> number, or {"mean", "stderr", "n"} (see `metrics.mean_stderr`), which may
        have an interval's "low" and "high".
      phases: seconds by phase (compile, sample, verify, update, eval, ...).
      **extra: anything else worth recording, JSON-able.
    """
    full = {name: _with_error(value) for name, value in (metrics or {}).items()}
    known = read_json(folder / RECORD)
    if process.index() == 0:
        write_json(folder / RECORD, {**known, **extra, "metrics": full, "phases": phases or {}})
    return Artifact(known["stage"], known["kind"], known["id"], folder, full)


def seal(folder: Path) -> None:
    """Mark an artifact as finished: everything is on disk before DONE appears."""
    record = read_json(folder / RECORD)
    seconds = record["seconds"] + time.time() - record.pop("started")
    write_json(folder / RECORD, {**record, "seconds": round(seconds, 3)})
    for path in folder.rglob("*"):
        if path.name[0] != ".":  # closing the lock file would release it
            sync(path)
    write_text(folder / DONE, record["id"] + "\n")


def is_done(folder: Path) -> bool:
    """True where the folder's stage finished."""
    return (folder / DONE).is_file()


def load(folder: Path, stage: str | None = None) -> Artifact:
    """A finished artifact; `stage` is its name in the recipe at hand.

    Raises:
      ArtifactError: unfinished, or the record is not the one that was finished.
    """
    if not is_done(folder):
        raise ArtifactError(f"{folder} has no {DONE} marker: its stage did not finish")
    record = read_json(folder / RECORD)
    marked = (folder / DONE).read_text().strip()
    if record.get("id") != marked:
        raise ArtifactError(
            f"{folder} is damaged: {DONE} says {marked}, {RECORD} says {record.get('id')}; "
            "delete the folder and run again"
        )
    return Artifact(
        stage or record["stage"], record["kind"], marked, folder, record.get("metrics", {})
    )


def beside(artifact: Artifact, source: Mapping[str, str]) -> Artifact:
    """The artifact {"stage", "id"} that another one was made from.

    Raises:
      ArtifactError: it is not in the same folder.
    """
    folder, name = artifact.path.parent, f"{source['stage']}-{source['id'][:12]}"
    found = sorted(folder.glob(f"*-{source['id'][:12]}"))
    if not found:
        raise ArtifactError(f"{artifact.path} was made from {name}, which is not in {folder}")
    return load(found[0])


def lineage(artifact: Artifact) -> list[Artifact]:
    """The artifact and everything it was made from, inputs before what they went into.

    Raises:
      ArtifactError: an input is not in the same folder.
    """
    found: dict[str, Artifact] = {}

    def visit(each: Artifact) -> None:
        if each.id in found:
            return
        for source in read_json(each.path / RECORD)["inputs"].values():
            visit(beside(each, source))
        found[each.id] = each

    visit(artifact)
    return list(found.values())


def check_text(record: Record, inputs: Mapping[str, Artifact]) -> None:
    """Refuse inputs made with another tokenizer or chat template.

    A stage that encodes its input's text anew says so by the setting `retokenize=True`. A stage
    whose chat_template is empty (pretraining on plain text) binds nobody to a template.

    Raises:
      ArtifactError: which input, what differs, both hashes.
    """
    if record.config.get("retokenize"):
        return
    for role, artifact in inputs.items():
        made = read_json(artifact.path / RECORD)
        for name, key in (("tokenizer", "tokenizer_hash"), ("chat template", "template_hash")):
            theirs, ours = made.get(key, ""), getattr(record, key)
            if theirs and ours and theirs != ours:
                raise ArtifactError(
                    f"stage {record.stage!r}: its input {role!r} (stage {artifact.stage!r}) was "
                    f"made with another {name}: {theirs[:12]}, and this stage has {ours[:12]}. "
                    f"Give both stages one {name}, or set stages.{record.stage}.retokenize=True "
                    "if only text passes between them."
                )


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two configs, as `key: here <theirs>, now <ours>`.

    Those that change no artifact are left out: RESULT_NEUTRAL, and which stages `order` runs.
    """
    left, right = (dict(_flat(without_neutral({**c, "order": ()}))) for c in (ours, theirs))
    gone = "(not there)"
    return [
        f"{key}: here {right.get(key, gone)}, now {left.get(key, gone)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, gone) != right.get(key, gone)
    ]


@cache
def file_hash(path: Path, size: int, modified: int) -> str:
    """sha256 of a file's contents; size and time are there to tell versions of it apart."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_contents(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _by_contents(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_by_contents(v) for v in value]
    if not isinstance(value, str) or "\n" in value or len(value) > MAX_PATH:
        return value
    path = Path(os.path.expanduser(value))  # Path's raises where nobody is ~name
    if not ("/" in value or path.suffix):
        return value
    if path.is_file():
        stat = path.stat()
        return {"file": file_hash(path.resolve(), stat.st_size, stat.st_mtime_ns)}
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return {"folder": [[str(p.relative_to(path)), p.stat().st_size] for p in files]}
    return value


def _source_files(package: Path) -> Iterable[Path]:
    for path in package.iterdir():
        if path.name in NOT_IN_CODE or path.name == "__pycache__":
            continue
        if path.is_dir():
            # `kernels` may be a symlink, which rglob would not enter from above.
            yield from (p for p in path.rglob("*") if p.suffix in SOURCES)
        elif path.suffix in SOURCES:
            yield path


def _with_error(value: Any) -> dict[str, float]:
    if isinstance(value, Mapping):
        interval = [key for key in ("low", "high") if key in value]
        return {key: finite(value[key]) for key in ("mean", "stderr", "n", *interval)}
    return {"mean": finite(float(value)), "stderr": 0.0, "n": 1}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(finite(value), ensure_ascii=False)

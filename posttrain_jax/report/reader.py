"""Reads a run folder into plain dataclasses.

Nothing in the folder is trusted and nothing is required: a run may be unfinished, killed in the
middle of a line, or half deleted. Whatever is missing or malformed becomes one sentence of
`Run.notices`, which the report prints; reading never raises for it. Numbers that are not finite are
left out of the curves and counted in a notice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_jax.report.records import Input, Metric, Run, Sample, Stage

STATUSES = ("done", "running", "pending")


def read_run(run_dir: Path) -> Run:
    """Read everything the report shows from `run_dir` (the `--workdir` of a run).

    Raises:
      FileNotFoundError: there is no such folder.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(
            f"no run folder at {run_dir}: expected the --workdir of a `posttrain run`"
        )
    notices: list[str] = []
    record = _read_json(run_dir / "run.json", notices)
    config = _read_json(run_dir / "config.json", notices)
    listed = _dict(record.get("stages"))
    folders = {} if listed else _folders_without_record(run_dir, notices)
    order = [str(name) for name in _list(record.get("order"))]
    names = list(dict.fromkeys([*order, *map(str, listed), *folders]))
    if not names:
        notices.append("There are no stages: neither run.json nor artifacts/ names one.")
    stages = tuple(
        _read_stage(run_dir, name, _dict(listed.get(name)), folders.get(name), notices)
        for name in names
    )
    seconds = number(record.get("seconds"))
    if seconds is None and any(s.seconds is not None for s in stages):
        seconds = sum(s.seconds or 0.0 for s in stages)
    _check_lineage(stages, _dict(record.get("given")), notices)
    return Run(
        folder=run_dir.resolve().name,
        recipe=str(record.get("recipe") or config.get("recipe") or "unknown recipe"),
        preset=str(record.get("preset") or config.get("preset") or ""),
        seed=_seed(record.get("seed", config.get("seed"))),
        seconds=seconds,
        device=_device(record.get("device")),
        versions={str(k): str(v) for k, v in _dict(record.get("versions")).items()},
        config=config,
        stages=stages,
        notices=tuple(dict.fromkeys(notices)),
    )


def number(value: Any) -> float | None:
    """`value` as a finite float; None for anything else (booleans and texts included).

    Beyond 1e150, where a chart's arithmetic would overflow, nothing counts as finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if abs(result) < 1e150 else None


def _read_stage(
    run_dir: Path, name: str, record: Mapping, folder: Path | None, notices: list[str]
) -> Stage:
    """One stage from its line in run.json and its artifact folder, whichever exist."""
    folder = folder or _artifact_folder(run_dir, name, record)
    artifact: Mapping[str, Any] = {}
    finished = folder is not None and (folder / "DONE").exists()
    status = str(record.get("status") or ("done" if finished else "running" if folder else ""))
    if folder is not None and (finished or (folder / "artifact.json").exists()):
        artifact = _read_json(folder / "artifact.json", notices)
    if status == "done" and folder is None:
        notices.append(f"{name}: run.json says done, but its artifact folder is missing.")
    elif status == "done" and not finished:
        notices.append(f"{name}: run.json says done, but the artifact has no DONE marker.")
    steps = _read_steps(name, folder, notices)
    seconds = number(artifact.get("seconds"))
    return Stage(
        name=name,
        kind=str(record.get("kind") or artifact.get("kind") or "unknown"),
        id=str(record.get("id") or artifact.get("id") or ""),
        status=status if status in STATUSES else "pending",
        seconds=seconds if number(record.get("seconds")) is None else number(record["seconds"]),
        reused=record.get("reused") is True,
        inputs=_inputs(record.get("inputs"), artifact.get("inputs")),
        metrics=_metrics(artifact.get("metrics")),
        phases=_phases(artifact.get("phases"), steps),
        steps=steps,
        samples=_read_samples(folder, notices),
        code=str(artifact.get("code") or ""),
        tokenizer_hash=str(artifact.get("tokenizer_hash") or ""),
        template_hash=str(artifact.get("template_hash") or ""),
    )


def _artifact_folder(run_dir: Path, name: str, record: Mapping) -> Path | None:
    """The stage's folder: the path run.json gives, else the newest artifacts/<name>-<id>."""
    path = record.get("path")
    if isinstance(path, str) and path and (run_dir / path).is_dir():
        return run_dir / path
    if record.get("status") == "pending" or not (run_dir / "artifacts").is_dir():
        return None
    pattern = re.compile(re.escape(name) + r"-[0-9A-Za-z]+")
    found = [p for p in (run_dir / "artifacts").iterdir() if pattern.fullmatch(p.name)]
    named = [p for p in found if record.get("id") and str(record["id"]) in p.name]
    return max(named or found, key=lambda p: (p.stat().st_mtime, p.name), default=None)


def _folders_without_record(run_dir: Path, notices: list[str]) -> dict[str, Path]:
    """Artifact folders by stage name, oldest first, for a run whose run.json is gone."""
    root = run_dir / "artifacts"
    folders = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    folders.sort(key=lambda p: (p.stat().st_mtime, p.name))
    if folders:
        notices.append("The order of the stages is that of the artifacts' dates.")
    return {p.name.rpartition("-")[0] or p.name: p for p in folders}


def _read_steps(name: str, folder: Path | None, notices: list[str]) -> tuple[dict, ...]:
    """metrics.jsonl; a step written twice (a resumed run) keeps its last line."""
    rows: dict[float, dict[str, float]] = {}
    broken: dict[str, int] = {}
    lines = _read_lines(folder / "metrics.jsonl", notices) if folder else []
    for index, line in enumerate(lines):
        row: dict[str, float] = {}
        for key, value in line.items():
            finite = number(value)
            if finite is not None:
                row[str(key)] = finite
            elif isinstance(value, int | float) and not isinstance(value, bool):
                broken[str(key)] = broken.get(str(key), 0) + 1
        step = row.setdefault("step", float(index))
        rows[step] = row
    for key, count in broken.items():
        notices.append(f"{name}: {key} is not a finite number in {count} of {len(lines)} steps.")
    return tuple(rows[step] for step in sorted(rows))


def _read_samples(folder: Path | None, notices: list[str]) -> tuple[Sample, ...]:
    lines = _read_lines(folder / "samples.jsonl", notices) if folder else []
    return tuple(_sample(line) for line in lines)


def _sample(line: Mapping[str, Any]) -> Sample:
    step = number(line.get("step"))
    scores = {str(k): number(v) for k, v in _dict(line.get("rewards")).items()}
    finished = line.get("finished")
    return Sample(
        step=None if step is None else int(step),
        prompt=_text(line.get("prompt")),
        response=_text(line.get("response")),
        reward=number(line.get("reward")),
        rewards={k: v for k, v in scores.items() if v is not None},
        example_id=_text(line.get("example_id")),
        finished=finished if isinstance(finished, bool) else None,
    )


def _metrics(value: Any) -> dict[str, Metric]:
    """`{name: {"mean", "stderr", "n"}}`, some with `low` and `high`; a bare number is taken as a
    mean without an error."""
    metrics = {}
    for name, entry in _dict(value).items():
        fields = entry if isinstance(entry, Mapping) else {"mean": entry}
        mean = number(fields.get("mean"))
        n = number(fields.get("n"))
        if mean is not None:
            count = None if n is None else int(n)
            error, *ends = (number(fields.get(key)) for key in ("stderr", "low", "high"))
            metrics[str(name)] = Metric(mean, error, count, *ends)
    return metrics


def _phases(value: Any, steps: tuple[Mapping[str, float], ...]) -> dict[str, float]:
    """Seconds by phase; for a stage still running, the sums of its steps' `seconds_<phase>`."""
    given = {str(k): number(v) for k, v in _dict(value).items()}
    phases = {k: v for k, v in given.items() if v is not None and v > 0}
    if phases:
        return phases
    for row in steps:
        for key, seconds in row.items():
            if key.startswith("seconds_"):
                phase = key.removeprefix("seconds_")
                phases[phase] = phases.get(phase, 0.0) + seconds
    return {k: v for k, v in phases.items() if v > 0}


def _inputs(listed: Any, recorded: Any) -> tuple[Input, ...]:
    """Inputs of run.json (names) completed by those of artifact.json (names and ids)."""
    found: dict[tuple[str, str], Input] = {}
    for inputs in (listed, recorded):
        for role, entries in _dict(inputs).items():
            for entry in entries if isinstance(entries, list) else [entries]:
                fields = entry if isinstance(entry, Mapping) else {"stage": entry}
                name = str(fields.get("stage") or "")
                if name:
                    id_ = str(fields.get("id") or "")
                    found[str(role), name] = Input(str(role), name, id_)
    return tuple(found.values())


def _check_lineage(stages: tuple[Stage, ...], given: Mapping, notices: list[str]) -> None:
    """Say where an input's artifact is not the one this run lists, or is not listed at all."""
    ids = {str(name): str(_dict(about).get("id") or "") for name, about in given.items()}
    ids |= {s.name: s.id for s in stages}
    for stage in stages:
        for link in stage.inputs:
            if link.stage not in ids:
                notices.append(f"{stage.name}: its input {link.stage} is no stage of this run.")
            elif link.id and ids[link.stage] and link.id[:12] != ids[link.stage][:12]:
                notices.append(
                    f"{stage.name}: made from {link.stage} {link.id[:12]}, but the run lists "
                    f"{link.stage} {ids[link.stage][:12]}."
                )


def _read_json(path: Path, notices: list[str]) -> dict[str, Any]:
    where = _where(path)
    try:
        value = json.loads(path.read_text("utf-8", errors="replace"))
    except FileNotFoundError:
        notices.append(f"{where} is missing.")
    except (OSError, ValueError, RecursionError) as error:
        notices.append(f"{where} can't be read: {error}.")
    else:
        if isinstance(value, dict):
            return value
        notices.append(f"{where} holds a {type(value).__name__}, expected an object.")
    return {}


def _read_lines(path: Path, notices: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file; lines that are none (a torn last line) are counted."""
    lines: list[dict[str, Any]] = []
    bad: list[int] = []
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for index, text in enumerate(file, start=1):
                try:
                    value = json.loads(text) if text.strip() else None
                except (ValueError, RecursionError):
                    value = []
                if isinstance(value, dict):
                    lines.append(value)
                elif value is not None:
                    bad.append(index)
    except FileNotFoundError:
        pass
    except OSError as error:
        notices.append(f"{_where(path)} can't be read: {error}.")
    if bad:
        plural = "line is" if len(bad) == 1 else "lines are"
        notices.append(
            f"{_where(path)}: {len(bad)} {plural} no JSON object (first: line {bad[0]})."
        )
    return lines


def _where(path: Path) -> str:
    return (
        f"{path.parent.name}/{path.name}" if path.parent.parent.name == "artifacts" else path.name
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _seed(value: Any) -> int | str | None:
    return value if value is None or isinstance(value, int) else str(value)


def _device(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "" if value is None else str(value)

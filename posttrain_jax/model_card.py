"""README.md of an exported model: what it was made from, by which stages, and how it scored.

The front matter is what the Hugging Face hub reads (docs: "Model Cards"); its values are JSON
strings, which are YAML. Facts come from the artifacts that the policy was made from and from the
evaluations of it that lie beside; what is not known is left out. Imports no jax.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain_jax import artifacts
from posttrain_jax.api import Artifact
from posttrain_jax.files import read_json

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
SCORES = ("pass@1", "greedy", "accuracy", "majority", "refuse_harmful")
"""Metrics that the front matter names, where an evaluation has them."""


def front_matter(path: Path) -> dict[str, str]:
    """`license` and `base_model` of a model card, where it has them on one line each."""
    found: dict[str, str] = {}
    if not path.is_file():
        return found
    parts = path.read_text("utf-8", errors="replace").split("---", 2)
    if len(parts) == 3 and not parts[0].strip():
        for line in parts[1].splitlines():
            key, colon, value = line.partition(":")
            if colon and key in ("license", "base_model") and value.strip():
                found[key] = value.strip().strip("\"'")
    return found


def plain_card(family: str, about: Mapping[str, str] | None = None) -> str:
    """The card of a model of which only its architecture and perhaps its source are known."""
    about = about or {}
    head = _head({**_origin(about), "tags": ["posttrain_jax", family]})
    source = f" It was read from `{about['name']}`." if about.get("name") else ""
    return f"{head}\n# Model\n\nA {family} model, written by posttrain_jax.{source}\n\n{_LOAD}"


def lineage_card(artifact: Artifact, family: str) -> str:
    """The card of a policy that a run made.

    Args:
      artifact: the policy; the stages it was made from lie beside it, those of a run folder two
        folders up.
      family: its architecture.
    """
    stages = artifacts.lineage(artifact)
    records = [read_json(stage.path / artifacts.RECORD) for stage in stages]
    scored = _evaluations(artifact)
    run, digest = _run(artifact.path.parent.parent)
    recipe = f"{run['recipe']}:{run['preset']}" if run else ""
    origin = next((r["origin"] for r in reversed(records) if r.get("origin")), {})
    kinds = sorted({record["kind"] for record in records})
    title = f"{recipe or 'posttrain_jax'}, stage {artifact.stage}"
    head = {
        **_origin(origin),
        "tags": ["posttrain_jax", family, *([run["recipe"]] if run else []), *kinds],
        **({"model-index": _index(title, scored)} if scored else {}),
    }
    lines = [_head(head), f"# {title}", "", f"A {family} model, post-trained with posttrain_jax."]
    if run:
        lines += ["", f"- recipe: `{recipe}`, seed {run['seed']}", f"- config: sha256 `{digest}`"]
        lines += [f"- source of the recipe: {run['sources']}"] if run.get("sources") else []
    if origin:
        licence = f", licence {origin['license']}" if origin.get("license") else ""
        lines += [f"- base model: `{origin.get('name', 'a file')}`{licence}"]
    lines += [
        "",
        "## Stages",
        "",
        "| stage | kind | id | made from | data |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(record) for record in records]
    if scored:
        lines += ["", "## Evaluation", "", "Mean, with its standard error over n problems.", ""]
        lines += ["| evaluation | metric | mean | stderr | n |", "|---|---|---|---|---|"]
        for name, metrics in scored.items():
            lines += [
                f"| {name} | {metric} | {v['mean']:.4g} | {v['stderr']:.2g} | {v['n']} |"
                for metric, v in metrics.items()
            ]
    return "\n".join(lines) + "\n\n" + _LOAD


_LOAD = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
```
"""


def _head(values: Mapping[str, Any]) -> str:
    fixed = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    lines = [
        f"{key}: {json.dumps(v, ensure_ascii=False)}" for key, v in {**values, **fixed}.items()
    ]
    return "\n".join(["---", *lines, "---", ""])


def _origin(about: Mapping[str, str]) -> dict[str, str]:
    """Licence and base model, the latter only where it is the name of a repository."""
    base = about.get("base_model") or about.get("name", "")
    named = {"base_model": base} if REPOSITORY.fullmatch(base) else {}
    return {**({"license": about["license"]} if about.get("license") else {}), **named}


def _run(folder: Path) -> tuple[dict[str, Any], str]:
    """What a run folder says of itself, and the hash of its config; nothing where it is none."""
    if not (folder / "run.json").is_file() or not (folder / "config.json").is_file():
        return {}, ""
    run, config = read_json(folder / "run.json"), read_json(folder / "config.json")
    return {**run, "sources": config.get("sources", "")}, artifacts.digest(config)


def _evaluations(artifact: Artifact) -> dict[str, dict[str, dict[str, float]]]:
    """Stage -> metrics of the finished evaluations of exactly this policy."""
    found = {}
    for path in sorted(artifact.path.parent.glob(f"*/{artifacts.RECORD}")):
        record = read_json(path)
        theirs = record.get("inputs", {}).get("policy", {}).get("id")
        if (
            record["kind"] == "evaluate"
            and theirs == artifact.id
            and artifacts.is_done(path.parent)
        ):
            metrics = record.get("metrics", {})
            found[record["stage"]] = {
                name: value for name, value in metrics.items() if value["mean"] is not None
            }
    return found


def _index(title: str, scored: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The hub's `model-index`: one result for each evaluation."""
    results = []
    for name, metrics in scored.items():
        values = [
            {"type": metric, "name": metric, "value": metrics[metric]["mean"]}
            for metric in SCORES
            if metric in metrics
        ]
        results.append(
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": name, "type": name},
                "metrics": values,
            }
        )
    return [{"name": title, "results": [r for r in results if r["metrics"]]}]


def _row(record: Mapping[str, Any]) -> str:
    sources = ", ".join(f"{role}: {of['stage']}" for role, of in record["inputs"].items())
    data = "; ".join(dict.fromkeys(_data(record["config"])))
    kind, number = record["kind"], record["id"][:12]
    return f"| {record['stage']} | {kind} | `{number}` | {sources} | {data} |"


def _data(config: Mapping[str, Any]) -> Iterator[str]:
    """The data sources anywhere in a stage's settings, in words; of a path only the file's name."""
    for value in config.values():
        if not isinstance(value, Mapping):
            continue
        if "tasks" in value or "path" in value:
            tasks = value.get("tasks")
            what = ", ".join(tasks) if tasks else Path(str(value.get("path"))).name
            yield f"{what} ({value['count']})" if value.get("count") else what
        else:
            yield from _data(value)

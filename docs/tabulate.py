"""Tables over seeds from several run folders, as Markdown.

    python docs/tabulate.py "runs/r1-[0-9]" pass@1 greedy refuse_harmful ...
    python docs/tabulate.py "runs/llama3-[0-9]" --rows "base,policy_*" pass@1 ...
    python docs/tabulate.py "runs/qwen25_math-[0-9]" --choices rerank
    python docs/tabulate.py "runs/pareto-[0-9]" --front front

A cell is the mean over seeds +- its standard error (sample standard deviation over seeds /
sqrt(seeds)), then each seed's own value, in the order of the folders' names.

A row is an evaluated policy or a reward model. Its metrics are those of `eval_<policy>`; those of
another evaluation of it as `<prefix>:<metric>` (`at_once:pass@1` is of `at_once_<policy>`); and
what its training took: `tokens` sampled for it, by its own rollouts or by the `generate` stages
whose samples it learns from, `samples` of them, `seconds` of its own steps and `data_seconds` of
the stages that made its data. Seconds are the number of steps times the median step's, so without
compilation, saving and pauses.
"""

import argparse
import fnmatch
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import NamedTuple

DATA = ("generate", "pairs", "reference_logprobs", "reject", "rerank", "step_labels")
"""Kinds of stage that make data from a policy, and no other policy."""
REWARD_MODELS = ("reward_model", "process_reward")


class Stage(NamedTuple):
    """A finished stage of a run; `inputs` is `{role: stage}`, `metrics` their means."""

    kind: str
    folder: Path
    inputs: Mapping[str, str]
    config: Mapping
    metrics: Mapping[str, float]


def read(run: Path) -> dict[str, Stage]:
    """The stages of a run folder that are done, in pipeline order."""
    record, found = json.loads((run / "run.json").read_text()), {}
    for name in record["order"]:
        entry = record["stages"].get(name, {})
        if entry.get("status") != "done":
            continue
        folder = run / entry["path"]
        about = json.loads((folder / "artifact.json").read_text())
        means = {k: m["mean"] for k, m in about["metrics"].items() if m["mean"] is not None}
        found[name] = Stage(entry["kind"], folder, entry["inputs"], about["config"], means)
    return found


def rows_of(stages: Mapping[str, Stage]) -> dict[str, dict[str, float]]:
    """`{row: {metric: value}}` of a run, in pipeline order."""
    found: dict[str, dict[str, float]] = {}
    for name, stage in stages.items():
        if stage.kind == "evaluate":
            policy = stage.inputs["policy"]
            prefix = name.removesuffix(f"_{policy}")
            before = "" if prefix == "eval" else f"{prefix}:"
            row = found.setdefault(policy, costs(stages, policy))
            row |= {before + metric: value for metric, value in stage.metrics.items()}
        elif stage.kind in REWARD_MODELS:
            found[name] = {**stage.metrics, **costs(stages, name)}
    return {name: found[name] for name in stages if name in found}


def costs(stages: Mapping[str, Stage], name: str) -> dict[str, float]:
    """What the training of a policy took; see the module."""
    data = {source: stages[source] for source in sources(stages, name)}
    seconds, tokens, samples = spent(stages[name])
    made = [spent(stage) for stage in data.values()]
    took = {
        "seconds": seconds,
        "data_seconds": sum(m[0] for m in made),
        "tokens": tokens + sum(m[1] for m in made),
        "samples": samples + sum(m[2] for m in made),
    }
    return {metric: value for metric, value in took.items() if value}


def sources(stages: Mapping[str, Stage], name: str) -> list[str]:
    """The stages that made a stage's data, each once."""
    found: dict[str, None] = {}
    for source in stages[name].inputs.values():
        if stages[source].kind in DATA:
            found |= dict.fromkeys([*sources(stages, source), source])
    return list(found)


def spent(stage: Stage) -> tuple[float, float, float]:
    """Seconds of its steps, tokens and responses that it sampled."""
    path = stage.folder / "metrics.jsonl"
    steps = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    seconds = len(steps) * statistics.median(s["seconds"] for s in steps) if steps else 0.0
    if stage.kind == "generate":
        rows = (stage.folder / "data.jsonl").read_text().splitlines()
        lengths = [json.loads(row)["length"] for row in rows]
        return seconds, sum(lengths), len(lengths)
    if stage.kind in ("rl", "on_policy_distill"):
        # DAPO's groups that were drawn again and ReMax's greedy responses are samples, but no
        # tokens of the batch: they count with the batch's mean length.
        used = len(steps) * stage.config["rollout_size"]
        drawn = steps[-1].get("verifier_samples", used)
        return seconds, sum(s["tokens"] for s in steps) * drawn / used, drawn
    return seconds, 0.0, 0.0


def cell(values: Sequence[float], metric: str = "") -> str:
    """Mean +- standard error over seeds (each seed); one seed's value as it is."""
    n, mean = len(values), statistics.fmean(values)
    if n == 1 or (metric == "samples" and len(set(values)) == 1):
        return written(mean, metric)
    spread = statistics.stdev(values) / math.sqrt(n)
    each = ", ".join(written(value, metric) for value in values)
    return f"{written(mean, metric)} ± {written(spread, metric)} ({each})"


def written(value: float, metric: str) -> str:
    """A number as its metric is told: thousands of tokens, tenths of a token's length or second."""
    if metric == "samples":
        return f"{value:.0f}"
    if metric == "tokens":
        return f"{value / 1000:.1f}k"
    short = metric.rpartition(":")[2] in ("length", "seconds", "data_seconds", "area")
    return f"{value:.1f}" if short else f"{value:.3f}"


def table(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table; the first column has the rows' names."""
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def policies(runs: Sequence[Mapping[str, Stage]], patterns: str, metrics: Sequence[str]) -> str:
    """Rows that match a pattern and have one of the metrics; `-` where any run has none."""
    found = [rows_of(run) for run in runs]

    def cells(name: str) -> list[str]:
        each = [[run.get(name, {}).get(metric) for run in found] for metric in metrics]
        return [
            "-" if None in values else cell([v for v in values if v is not None], metric)
            for metric, values in zip(metrics, each, strict=True)
        ]

    wanted = patterns.split(",")
    names = [name for name in found[0] if any(fnmatch.fnmatch(name, each) for each in wanted)]
    rows = {name: cells(name) for name in names}
    return table(["", *metrics], {k: v for k, v in rows.items() if set(v) != {"-"}})


def choices(runs: Sequence[Mapping[str, Stage]], stage: str) -> str:
    """What a `rerank` stage found: a row for each way to choose, a column for each number."""
    metrics = [run[stage].metrics for run in runs]
    sizes = [k for k in runs[0][stage].config["sizes"] if k > 1]
    ways = {"nothing (pass@1)": "pass@1", "majority": "maj@{}"}
    for name in runs[0][stage].config["scorers"]:
        ways |= {f"{name}, best": f"best@{{}}/{name}"}
        ways |= {f"{name}, weighted vote": f"weighted@{{}}/{name}"}
    ways["any that is right (pass@k)"] = "pass@{}"
    rows = {
        way: [cell([each[metric.format(k)] for each in metrics]) for k in sizes]
        for way, metric in ways.items()
    }
    return table(["chosen by", *(f"of {k}" for k in sizes)], rows)


def front(runs: Sequence[Mapping[str, Stage]], stage: str) -> str:
    """What a `pareto` stage found: the policies, then the dominated areas."""
    metrics = [run[stage].metrics for run in runs]
    names = [name.removeprefix("-") for name in runs[0][stage].config["objectives"]]
    rows = {}
    place = list(runs[0]).index
    for policy, _ in sorted(runs[0][stage].inputs.items(), key=lambda one: place(one[1])):
        on = sum(int(each[f"on_front/{policy}"]) for each in metrics)
        both = zip(("first", "second"), names, strict=True)
        cells = [cell([each[f"{which}/{policy}"] for each in metrics], n) for which, n in both]
        rows[policy] = [*cells, f"{on} of {len(runs)}"]
    areas = sorted(name for name in metrics[0] if name.startswith("hypervolume"))
    dominated = {
        name.partition("/")[2] or "all": [cell([each[name] for each in metrics], "area")]
        for name in areas
    }
    both = table(["", *names, "on the front"], rows), table(["", "dominated area"], dominated)
    return "\n\n".join(both)


def main() -> None:
    """Print the table of all runs that match."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", help="a pattern of run folders, one a seed")
    parser.add_argument("metrics", nargs="*", help="columns")
    parser.add_argument("--rows", default="*", help="patterns of the rows' names")
    parser.add_argument("--choices", help="a rerank stage")
    parser.add_argument("--front", help="a pareto stage")
    asked = parser.parse_intermixed_args()
    folders = sorted(glob(asked.runs))
    if not folders:
        parser.error(f"{asked.runs!r} matches no folder")
    runs = [read(Path(folder)) for folder in folders]
    if asked.choices:
        print(choices(runs, asked.choices))
    elif asked.front:
        print(front(runs, asked.front))
    else:
        print(policies(runs, asked.rows, asked.metrics))


if __name__ == "__main__":
    main()

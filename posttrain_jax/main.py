"""The `posttrain` command; the only reader of flags.

Exit codes: 0 done, 1 a bug or a failed check, 2 something the user can put right (one message, no
traceback), 130 stopped by Ctrl-C or SIGTERM after saving.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_jax import __version__, evaluation, exchange
from posttrain_jax import verify as verification
from posttrain_jax.recipe import (
    PACKAGE,
    RecipeError,
    describe,
    find_recipe,
    missing,
    read_recipe,
    recipe_paths,
    validate,
)
from posttrain_jax.settings import PREFIX, load_recipe, resolve

STORAGE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)
LISTINGS = ("ls", "plan", "doctor")
TUNED = ("run", "eval", "bench")
INTERRUPTED = 130
KEY_METRICS = ("pass@1", "greedy", "refuse_harmful", "accuracy", "reward", "loss", "kept")


def main(argv: Sequence[str] | None = None, *, typed: str = "") -> int:
    """Run one command; returns its exit code.

    Args:
      argv: the arguments; None takes those of the process, and lets `run` restart the process
        with a faster allocator.
      typed: what the user typed, where a launcher made `argv` of it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = parse(words)
        args.command = typed or args.command
        if args.verb in TUNED and argv is None:
            from posttrain_jax.runtime import restart_tuned

            restart_tuned()
        return args.call(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        if words[0] not in LISTINGS:
            raise
        # The reader of our output left, as in `posttrain ls | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"posttrain: {message}", file=sys.stderr)
        return 2


def explain(error: Exception) -> str | None:
    """The message of an error that is the user's to put right; None for a bug.

    An error counts as the user's where this package raised it on purpose: the innermost frame is
    a `raise` statement in one of its files.
    """
    place = "".join(f" ({note})" for note in getattr(error, "__notes__", []) if "in stage" in note)
    if isinstance(error, OSError) and error.errno in STORAGE:
        what = f"cannot write {error.filename or 'to the run folder'}: {error.strerror}"
    else:
        full = (line for line in str(error).splitlines() if os.strerror(errno.ENOSPC) in line)
        what = next(full, "")  # a library's own words for a full disk
    if what:
        return (
            f"{what}{place}. What is done is kept: make room (or choose another --workdir) and "
            "give the same command again."
        )
    if not isinstance(error, ValueError | FileNotFoundError | RuntimeError):
        return None
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(Path(frame.filename).is_relative_to(f) for f in (PACKAGE, PACKAGE.parent / "launch"))
    return f"{error}{place}" if ours and (frame.line or "").startswith("raise") else None


def parse(words: list[str]) -> argparse.Namespace:
    """Flags, with `--config.a.b=value` (or `--config.a.b value`) collected in `overrides`.

    Raises:
      RecipeError: an argument that the command does not have.
    """
    args, rest = _parser().parse_known_args(words)
    args.command = shlex.join(["posttrain", *words])
    args.overrides = list(_overrides(iter(rest)))
    if args.overrides and args.verb not in ("run", "plan", "eval"):
        raise RecipeError(f"{args.verb} takes no settings: {' '.join(rest)}")
    return args


def _overrides(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        if not word.startswith(PREFIX):
            raise RecipeError(f"unknown argument {word!r}; settings are {PREFIX}key=value")
        if "=" not in word:
            value = next(words, None)
            if value is None:
                raise RecipeError(f"{word} has no value; settings are {PREFIX}key=value")
            word = f"{word}={value}"
        yield word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("posttrain", description="Run post-training recipes.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="command")

    def add(name: str, call: Callable[[argparse.Namespace], int], text: str, *positional: str):
        verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        for each in positional:
            verb.add_argument(each)
        verb.set_defaults(call=call)
        return verb

    list_verb = add("ls", list_recipes, "list the recipes, their presets and stages")
    add("cp", copy, "copy a recipe, to change it", "recipe", "destination")
    run_verb = add("run", run, "run a recipe, or continue where it stopped", "recipe")
    run_verb.add_argument("--workdir", type=Path, help="run folder (runs/<recipe>-<preset>)")
    run_verb.add_argument("--store", type=Path, help="artifacts shared between run folders")
    evaluation.add_eval(add("eval", evaluate, "evaluate a run's policy, or a model in a file"))
    plan_verb = add("plan", plan, "show what a recipe would do", "recipe")
    add("report", report, "write the report of a run folder", "run")
    doctor_verb = add("doctor", doctor, "check this machine")
    for verb in (list_verb, plan_verb, doctor_verb):
        verb.add_argument("--json", action="store_true", help="print JSON")
    export_verb = add("export", exchange.export_run, "write a run's policy as a model folder")
    exchange.add_export(export_verb)
    import_verb = add("import", exchange.import_model, "turn a model file into a plain folder")
    exchange.add_import(import_verb)
    launch_verb = add("launch", launch, "run a recipe as several processes", "where")
    launch_verb.add_argument("arguments", nargs=argparse.REMAINDER)

    verify_verb = add("verify", verify, "judge a file of responses")
    verification.add_arguments(verify_verb)
    bench_verb = add("bench", bench, "this machine's speed")
    bench_verb.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def list_recipes(args: argparse.Namespace) -> int:
    """`posttrain ls`: recipes of the working folder and of the package."""
    rows = [_recipe_row(path) for path in recipe_paths()]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(f"{row['recipe']}  {row['summary']}")
        for preset in row["presets"]:
            lacks = f"  (missing: {'; '.join(preset['missing'])})" if preset["missing"] else ""
            print(f"  :{preset['preset'] or '(default)'}  {' > '.join(preset['stages'])}{lacks}")
        if row["source"]:
            print(f"  source: {row['source']}")
        if row["error"]:
            print(f"  broken: {row['error']}")
    return 0


def _recipe_row(path: Path) -> dict[str, Any]:
    """A recipe and its presets; one that is broken is listed with its error."""
    row: dict[str, Any] = {"recipe": path.name, "path": str(path), "summary": "", "source": ""}
    row |= {"presets": [], "error": ""}
    try:
        found = describe(path)
        row["summary"] = found.summary
        for name in found.presets:
            config = resolve(read_recipe(path, name))
            validate(config)
            row["source"] = row["source"] or str(config["sources"])
            row["presets"].append(
                {"preset": name, "stages": list(config["order"]), "missing": missing(config)}
            )
    except Exception as error:  # someone's unfinished recipe must not hide the others
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def copy(args: argparse.Namespace) -> int:
    """`posttrain cp RECIPE DEST`: never overwrites."""
    path, _ = find_recipe(args.recipe)
    target = Path(args.destination)
    target = target / path.name if target.is_dir() else target
    if target.exists():
        raise RecipeError(f"{target} exists already; choose another name")
    shutil.copyfile(path, target)
    print(f"{target}: change it, then `posttrain run {target}`")
    return 0


def run(args: argparse.Namespace) -> int:
    """`posttrain run RECIPE`."""
    config, remarks = load_recipe(args.recipe, args.overrides)
    if lacks := missing(config):
        raise RecipeError("\n  ".join([f"{args.recipe} can't run yet:", *lacks]))
    workdir = args.workdir or default_workdir(config)
    return _carry_out(args, config, workdir, remarks, _print_table)


def evaluate(args: argparse.Namespace) -> int:
    """`posttrain eval MODEL`: see evaluation.py."""
    asked = evaluation.make(args)
    shown = lambda stages: evaluation.show(asked.workdir, args.json)  # noqa: E731
    return _carry_out(args, asked.config, asked.workdir, asked.remarks, shown, asked.given)


def _carry_out(
    args: argparse.Namespace, config: Mapping[str, Any], workdir: Path, remarks: Sequence[str],
    show: Callable[[Sequence[Any]], None], given: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """Run a config's stages, or continue them; then show the results and write the report.

    Where JSON is asked for, stdout has nothing else: progress goes to stderr.
    """
    from posttrain_jax import interrupt, pipeline, process, runtime

    runtime.use_cache()
    first = process.index() == 0
    say = print if first else lambda text: None
    as_json = getattr(args, "json", False)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        for line in [*remarks, f"{config['recipe']}:{config['preset']} in {workdir}"]:
            say(line)
        try:
            with interrupt.watching():
                stages = pipeline.run_recipe(
                    config, workdir, store=args.store, given=given, say=say
                )
        except interrupt.Interrupted as stop:
            say(f"{stop}. Continue with the same command:\n  {args.command}")
            return INTERRUPTED
    if first:
        from posttrain_jax.report import write_report

        page = write_report(workdir)
        show(stages)
        print(f"report: {page}", file=sys.stderr if as_json else sys.stdout)
    return 0


def default_workdir(config: Mapping[str, Any]) -> Path:
    """`runs/<recipe>-<preset>`, and `-seed<n>` for another seed than 0."""
    seed = f"-seed{config['seed']}" if config["seed"] else ""
    return Path("runs") / f"{config['recipe']}-{config['preset']}{seed}"


def _print_table(stages: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "kind", "seconds", "metrics")
    for stage in stages:
        metrics = stage.artifact.metrics
        chosen = [name for name in KEY_METRICS if name in metrics] or list(metrics)[:3]
        words = ", ".join(f"{name} {_with_error(metrics[name])}" for name in chosen)
        reused = " (reused)" if stage.reused else ""
        table.add_row(stage.record.stage, stage.record.kind, f"{stage.seconds:.1f}{reused}", words)
    Console().print(table)


def _with_error(metric: Mapping[str, float]) -> str:
    if metric["mean"] is None:
        return "not finite"
    error = f" ± {metric['stderr']:.3f}" if metric["stderr"] else ""
    return f"{metric['mean']:.4g}{error}"


def plan(args: argparse.Namespace) -> int:
    """`posttrain plan RECIPE`."""
    config, remarks = load_recipe(args.recipe, args.overrides)
    from posttrain_jax.plan import draw, make_plan

    made = make_plan(config, remarks)
    if args.json:
        print(json.dumps(made, indent=1))
        return 0
    print(f"{made['recipe']}:{made['preset']}  seed {made['seed']}  tokenizer {made['tokenizer']}")
    print("\n".join(["", *draw(config), ""]))
    for stage in made["stages"]:
        count = f"{stage['parameters']:,} parameters" if stage["parameters"] else "size not known"
        if stage["active_parameters"] != stage["parameters"]:
            count += f", {stage['active_parameters']:,} of them for a token"
        if stage["adapter_parameters"]:
            count += f", {stage['adapter_parameters']:,} in the adapters that are trained"
        model = f"  {stage['model']}: {count}" if stage["model"] else ""
        print(f"{stage['name']} [{stage['kind']}]{model}")
        for name, value in stage["sizes"].items():
            print(f"    {name}: {value:,}" if isinstance(value, int) else f"    {name}: {value}")
        for problem in stage["problems"]:
            print(f"    ! {problem}")
    for line in [*made["remarks"], *made["missing"]]:
        print(f"! {line}")
    return 0


def report(args: argparse.Namespace) -> int:
    """`posttrain report RUN`."""
    from posttrain_jax.report import write_report

    print(write_report(Path(args.run)))
    return 0


def doctor(args: argparse.Namespace) -> int:
    """`posttrain doctor`: exit code 1 where something is not well."""
    from posttrain_jax.doctor import findings

    found = findings()
    if args.json:
        print(
            json.dumps([{"what": w, "ok": ok, "detail": text} for w, ok, text in found], indent=1)
        )
    else:
        for what, ok, text in found:
            print(f"{'ok ' if ok else 'BAD'} {what}: {text}")
    return 0 if all(ok for _, ok, _ in found) else 1


def bench(args: argparse.Namespace) -> int:
    """`posttrain bench ...`: see bench/."""
    from posttrain_jax import bench as measurements

    return measurements.main(args.arguments)


def verify(args: argparse.Namespace) -> int:
    """`posttrain verify`: see verify.py."""
    return verification.main(args)


def launch(args: argparse.Namespace) -> int:
    """`posttrain launch WHERE ...`: the file launch/<where>.py."""
    from posttrain_jax import registry

    return registry.load("launch", args.where).main(args.arguments)


if __name__ == "__main__":
    sys.exit(main())

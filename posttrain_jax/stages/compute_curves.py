"""Test-time compute: accuracy against generated tokens, by method, and where to spend them.

Nothing is sampled here. Inputs are finished `generate`, `rerank`, `evaluate` and `search`
artifacts over the same problems. A method is

  {"inputs": (role, ...), "choose": how, "score": name, "sizes": (1, 2, 4), "correct": name}

`choose` is one of evals/selection.py: `mean` (one sample; for thoughts of several lengths, an input
each), `majority`, `best` and `weighted` (by `score`), or `any` (pass@k, a bound for the others),
over k samples for each of `sizes` (powers of two where there are none). A search is one size, what
it found: its finished solutions are chosen from, and `tokens_sampled` is what they cost.

Difficulty is the pass rate of the samples of one input, in quantiles of problems
(evals/difficulty.py). They are not the samples that are scored: where a method has the same input,
the first `samples` of each problem (0: half of them) tell the difficulty and the others are scored.
In each bin the best option of a budget is chosen on one half of the bin's problems and scored on
the other (evals/compute.py), as in Snell et al. 2024, arXiv 2408.03314, section 3.2.

Tokens are those that the policy generates, dropped ones too; what a reward model reads costs
nothing here, and neither do the samples that tell the difficulty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain_jax import artifacts
from posttrain_jax.api import Artifact
from posttrain_jax.evals.bootstrap import with_intervals
from posttrain_jax.evals.compute import Option, compute_optimal, doubling_budgets
from posttrain_jax.evals.difficulty import difficulty_bins, two_folds
from posttrain_jax.evals.problems import Problems, aligned, read_problems, scores_of, split
from posttrain_jax.evals.selection import CHOICES, SCORED, powers_of_two
from posttrain_jax.metrics import MetricLogger, mean_stderr
from posttrain_jax.policy import stage_title
from posttrain_jax.stages.rerank import samples_of

DEFAULTS = {
    "methods": {},
    "correct": "correct",
    "difficulty": {"input": ..., "score": "", "samples": 0},
    "bins": 5,
    "budgets": (),
    "where": {},
}
KEYS = ("inputs", "choose", "score", "sizes", "correct")
OPTIMAL = "compute_optimal"


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Compare the methods.

    Raises:
      ValueError: settings that don't fit each other or the inputs, or inputs over other problems.
    """
    methods = {name: dict(m) for name, m in config.methods.to_dict().items()}
    for name, method in methods.items():
        check_method(name, method, inputs)
        method.setdefault("correct", config.correct)
    judged = config.difficulty.input
    if judged not in inputs:
        raise ValueError(f"difficulty.input={judged!r}: expected one of {sorted(inputs)}")
    if all(method["choose"] == "any" for method in methods.values()):
        raise ValueError(
            f"methods={sorted(methods)}: expected one that chooses an answer, as 'any' does not"
        )
    score = config.difficulty.score or config.correct
    used = sorted({judged}.union(*(m["inputs"] for m in methods.values())))
    wanted = config.where.to_dict()
    read = aligned({role: read_problems(inputs[role], role, wanted) for role in used})
    scored_too = any(judged in m["inputs"] for m in methods.values())
    telling, read[judged] = split(read[judged], judged, config.difficulty.samples, scored_too)
    rate = np.array([np.mean(scores_of(rows, score, judged)) for rows in telling.values()])
    bins = difficulty_bins(rate, config.bins)
    made = {name: method_options(name, m, read) for name, m in methods.items()}
    options = [option for each in made.values() for option in each]
    real = [o for name, each in made.items() for o in each if methods[name]["choose"] != "any"]
    folds = two_folds(bins, config.seed)
    metrics = summarise(options, rate, bins, folds, real, tuple(config.budgets))
    with MetricLogger(workdir, 1, stage_title(workdir)) as log:
        log(1, {name: metrics[name]["mean"] for name in ("accuracy", "tokens")})
    return artifacts.finish(workdir, metrics=metrics | {"problems": len(rate)})


def check_method(name: str, method: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> None:
    """Raise ValueError for settings of a method that can't be."""
    where = f"methods.{name}"
    if "/" in name or name == OPTIMAL:
        raise ValueError(f"{where}: expected a name without '/' that is not {OPTIMAL!r}")
    if unknown := sorted(set(method) - set(KEYS)):
        raise ValueError(f"{where} has {unknown}; there are {', '.join(KEYS)}")
    if isinstance(method.get("inputs", ""), str) or set(method["inputs"]) - set(inputs):
        raise ValueError(
            f"{where}.inputs={method.get('inputs')!r}: expected a list of {sorted(inputs)}"
        )
    how = method.get("choose")
    if how not in CHOICES:
        raise ValueError(f"{where}.choose={how!r}: expected one of {', '.join(CHOICES)}")
    if (how in SCORED) != bool(method.get("score")):
        raise ValueError(
            f"{where}.score={method.get('score', '')!r}: {', '.join(SCORED)} need the name of a "
            f"score, others take none; choose is {how!r}"
        )


def method_options(
    name: str, method: Mapping[str, Any], read: Mapping[str, Problems]
) -> list[Option]:
    """The options of a method: an input at one size each, named `<method>/<what tells them apart>`.

    Raises:
      ValueError: a score that the samples don't have, or more samples than there are.
    """
    how, scorer = method["choose"], method.get("score", "")
    scorers, options = ([scorer] if scorer else []), list[Option]()
    for role in method["inputs"]:
        problems = list(read[role].values())
        for rows in problems:
            for each in (method["correct"], *scorers):
                scores_of(rows, each, role)
        if "tokens_sampled" in problems[0][0]:
            ended = [[row for row in rows if row["finished"]] for rows in problems]
            right = [
                CHOICES[how](samples_of(rows, method["correct"], scorers), scorer, len(rows))
                if rows else 0.0 for rows in ended
            ]  # fmt: skip
            cost = [rows[0]["tokens_sampled"] for rows in problems]
            options.append(Option(f"{name}/{role}", np.array(right), np.array(cost, float)))
            continue
        fewest = min(map(len, problems))
        sizes = (1,) if how == "mean" else tuple(method.get("sizes") or powers_of_two(fewest))
        if not 1 <= min(sizes) <= max(sizes) <= fewest:
            raise ValueError(
                f"methods.{name}.sizes={sizes}: expected 1 to {fewest}, the samples of {role!r} "
                "that are scored"
            )
        samples = [samples_of(rows, method["correct"], scorers) for rows in problems]
        length = np.array([np.mean([row["length"] for row in rows]) for rows in problems])
        for k in sizes:
            right = np.array([CHOICES[how](each, scorer, k) for each in samples])
            label = role if len(sizes) == 1 else str(k)
            label = f"{role}@{k}" if len(sizes) > 1 and len(method["inputs"]) > 1 else label
            options.append(Option(f"{name}/{label}", right, k * length))
    return options


def summarise(
    options: Sequence[Option], rate: np.ndarray, bins: np.ndarray, folds: np.ndarray,
    real: Sequence[Option], budgets: Sequence[float] = (),
) -> dict[str, Any]:  # fmt: skip
    """All metrics; n counts problems, and bins are counted from 1, the easiest.

    `accuracy/<option>` and `tokens/<option>`; `bin<i>/<option>`, the accuracy in a bin;
    `difficulty/<i>`, its pass rate; `accuracy/compute_optimal/<budget>` and its `tokens`;
    `chosen<i>/<budget>/<option>`, the share of the folds of bin i that chose it. `accuracy` and
    `tokens` are those of the largest budget.

    Args:
      real: the options that the choice is among: those that know no right answer.
    """
    columns = {f"accuracy/{option.name}": option.right_P for option in options}
    tokens = {f"tokens/{option.name}": option.tokens_P for option in options}
    metrics: dict[str, Any] = {}
    for budget in budgets or doubling_budgets(real):
        found = compute_optimal(real, bins, folds, budget)
        label = f"{budget:.1f}".removesuffix(".0")
        name = f"{OPTIMAL}/{label}"
        columns[f"accuracy/{name}"], tokens[f"tokens/{name}"] = found.right_P, found.tokens_P
        columns["accuracy"], tokens["tokens"] = found.right_P, found.tokens_P
        for number, chosen in found.chosen.items():
            for option, count in chosen.items():
                share = count / chosen.total()
                metrics[f"chosen{number + 1}/{label}/{option}"] = share
    metrics |= with_intervals({name: values.tolist() for name, values in columns.items()})
    metrics |= {name: mean_stderr(values.tolist()) for name, values in tokens.items()}
    for number in np.unique(bins).tolist():
        inside = bins == number
        metrics[f"difficulty/{number + 1}"] = mean_stderr(rate[inside].tolist())
        for option in options:
            values = option.right_P[inside].tolist()
            metrics[f"bin{number + 1}/{option.name}"] = mean_stderr(values)
    return metrics

"""The counters that must not be silent: what a run skipped, cut, masked or dropped, by stage.

They are found by name in the steps (metrics.jsonl) and in the metrics of every stage. A counter
that an RL stage should have logged and did not is listed as not recorded, never as zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain_jax.report.records import Run, Stage
from posttrain_jax.report.vocabulary import GAP_LIMIT, plain, spoken, term

EXPECTED = {"rl": ("truncated", "masked", "all_equal_groups", "skipped")}
RUNNING_TOTALS = ("skipped",)
"""Counters that count from the start of the stage: their last step is the sum."""
_NAMES = re.compile(
    r"truncat|mask|all_equal|skip|drop|timeout|infra|restart|poison|duplicat|contaminat|"
    r"too_long|non_?finite|killed|lost|retried|forged|surplus|repeated|unfinished|below_|"
    r"equal_sides|equal_to_greedy|groups_of_one|empty|no_pair"
)


@dataclass(frozen=True)
class Count:
    """One counter of one stage; `level` is `none`, `some` or `unknown`.

    Attributes:
      overall: the mean over the steps for shares, the sum for counts.
      worst: the largest step and where it was, empty for a counter without steps.
    """

    stage: str
    name: str
    label: str
    meaning: str
    overall: str
    worst: str
    level: str


def is_counter(name: str) -> bool:
    """True for the name of a counter, by which it is kept out of the table of metrics."""
    return bool(_NAMES.search(name)) and "/" not in name


def counts(run: Run) -> list[Count]:
    """Every counter of every stage, in pipeline order."""
    return [count for stage in run.stages for count in _stage_counts(stage)]


def warnings(run: Run) -> list[str]:
    """What a reader should know before trusting the numbers, one sentence each."""
    found = []
    for stage in run.stages:
        gaps = [(row["logprob_gap"], row["step"]) for row in stage.steps if "logprob_gap" in row]
        if gaps and max(gaps)[0] > GAP_LIMIT:
            gap, step = max(gaps)
            over = sum(g > GAP_LIMIT for g, _ in gaps)
            found.append(
                f"{stage.name}: sampler and trainer disagree by up to {plain(gap)} nats "
                f"(step {step:.0f}; {over} of {len(gaps)} steps above {plain(GAP_LIMIT)})."
            )
        equal = [row["all_equal_groups"] for row in stage.steps if "all_equal_groups" in row]
        if equal and max(equal) <= 1 and sum(equal) / len(equal) > 0.5:
            found.append(f"{stage.name}: more than half of the groups gave no gradient.")
        cut = [row["truncated"] for row in stage.steps if "truncated" in row]
        if cut and max(cut) <= 1 and sum(cut[-5:]) / len(cut[-5:]) > 0.2:
            found.append(f"{stage.name}: over a fifth of the last rollouts hit the length limit.")
    return found


def _stage_counts(stage: Stage) -> list[Count]:
    logged = [key for key in {k for row in stage.steps for k in row} if is_counter(key)]
    stated = [key for key in stage.metrics if is_counter(key) and key not in logged]
    expected = EXPECTED.get(stage.kind, ()) if stage.steps else ()
    missing = [e for e in expected if not {e, f"{e}_steps"} & {*logged, *stated}]
    made = [_from_steps(stage, name) for name in sorted(logged)]
    made += [_from_metrics(stage, name) for name in sorted(stated)]
    made += [_count(stage, name, "not recorded", "", "unknown") for name in missing]
    return made


def _from_steps(stage: Stage, name: str) -> Count:
    values = [(row[name], -row["step"]) for row in stage.steps if name in row]
    total = sum(v for v, _ in values)
    worst, at = max(values)
    if name in RUNNING_TOTALS:
        return _count(stage, name, plain(worst), "", "some" if worst > 0 else "none")
    fractions = any(v != int(v) for v, _ in values)
    share = worst <= 1 and (fractions or (term(name).share and stage.kind == "rl"))
    overall = f"{100 * total / len(values):.1f} % on average" if share else plain(total)
    peak = f"{100 * worst:.1f} %" if share else plain(worst)
    level = "some" if worst > 0 else "none"
    return _count(stage, name, overall, f"{peak} at step {-at:.0f}" if worst else "", level)


def _from_metrics(stage: Stage, name: str) -> Count:
    value = stage.metrics[name].mean
    share = term(name).share and value <= 1 and stage.kind == "rl"
    text = f"{100 * value:.1f} %" if share else plain(value)
    return _count(stage, name, text, "", "some" if value > 0 else "none")


def _count(stage: Stage, name: str, overall: str, worst: str, level: str) -> Count:
    known = term(name)
    return Count(stage.name, name, spoken(known.label), known.meaning, overall, worst, level)

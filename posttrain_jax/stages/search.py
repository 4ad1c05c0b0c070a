"""Search with a policy and a process reward model: by beams, with lookahead, or in a tree.

`beam` is that of Snell et al. 2024, arXiv 2408.03314, section 5.2: sample N first steps; keep the
N / M that the process model scores highest, M the `width`; sample M next steps from each; and so
on, until all have ended or `rounds` are over. A beam that has ended keeps its place among the N, so
that no more than N solutions are sampled. As M, the paper has 4 and the root of N. `lookahead` is
the same with each step scored `lookahead` greedy steps further (there 1 or 3), which costs as many
samples again. `mcts` is Monte Carlo tree search with the settings of rStar-Math (arXiv 2501.04519;
its config/sft_sample_mcts.yaml): see rollout/tree_search.py.

With mcts.ends="process" the process model judges the ends: an evaluation, in which the answer is
looked at last. With "verifier" the verifier judges them and the `rollouts` of each candidate: data
to train on, with which a process model may be missing. steps/data.jsonl then has the sibling steps
with the largest gaps in value, for a `process_reward` stage, {"input": role, "folder": "steps"}.

A row of data.jsonl is a solution, as stages/generate.py writes samples: `response`, `sample`,
`finished`, `steps`, `chances`, and `scores` of the verifier (`correct`), of the process model
(`process`) and of the tree (`value`; `prior`: how likely the policy says it; `posterior`: prior
times process). `tokens_sampled` counts the tokens of a problem, also of steps that were dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from posttrain_jax import artifacts, interrupt, process
from posttrain_jax.api import Artifact
from posttrain_jax.data.examples import load_examples
from posttrain_jax.evals.selection import best_of, weighted_vote
from posttrain_jax.files import write_text
from posttrain_jax.mesh import barrier, check_batch, total
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr
from posttrain_jax.policy import open_mesh, open_text, stage_title
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.search_methods import check, open_search, solutions, verified
from posttrain_jax.rollout.search_rows import solution_rows
from posttrain_jax.stages.generate import lines, merge, resume, written
from posttrain_jax.stages.rerank import answer_number
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = {
    "method": "beam",
    "data": {},
    "system": "",
    "separators": (),
    "beams": 16,
    "width": 4,
    "rounds": 40,
    "lookahead": 1,
    "mcts": {
        "iterations": 48,
        "candidates": 12,
        "depth": 16,
        "c_puct": 2.0,
        "rollouts": 0,
        "ends": "process",
        "traces": 16,
        "pairs": 16,
    },
    "aggregate": "last",
    "temperature": 1.0,
    "top_p": 1.0,
    "batch_size": 8,
    "prompt_length": ...,
    "max_step": ...,
    "max_new": ...,
    "verifier": "task_answer",
    "verifier_options": {},
    "model_options": {},
    "workers": 2,
}
ABOUT = ("tokens_sampled", "nodes", "iterations")
"""Numbers of a problem that its rows repeat."""
STEPS = "steps"
"""The folder of labelled steps in the artifact."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Search with inputs["policy"] and inputs["process_reward"]."""
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    check(config, inputs)
    check_batch(mesh, "batch_size", config.batch_size)
    verifier = {"correct": {"verifier": config.verifier, **config.verifier_options}}
    with jax.set_mesh(mesh), Pool(verifier, workers=config.workers) as pool:
        search, reading = open_search(config, inputs, mesh, text, pool)
        examples = load_examples(config.data, inputs, config.seed)
        prompts = engine.encode_prompts(examples, *text, config.prompt_length, config.system)
        count, size = len(prompts.examples), config.batch_size
        start, here = resume(workdir, count, solutions(config), size), _share(size)
        if verified(config):
            _gather_steps(workdir / STEPS)
        with MetricLogger(workdir, -(-count // size), stage_title(workdir), start) as log:
            for index, (batch, real) in enumerate(engine.batches(prompts, size, start), start):
                mine, first = batch.take(here), index * size + here.start
                with phases("search"):
                    found = search(mine, first)
                with phases("verify"):
                    rows = solution_rows(reading, pool, mine.examples, found, first)
                steps = [row | {"index": first + row["index"]} for row in found.steps]
                _append(workdir / STEPS, steps, index * size + real)
                _append(workdir, rows, index * size + real)
                right = sum(row["scores"]["correct"] for row in rows)
                right, asked = total(np.array([right, len(rows)]))
                log(index + 1, {"accuracy": float(right / asked), "rounds": found.rounds})
                if interrupt.requested():
                    raise interrupt.Interrupted(index + 1)
    barrier("all solutions are written")
    metrics: dict[str, Any] = {"problems": count, "skipped_prompts": prompts.skipped}
    if process.index() == 0:
        if verified(config):
            metrics["step_pairs"] = len(merge(workdir / STEPS)) // 2
        metrics |= summarise(merge(workdir), config.method, not verified(config))
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def summarise(
    rows: Sequence[Mapping[str, Any]], method: str = "beam", fair: bool = True
) -> dict[str, Any]:
    """How often each way to choose among the solutions of a problem is right; n counts problems.

    Only finished solutions are chosen from; a problem without one is wrong. A tree has a solution
    once, however likely it is: there it counts by its `prior`.

    Args:
      fair: the solutions were found without the answer. Where not, choosing says nothing.
    """
    name, score = ("trace", "posterior") if method == "mcts" else ("beam", "process")
    problems: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        problems.setdefault(row["index"], []).append(row)
    columns: dict[str, list[float]] = {}
    for mine in problems.values():
        ended = [row for row in mine if row["finished"]]
        right = [row["scores"]["correct"] * (not row["masked"]) for row in ended]
        found = {f"{name}_any": float(any(r >= 0.5 for r in right))}
        if fair:
            voices = [row["scores"].get("prior", 1.0) for row in ended]
            scores = [row["scores"][score] for row in ended]
            answers = [answer_number(row["response"]) for row in ended]
            found |= {
                f"{name}_best": best_of(scores, right, len(ended)) if ended else 0.0,
                f"{name}_weighted": weighted_vote(answers, scores, right),
                f"{name}_majority": weighted_vote(answers, voices, right),
            }
        found["finished"] = len(ended) / len(mine)
        found |= {key: float(mine[0][key]) for key in ABOUT if key in mine[0]}
        for key, value in found.items():
            columns.setdefault(key, []).append(value)
    return {key: mean_stderr(values) for key, values in columns.items()}


def _share(size: int) -> range:
    """This host's part of a batch."""
    part = size // process.count()
    return range(process.index() * part, (process.index() + 1) * part)


def _append(folder: Path, rows: Sequence[Mapping[str, Any]], end: int) -> None:
    """Write this host's rows of the problems before number `end`: behind it stand repeated ones."""
    if kept := [row for row in rows if row["index"] < end]:
        with open(folder / f"part-{process.index()}.jsonl", "a", encoding="utf-8") as file:
            file.write(lines(kept))


def _gather_steps(folder: Path) -> None:
    """Write what a killed run left once more, in one file without a torn line.

    Rows of a batch that is searched again come again, the same; `written` has each once.
    """
    if process.index() == 0:
        folder.mkdir(exist_ok=True)
        write_text(folder / "part-0.jsonl", lines(written(folder).values()))
        for part in folder.glob("part-*.jsonl"):
            if part.name != "part-0.jsonl":
                part.unlink()
    barrier("the steps of a killed run are gathered")

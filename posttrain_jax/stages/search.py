"""Beam search with a process reward model, at the budget of `beams` samples a problem.

Snell et al. 2024, arXiv 2408.03314, section 5.2: sample N first steps; keep the N / M that the
process model scores highest, M the `width`; sample M next steps from each; and so on, until all
have ended or `rounds` are over. A beam that has ended keeps its place among the N, so that no more
than N solutions are sampled; `tokens_sampled` counts the tokens of a problem, also of steps that
were dropped. The answer is the finished beam with the highest score, or a vote of the finished
ones. As M, the paper has 4 and the root of N. Left out: its lookahead.

A row of data.jsonl is a beam, as stages/generate.py writes samples: `response`, `sample`,
`finished`, `steps`, `chances`, and `scores` of the verifier (`correct`) and of the process model
(`process`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, interrupt, process, process_reward
from posttrain_jax.api import Artifact
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.steps import split_steps
from posttrain_jax.evals.accuracy import majority
from posttrain_jax.evals.selection import best_of, weighted_vote
from posttrain_jax.mesh import barrier, check_batch
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr
from posttrain_jax.policy import Text, load_policy, open_mesh, open_text, stage_title
from posttrain_jax.process_reward import AGGREGATES, aggregate
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.beams import Found, Limits, Searcher, search, step_stops
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.stages.generate import lines, merge, resume
from posttrain_jax.stages.rerank import answer_number
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = {
    "data": {},
    "system": "",
    "beams": 16,
    "width": 4,
    "rounds": 40,
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


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Search with inputs["policy"] and inputs["process_reward"]."""
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    check(config)
    check_batch(mesh, "batch_size", config.batch_size)
    verifier = {"correct": {"verifier": config.verifier, **config.verifier_options}}
    with jax.set_mesh(mesh), Pool(verifier, workers=config.workers) as pool:
        searcher = open_searcher(config, inputs, mesh, text)
        examples = load_examples(config.data, inputs, config.seed)
        prompts = engine.encode_prompts(examples, *text, config.prompt_length, config.system)
        count, size = len(prompts.examples), config.batch_size
        start, here = resume(workdir, count, config.beams, size), _share(size)
        with MetricLogger(workdir, -(-count // size), stage_title(workdir), start) as log:
            for index, (batch, real) in enumerate(engine.batches(prompts, size, start), start):
                mine, first = batch.take(here), index * size + here.start
                with phases("search"):
                    found, rounds = search(searcher, mine, first)
                with phases("verify"):
                    rows = rows_of(searcher, pool, mine.examples, found, first)
                kept = [row for row in rows if row["index"] < index * size + real]
                with open(workdir / f"part-{process.index()}.jsonl", "a", encoding="utf-8") as file:
                    file.write(lines(kept))
                mean = np.mean([row["scores"]["correct"] for row in rows])
                log(index + 1, {"accuracy": float(mean), "rounds": rounds})
                if interrupt.requested():
                    raise interrupt.Interrupted(index + 1)
    barrier("all beams are written")
    rows = merge(workdir) if process.index() == 0 else []
    metrics = {"problems": count, "skipped_prompts": prompts.skipped, **summarise(rows)}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def check(config: Any) -> None:
    """Raise ValueError for sizes that can't be."""
    if config.width < 1 or config.beams % config.width:
        raise ValueError(
            f"width={config.width} does not divide beams={config.beams}: beams / width are kept"
        )
    if config.aggregate not in AGGREGATES:
        raise ValueError(f"aggregate={config.aggregate!r}: expected one of {', '.join(AGGREGATES)}")


def open_searcher(config: Any, inputs: Mapping[str, Artifact], mesh: Mesh, text: Text) -> Searcher:
    """The models and rules of a search.

    Raises:
      ValueError: a process model with a marker (its steps end where a token is put in, which the
        policy can't say), or too short for what the policy may write.
    """
    judge = process_reward.load(inputs["process_reward"], mesh)
    if judge.marker:
        raise ValueError(f"the process model reads a marker, {judge.marker!r}; search needs none")
    if (most := config.prompt_length + config.max_new) > judge.length:
        raise ValueError(
            f"prompt_length + max_new = {most}, over the process model's length={judge.length}"
        )
    model, params = load_policy(inputs["policy"], mesh, **config.model_options)
    stops = step_stops(text.tokenizer, judge.separators)
    limits = Limits(**{name: config[name] for name in Limits._fields})
    sampling = Sampling(
        config.temperature, top_p=config.top_p, stop=(*stops, text.tokenizer.eos_id)
    )
    return Searcher(
        model, engine.for_sampling(params, model, mesh), judge, mesh, text.tokenizer, limits, stops,
        sampling, config.seed,
    )  # fmt: skip


def rows_of(
    searcher: Searcher, pool: Pool, examples: Sequence[Mapping[str, Any]],
    found: Sequence[Found], first: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """The beams as samples; `first` is the number of the first prompt."""
    tokenizer, how = searcher.tokenizer, searcher.limits.aggregate
    flat = [(i, n, beam) for i, mine in enumerate(found) for n, beam in enumerate(mine.beams)]
    said = [tokenizer.decode(beam.tokens) for _, _, beam in flat]
    right, sound = pool(said, [examples[i] for i, _, _ in flat])
    return [
        {
            **examples[i], "response": response, "index": first + i, "sample": n,
            "length": len(beam.tokens) + beam.finished, "finished": beam.finished,
            "masked": not ok, "forged": any(m in response for m in tokenizer.markers),
            "tokens_sampled": found[i].sampled, "chances": beam.chances,
            "steps": split_steps(response, searcher.judge.separators),
            "scores": {
                "correct": float(score[0]),
                "process": aggregate(beam.chances, how) if beam.chances else 0.0,
            },
        }
        for (i, n, beam), response, score, ok in zip(flat, said, right, sound, strict=True)
    ]  # fmt: skip


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often each way to choose among the beams of a problem is right; n counts problems.

    Only finished beams are chosen from; a problem without one is wrong.
    """
    problems: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        problems.setdefault(row["index"], []).append(row)
    columns: dict[str, list[float]] = {}
    for mine in problems.values():
        ended = [row for row in mine if row["finished"]]
        right = [row["scores"]["correct"] * (not row["masked"]) for row in ended]
        scores = [row["scores"]["process"] for row in ended]
        answers = [answer_number(row["response"]) for row in ended]
        found = {
            "beam_best": best_of(scores, right, len(ended)) if ended else 0.0,
            "beam_weighted": weighted_vote(answers, scores, right),
            "beam_majority": majority(answers, right),
            "beam_any": float(any(r >= 0.5 for r in right)),
            "finished": len(ended) / len(mine),
            "tokens_sampled": float(mine[0]["tokens_sampled"]),
        }
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return {name: mean_stderr(values) for name, values in columns.items()}


def _share(size: int) -> range:
    """This host's part of a batch."""
    part = size // process.count()
    return range(process.index() * part, (process.index() + 1) * part)

"""Labels of steps by sampling: how often a solution can still be ended right after each step.

Math-Shepherd (arXiv 2312.08935, section 3.3) and Qwen2.5-Math-PRM (arXiv 2501.07301, sections 2.1
and 3.1): from the end of each step `samples` completions are sampled and verified. The hard label
is 1 where any of them is right, the soft one the share of right ones. The last step needs none: it
is right where the answer is. Steps behind the first wrong one are dropped. With `judge`, only
solutions stay for which the judge finds the same first wrong step (there, about 40 %).

A row is the solution's example with `steps` (all of them), `step_labels` and `step_shares` (up to
the first wrong one). Batches of prefixes are written as they are done, as in stages/generate.py: a
killed run goes on at the first that is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from posttrain_jax import artifacts, interrupt, process
from posttrain_jax.api import Artifact, Rollout
from posttrain_jax.data.examples import DATA, load_examples
from posttrain_jax.data.steps import Steps, encode_steps, split_steps
from posttrain_jax.evals.first_error import first_error
from posttrain_jax.files import write_text
from posttrain_jax.mesh import barrier, check_batch, local_rows, local_slice, total
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr
from posttrain_jax.policy import Text, load_policy, open_mesh, open_text, stage_title
from posttrain_jax.rewards import make_terms
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.judges import open_judges
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.stages.generate import lines, resume, written
from posttrain_jax.verifiers.judging.judge import Judge
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = {
    "data": {},
    "system": "",
    "separators": ("\n\n",),
    "samples": 8,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "batch_size": 32,
    "prompt_length": ...,
    "max_new": ...,
    "verifier": "task_answer",
    "verifier_options": {},
    "judge": {},
    "model_options": {},
    "workers": 2,
}


class Solution(NamedTuple):
    """A solution and the tokens at which its steps end."""

    example: Mapping[str, Any]
    steps: list[str]
    encoded: Steps


class Prefix(NamedTuple):
    """The first steps of a solution, to be completed."""

    solution: int
    step: int


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Label the solutions (`response`) of `config.data` by completions of inputs["policy"]."""
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    check_batch(mesh, "batch_size", config.batch_size)
    verifier = {"right": {"verifier": config.verifier, **config.verifier_options}}
    with jax.set_mesh(mesh), Pool(verifier, workers=config.workers) as pool:
        judges = open_judges(
            make_terms({"consensus": config.judge.to_dict()} if config.judge else {}).terms,
            inputs, mesh, text,
        )  # fmt: skip
        solutions, counts = read_solutions(config, inputs, text)
        prefixes, prompts = make_prompts(config, solutions, text)
        counts["dropped_long_prefixes"] = prompts.skipped
        with phases("sample"):
            complete(config, workdir, inputs, mesh, text, pool, solutions, prefixes, prompts)
        with phases("verify"):
            ended, sound = verdicts(pool, [s.example for s in solutions],
                                    [s.example["response"] for s in solutions])  # fmt: skip
        barrier("all completions are written")
        shares = tally(solutions, prefixes, written(workdir).values(), ended, sound)
        rows, more = label(solutions, shares)
        if judges:
            with phases("judge"):
                rows, agreed = consensus(judges["consensus"], rows)
            more.update(agreed)
    if not rows:
        raise ValueError(f"no solution of {len(solutions)} has a labelled step; counts: {more}")
    barrier("all completions are read")
    if process.index() == 0:
        write_text(workdir / DATA, lines(rows))
        for part in workdir.glob("part-*.jsonl"):
            part.unlink()
    wrong = [float(first_error(row["step_labels"]) >= 0) for row in rows]
    soft = [float(np.mean(row["step_shares"])) for row in rows]
    metrics = {
        "solutions": len(solutions), "kept": len(rows),
        "completions": len(prefixes) * config.samples,
        "with_error": mean_stderr(wrong), "step_share": mean_stderr(soft), **counts, **more,
    }  # fmt: skip
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def read_solutions(
    config: Any, inputs: Mapping[str, Artifact], text: Text
) -> tuple[list[Solution], Counter[str]]:
    """The solutions that can be labelled, as steps, and what was left out.

    Raises:
      ValueError: an example without a response; or nothing is left.
    """
    counts = Counter(dropped_masked=0, dropped_forged=0, dropped_unfinished=0, dropped_empty=0)
    found = []
    for example in load_examples(config.data, inputs, config.seed):
        if not isinstance(example.get("response"), str):
            raise ValueError(f"example {example.get('id')!r} has no response to label")
        response = example["response"]
        steps = split_steps(response, config.separators)
        if example.get("masked"):
            counts["dropped_masked"] += 1
        elif any(marker in response for marker in text.tokenizer.markers):
            counts["dropped_forged"] += 1
        elif not example.get("finished", True):
            counts["dropped_unfinished"] += 1
        elif not steps:
            counts["dropped_empty"] += 1
        else:
            found.append(
                Solution(example, steps, encode_steps(*text, example, steps, system=config.system))
            )
    if not found:
        raise ValueError(f"none of the solutions can be labelled; counts: {dict(counts)}")
    return found, counts


def make_prompts(
    config: Any, solutions: Sequence[Solution], text: Text
) -> tuple[list[Prefix], engine.Prompts]:
    """What is completed: every step's end but the last, token by token as it was said.

    Prefixes that are longer than `prompt_length` are skipped and counted, and so are those that
    end inside of a token.
    """
    prefixes, rows, skipped = [], [], 0
    for number, solution in enumerate(solutions):
        for step, end in enumerate(solution.encoded.ends[:-1]):
            if 0 <= end < config.prompt_length:
                prefixes.append(Prefix(number, step))
                rows.append(solution.encoded.tokens[: end + 1])
            else:
                skipped += 1
    tokens = np.full((len(rows), config.prompt_length), text.tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate(rows):
        tokens[row, config.prompt_length - len(ids) :] = ids
        segments[row, config.prompt_length - len(ids) :] = 1
    examples: list[Mapping[str, Any]] = [
        {**solutions[p.solution].example, "prefix": number} for number, p in enumerate(prefixes)
    ]
    return prefixes, engine.Prompts(examples, tokens, segments, skipped)


def complete(
    config: Any, workdir: Path, inputs: Mapping[str, Artifact], mesh, text: Text, pool: Pool,
    solutions: Sequence[Solution], prefixes: Sequence[Prefix], prompts: engine.Prompts,
) -> None:  # fmt: skip
    """Complete and verify every prefix; a row of the part files says how many were right."""
    model, params = load_policy(inputs["policy"], mesh, **config.model_options)
    params = engine.for_sampling(params, model, mesh)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p)
    size, samples = config.batch_size, config.samples
    start = resume(workdir, len(prefixes), 1, size)
    with MetricLogger(workdir, -(-len(prefixes) // size), stage_title(workdir), start) as log:
        for index, (batch, real) in enumerate(engine.batches(prompts, size, start), start):
            rollout = engine.roll_out(model, params, engine.job(
                batch, mesh, text.tokenizer, sampling=sampling, seed=config.seed,
                first_uid=index * size * samples, group_size=samples, max_new=config.max_new,
            ))  # fmt: skip
            here = local_slice(rollout.tokens_BT)
            asked = [e for e in batch.examples for _ in range(samples)][here]
            starts = [_said(solutions, prefixes[e["prefix"]]) for e in asked]
            right, sound = verdicts(pool, asked, continued(rollout, starts, text.tokenizer))
            first = here.start // samples
            rows = [
                {
                    "index": asked[i]["prefix"],
                    "sample": 0,
                    "right": int(right[i : i + samples].sum()),
                    "asked": int(sound[i : i + samples].sum()),
                }
                for i in range(0, len(asked), samples)
                if first + i // samples < real
            ]
            with open(workdir / f"part-{process.index()}.jsonl", "a", encoding="utf-8") as file:
                file.write(lines(rows))
            counts = [sum(row[key] for row in rows) for key in ("right", "asked")]
            found, judged = total(np.array(counts))
            log(index + 1, {"accuracy": float(found / max(1, judged))})
            if interrupt.requested():
                raise interrupt.Interrupted(index + 1)


def verdicts(pool: Pool, examples, responses) -> tuple[np.ndarray, np.ndarray]:
    """Which responses are right, and which of them the verifier could judge."""
    scores, sound = pool(responses, examples)
    sound = np.asarray(sound, bool)
    return (np.asarray(scores)[:, 0] >= 0.5) & sound, sound


def tally(
    solutions: Sequence[Solution], prefixes: Sequence[Prefix], rows, ended, sound
) -> list[list[float]]:
    """The share of right completions after each step of each solution; NaN is not known."""
    shares = [[float("nan")] * len(solution.steps) for solution in solutions]
    for row in rows:
        if row["asked"]:
            where = prefixes[row["index"]]
            shares[where.solution][where.step] = row["right"] / row["asked"]
    for number, (right, known) in enumerate(zip(ended, sound, strict=True)):
        if known:
            shares[number][-1] = float(right)
    return shares


def label(
    solutions: Sequence[Solution], shares: Sequence[Sequence[float]]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows with the labels up to the first wrong step, and what was left out.

    Where a share is not known, the labels end before it.
    """
    rows = []
    counts = Counter(steps=0, dropped_after_error=0, dropped_unknown=0, dropped_unlabelled=0)
    for solution, values in zip(solutions, shares, strict=True):
        known = next((i for i, v in enumerate(values) if np.isnan(v)), len(values))
        wrong = first_error([float(v > 0) for v in values[:known]])
        kept = wrong + 1 if wrong >= 0 else known
        reason = "dropped_after_error" if wrong >= 0 else "dropped_unknown"
        counts[reason] += len(values) - kept
        counts["steps"] += kept
        if not kept:
            counts["dropped_unlabelled"] += 1
            continue
        hard, soft = [float(v > 0) for v in values[:kept]], list(values[:kept])
        rows.append(
            {**solution.example, "steps": solution.steps, "step_labels": hard, "step_shares": soft}
        )
    return rows, counts


def consensus(
    judge: Judge, rows: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows for which a judge finds the same first wrong step, and how many it does not.

    The judge scores each prefix up to its last step, `step` of the example; below a half it is
    wrong.
    """
    asked = [
        ({**row, "step": row["steps"][i].strip()}, "".join(row["steps"][: i + 1]))
        for row in rows for i in range(len(row["step_labels"]))
    ]  # fmt: skip
    found = iter(judge.score([example for example, _ in asked], [said for _, said in asked]))
    kept, counts = [], Counter(dropped_judge_disagrees=0, dropped_judge_failed=0)
    for row in rows:
        said = [next(found) for _ in row["step_labels"]]
        if any(verdict.status == "infra_error" for verdict in said):
            counts["dropped_judge_failed"] += 1
        elif first_error([v.score for v in said]) != first_error(row["step_labels"]):
            counts["dropped_judge_disagrees"] += 1
        else:
            kept.append(row)
    return kept, counts


def continued(rollout: Rollout, starts: Sequence[Sequence[int]], tokenizer) -> list[str]:
    """The responses of this host's rows: what was there of each, and its completion.

    They are decoded as one: some tokenizers drop a space where a text begins.
    """
    tokens, mask = local_rows(rollout.tokens_BT), local_rows(rollout.completion_mask_BT)
    whole = [[*start, *row[kept]] for start, row, kept in zip(starts, tokens, mask, strict=True)]
    return [tokenizer.decode([int(t) for t in row if t != tokenizer.eos_id]) for row in whole]


def _said(solutions: Sequence[Solution], prefix: Prefix) -> list[int]:
    """The tokens of the response up to the end of a prefix."""
    encoded = solutions[prefix.solution].encoded
    return encoded.tokens[encoded.prompt : encoded.ends[prefix.step] + 1].tolist()

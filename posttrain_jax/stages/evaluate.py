"""Evaluation of a policy on held-out problems: greedy, and k samples a problem.

pass@1 is the mean over k samples, its standard error the one over problems (samples of a problem
are not independent). Language consistency counts the samples that have words in their chain of
thought; `thought` is their share. Reasoning problems are graded by `verifier`; chat and safety
ones by their task, as shares of their own. A metric `x/<name>` speaks of the problems of one task
or source. A verifier that failed counts as wrong, and is counted (`verifier_failures`).

With an input `reference`, `kl` is the mean of log pi(y) - log pi_ref(y) over the samples y, in nats
a response: an unbiased estimate of KL(pi || pi_ref), which may be negative by chance.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax import artifacts, interrupt, train_state
from posttrain_jax.api import Artifact, Batch, Model, Params, Rollout
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.tasks.safety import is_refusal
from posttrain_jax.evals.accuracy import majority, pass_at_k
from posttrain_jax.mesh import all_rows, check_batch, local_rows, local_slice
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr
from posttrain_jax.policy import load_policy, open_mesh, open_text, stage_title
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.verifiers import tags
from posttrain_jax.verifiers.formulas.answer_text import find_answer
from posttrain_jax.verifiers.language import count_words
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = {
    "data": {},
    "system": "",
    "verifier": "task_answer",
    "verifier_options": {},
    "samples": 4,
    "temperature": 1.0,
    "top_p": 1.0,
    "batch_size": 64,
    "prompt_length": ...,
    "max_new": ...,
    "model_options": {},
    "workers": 2,
    "shown_samples": 16,
}
COLUMNS = (
    "correct",
    "format",
    "language",
    "length",
    "finished",
    "answer",
    "refused",
    "thought",
    "kl",
)


class Graded(NamedTuple):
    """Graded samples of all problems: arrays [problems, samples]."""

    correct: np.ndarray
    format: np.ndarray
    language: np.ndarray
    length: np.ndarray
    finished: np.ndarray
    answer: np.ndarray
    refused: np.ndarray
    thought: np.ndarray
    kl: np.ndarray


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Evaluate inputs["policy"], against inputs["reference"] if there is one.

    Raises:
      ValueError: a reference, and samples that are not of the policy itself.
    """
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    check_batch(mesh, "batch_size", config.batch_size)
    terms = {
        "correct": {"verifier": config.verifier, **config.verifier_options},
        "format": {"verifier": "format"},
        "language": {"verifier": "language"},
    }
    sampled = Sampling(temperature=config.temperature, top_p=config.top_p)
    if "reference" in inputs and (config.temperature, config.top_p) != (1.0, 1.0):
        raise ValueError(
            f"the KL to the reference needs temperature=1 and top_p=1; got {config.temperature} "
            f"and {config.top_p}: leave out the input `reference`"
        )
    passes = {"greedy": (Sampling(temperature=0.0), 1), "sampled": (sampled, config.samples)}
    with jax.set_mesh(mesh), Pool(terms, workers=config.workers) as pool:
        model, params = load_policy(inputs["policy"], mesh, **config.model_options)
        params, reference = engine.for_sampling(params, model, mesh), None
        if "reference" in inputs:
            reference = load_policy(inputs["reference"], mesh, **config.model_options)
        examples = load_examples(config.data, inputs, config.seed)
        prompts = engine.encode_prompts(examples, *text, config.prompt_length, config.system)
        number = -(-len(prompts.examples) // config.batch_size)
        graded: dict[str, Graded] = {}
        with MetricLogger(workdir, number * len(passes), stage_title(workdir)) as log:
            for name, (sampling, group) in passes.items():
                parts = []
                for index, (batch, real) in enumerate(engine.batches(prompts, config.batch_size)):
                    with phases("sample"):
                        rollout = engine.roll_out(model, params, engine.job(
                            batch, mesh, text.tokenizer, sampling=sampling, seed=config.seed,
                            first_uid=index * config.batch_size * group, group_size=group,
                            max_new=config.max_new,
                        ))  # fmt: skip
                        jax.block_until_ready(rollout)
                    kl = np.zeros(len(local_rows(rollout.finished_B)))
                    if reference and name == "sampled":
                        with phases("reference"):
                            kl = local_rows(log_ratios(*reference, rollout, config.prompt_length))
                    with phases("verify"):
                        part, rows = grade(pool, rollout, batch, group, mesh, text.tokenizer, kl)
                    parts.append(part[:real])
                    step = index + 1 + (number if name == "sampled" else 0)
                    log(step, {"accuracy": float(part[:real, :, 0].mean()), "pass": name})
                    if index == 0:
                        log.samples(step, rows[: min(real * group, config.shown_samples)])
                    if interrupt.requested():  # nothing is kept of a half evaluation
                        raise interrupt.Interrupted
                graded[name] = Graded(*np.moveaxis(np.concatenate(parts), 2, 0))
        failures = sum(pool.counts[name] for name in ("timeouts", "infra_errors", "poisoned"))
    metrics = summarise(prompts.examples, graded["greedy"], graded["sampled"])
    if reference:
        metrics["kl"] = mean_stderr(graded["sampled"].kl.mean(axis=1))
    metrics |= {"skipped_prompts": prompts.skipped, "verifier_failures": failures}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def log_ratios(model: Model, params: Params, rollout: Rollout, start: int) -> jax.Array:
    """log pi(y) - log pi_ref(y) of each response -> [B]; `start`: where responses begin."""
    mask = rollout.completion_mask_BT
    batch = Batch(
        rollout.tokens_BT, rollout.positions_BT, rollout.segments_BT, mask.astype(jnp.float32)
    )
    reference = train_state.logprobs(model, params, batch, start=start)
    return jnp.sum(jnp.where(mask, rollout.model_logp_BT - reference, 0.0), axis=1)


def grade(pool, rollout, prompts, group: int, mesh, tokenizer, kl) -> tuple[np.ndarray, list[dict]]:
    """Grades [prompts, samples, COLUMNS] of one batch on every host, and this host's texts.

    Args:
      kl: the last column, of this host's rows.
    """
    here = local_slice(rollout.tokens_BT)
    examples = [e for e in prompts.examples for _ in range(group)][here]
    texts = engine.responses(rollout, tokenizer)
    scores, _ = pool(texts, examples)
    mask = local_rows(rollout.completion_mask_BT)
    finished = local_rows(rollout.finished_B)
    answers = [find_answer(t) for t in texts]
    columns = [
        *scores.T,
        mask.sum(axis=1),
        finished,
        [zlib.crc32(a.text.strip().encode()) & 0x7FFFFF if a else 0 for a in answers],
        [is_refusal(t) for t in texts],
        [count_words(tags.chain(t)).total() > 0 for t in texts],
        kl,
    ]
    local = np.stack([np.asarray(c, np.float32) for c in columns], axis=1)
    rows = [
        {
            "prompt": e["prompt"], "response": t, "reward": float(s[0]), "finished": bool(f),
            "rewards": dict(zip(pool.names, map(float, s), strict=True)), "example_id": e["id"],
        }
        for e, t, s, f in zip(examples, texts, scores, finished, strict=True)
    ]  # fmt: skip
    table = all_rows(mesh, local)
    return table.reshape(len(prompts.examples), group, len(COLUMNS)), rows


def summarise(
    examples: Sequence[Mapping[str, Any]], greedy: Graded, sampled: Graded
) -> dict[str, Any]:
    """All metrics as {"mean", "stderr", "n"}; n counts problems."""
    kind = np.array([e.get("kind", "reasoning") for e in examples])
    metrics: dict[str, Any] = {}
    reasoning = np.flatnonzero(kind == "reasoning")
    if len(reasoning):
        metrics |= reasoning_metrics(greedy, sampled, reasoning)
        names = np.array([e.get("task") or e["source"] for e in examples])
        for name in sorted(set(names[reasoning])):
            chosen = np.flatnonzero((names == name) & (kind == "reasoning"))
            metrics[f"pass@1/{name}"] = mean_stderr(sampled.correct[chosen].mean(axis=1))
            metrics[f"greedy/{name}"] = mean_stderr(greedy.correct[chosen, 0])
        languages = np.array([e.get("language", "") for e in examples])
        for name in sorted(set(languages[reasoning])):
            chosen = np.flatnonzero((languages == name) & (kind == "reasoning"))
            metrics |= consistency(f"language/{name}", sampled, chosen)
    harmful = np.array([bool(e.get("harmful")) for e in examples])
    for name, chosen, value in (
        ("refuse_harmful", (kind == "safety") & harmful, greedy.refused[:, 0]),
        ("answer_harmless", (kind == "safety") & ~harmful, 1 - greedy.refused[:, 0]),
        ("helpful", kind == "helpful", greedy.correct[:, 0]),
    ):
        if chosen.any():
            metrics[name] = mean_stderr(value[chosen].tolist())
    return metrics


def reasoning_metrics(greedy: Graded, sampled: Graded, chosen: np.ndarray) -> dict[str, Any]:
    """The metrics of the reasoning problems."""
    n = sampled.correct.shape[1]
    correct = sampled.correct[chosen]
    votes = [majority(a, c) for a, c in zip(sampled.answer[chosen], correct, strict=True)]
    passed = [pass_at_k(n, int(c.sum()), n) for c in correct]
    return {
        "pass@1": mean_stderr(correct.mean(axis=1)),
        "greedy": mean_stderr(greedy.correct[chosen, 0]),
        f"maj@{n}": mean_stderr(votes),
        f"pass@{n}": mean_stderr(passed),
        "length": mean_stderr(sampled.length[chosen].mean(axis=1)),
        "format": mean_stderr(sampled.format[chosen].mean(axis=1)),
        "thought": mean_stderr(sampled.thought[chosen].mean(axis=1)),
        **consistency("language", sampled, chosen),
        "finished": mean_stderr(sampled.finished[chosen].mean(axis=1)),
    }


def consistency(name: str, graded: Graded, chosen: np.ndarray) -> dict[str, Any]:
    """Language consistency of the samples that have words in their chain of thought."""
    spoke = graded.thought[chosen] > 0
    rows = spoke.any(axis=1)
    if not rows.any():
        return {}
    total = np.where(spoke, graded.language[chosen], 0.0).sum(axis=1)[rows]
    return {name: mean_stderr((total / spoke.sum(axis=1)[rows]).tolist())}

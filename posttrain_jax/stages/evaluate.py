"""Evaluation of a policy on held-out problems: greedy, and k samples a problem.

Reasoning problems are graded by `verifier`; chat and safety ones by their task, as shares of their
own. The metrics are those of evals/summary.py: pass@1, pass@k and maj@k for powers of two up to
`samples`, with bootstrap intervals, over all problems and by task or source. `scorers` are reward
models, process reward models and judges, named as in the rewards of an RL stage; each adds
`best@k/<name>` (rm@k) and `weighted@k/<name>`. A sample that a verifier or scorer failed on counts
as wrong, and is counted (`verifier_failures`).

With an input `reference`, `kl` is the mean of log pi(y) - log pi_ref(y) over the samples y, in nats
a response: an unbiased estimate of KL(pi || pi_ref), which may be negative by chance.

A row of data.jsonl is a sample as stages/generate.py writes them, without texts, but with an
`answer_number` that is equal for equal answers. An evaluation that was stopped goes on at the first
batch that is not graded.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, interrupt, process, train_state
from posttrain_jax.api import Artifact, Batch, Model, Params, Rollout
from posttrain_jax.data.examples import DATA, load_examples
from posttrain_jax.data.tasks.safety import is_refusal
from posttrain_jax.evals.summary import Graded, summarise
from posttrain_jax.files import write_text
from posttrain_jax.mesh import all_rows, check_batch, from_first, local_rows, local_slice
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr, read_rows, truncate
from posttrain_jax.policy import Text, load_policy, open_mesh, open_text, stage_title
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.partners import Partners, open_partners
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.sampling_settings import open_sampling
from posttrain_jax.stages.generate import lines
from posttrain_jax.stages.rerank import open_scorers
from posttrain_jax.verifiers import tags
from posttrain_jax.verifiers.formulas.answer_text import find_answer
from posttrain_jax.verifiers.judging.judge import Judge, ask
from posttrain_jax.verifiers.language import count_words
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = (
    "_sampling",  # these settings, and
    {
        "data": {},
        "system": "",
        "verifier": "task_answer",
        "verifier_options": {},
        "scorers": {},
        "samples": 4,
        "batch_size": 64,
        "prompt_length": ...,
        "max_new": ...,
        "model_options": {},
        "workers": 2,
        "shown_samples": 16,
    },
)
GRADED = "graded.jsonl"
"""The graded batches of an evaluation that is not done."""
ABOUT = ("id", "kind", "task", "source", "domain", "language")
"""Fields of an example that data.jsonl has."""


class Setting(NamedTuple):
    """What the batches of an evaluation have in common.

    Attributes:
      reference: a model and its parameters, if there is one.
      judges: the scorers, by name.
    """

    config: Any
    mesh: Mesh
    text: Text
    pool: Pool
    model: Model
    params: Params
    reference: tuple[Model, Params] | None
    judges: Mapping[str, Judge]
    sampling: Sampling
    partners: Partners | None = None


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
    sampling = open_sampling(config, text.tokenizer)
    if "reference" in inputs and (sampling.temperature != 1.0 or sampling.truncated):
        raise ValueError(
            "the KL to the reference needs samples of the policy as it is, got temperature="
            f"{config.temperature}, top_k={config.top_k}, top_p={config.top_p}, min_p="
            f"{config.min_p}, sampling={config.sampling.to_dict()}: leave out the input `reference`"
        )
    with jax.set_mesh(mesh), Pool(terms, workers=config.workers) as pool:
        model, params = load_policy(inputs["policy"], mesh, **config.model_options)
        params, reference = engine.for_sampling(params, model, mesh), None
        if "reference" in inputs:
            reference = load_policy(inputs["reference"], mesh, **config.model_options)
        judges = open_scorers(config.scorers.to_dict(), inputs, mesh, text)
        examples = load_examples(config.data, inputs, config.seed)
        prompts = engine.encode_prompts(examples, *text, config.prompt_length, config.system)
        setting = Setting(
            config,
            mesh,
            text,
            pool,
            model,
            params,
            reference,
            judges,
            sampling,
            open_partners(config.partner, text),
        )
        batches = grade_all(setting, prompts, workdir, phases)
    metrics: dict[str, Any] = {}
    if process.index() == 0:
        metrics = conclude(workdir, prompts.examples, batches, list(judges), reference is not None)
        metrics["skipped_prompts"] = prompts.skipped
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def grade_all(setting: Setting, prompts: Prompts, workdir: Path, phases: PhaseTimer) -> int:
    """Sample and grade what is not on disk yet; returns the number of batches of each pass."""
    config = setting.config
    number, start = -(-len(prompts.examples) // config.batch_size), resume(workdir)
    passes = {
        "greedy": (setting.sampling._replace(temperature=0.0), 1),
        "sampled": (setting.sampling, config.samples),
    }
    with MetricLogger(workdir, number * len(passes), stage_title(workdir), start) as log:
        for order, (name, (sampling, group)) in enumerate(passes.items()):
            done = max(0, start - order * number)
            whole = setting if name == "sampled" else setting._replace(reference=None, judges={})
            for index, (batch, real) in enumerate(
                engine.batches(prompts, config.batch_size, done), done
            ):
                first_uid = index * config.batch_size * group
                table, rows = grade_batch(whole, batch, sampling, group, first_uid, phases)
                step = order * number + index + 1
                log(step, {"accuracy": float(table[:real, :, 0].mean()), "pass": name})
                if index == 0:
                    log.samples(step, rows[: min(real * group, config.shown_samples)])
                keep(workdir, step, table[:real])
                if interrupt.requested():
                    raise interrupt.Interrupted(step)
    return number


def grade_batch(
    setting: Setting, batch: Prompts, sampling: Sampling, group: int, first_uid: int,
    phases: PhaseTimer,
) -> tuple[np.ndarray, list[dict]]:  # fmt: skip
    """Sample `group` responses to each prompt and `grade` them."""
    config, tokenizer = setting.config, setting.text.tokenizer
    with phases("sample"):
        rollout = engine.roll_out(setting.model, setting.params, engine.job(
            batch, setting.mesh, tokenizer, sampling=sampling, seed=config.seed,
            first_uid=first_uid, group_size=group, max_new=config.max_new,
            vocab_size=setting.model.config.vocab_size, partners=setting.partners,
            slots=config.slots, drafts=config.drafts, cache_dtype=config.cache_dtype,
        ))  # fmt: skip
        jax.block_until_ready(rollout)
    kl = np.zeros(len(local_rows(rollout.finished_B)))
    if setting.reference:
        with phases("reference"):
            kl = local_rows(log_ratios(*setting.reference, rollout, config.prompt_length))
    with phases("verify"):
        judges = setting.judges
        texts = engine.responses(rollout, tokenizer, sampling.stop_strings)
        return grade(setting.pool, rollout, texts, batch, group, setting.mesh, kl, judges)


def resume(workdir: Path) -> int:
    """How many batches, of both passes, are graded and on disk."""
    done = 0
    if process.index() == 0:
        done = len(read_rows(workdir / GRADED))
        truncate(workdir / GRADED, done)  # a line that was being written
    return from_first(done)


def keep(workdir: Path, step: int, table: np.ndarray) -> None:
    """Append the grades of a batch, [prompts, samples, columns]."""
    if process.index() == 0:
        with open(workdir / GRADED, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "table": table.tolist()}) + "\n")


def conclude(
    workdir: Path, examples: Sequence[Mapping[str, Any]], number: int, scorers: Sequence[str],
    with_kl: bool,
) -> dict[str, Any]:  # fmt: skip
    """The metrics of all graded batches, `number` a pass; writes data.jsonl."""
    parts = [np.array(row["table"], np.float32) for row in read_rows(workdir / GRADED)]
    tables = [np.concatenate(parts[:number]), np.concatenate(parts[number:])]
    columns = len(Graded._fields)
    greedy, sampled = (Graded(*np.moveaxis(t[:, :, :columns], 2, 0)) for t in tables)
    scores = {name: tables[1][:, :, columns + i] for i, name in enumerate(scorers)}
    metrics = summarise(examples, greedy, sampled, scores)
    if with_kl:
        metrics["kl"] = mean_stderr(sampled.kl.mean(axis=1).tolist())
    metrics["verifier_failures"] = float(greedy.failed.sum() + sampled.failed.sum())
    write_text(workdir / DATA, lines(data_rows(examples, sampled, scores)))
    (workdir / GRADED).unlink()
    return metrics


def data_rows(
    examples: Sequence[Mapping[str, Any]], sampled: Graded, scores: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The samples, one a row."""
    return [
        {
            **{key: example[key] for key in ABOUT if key in example}, "index": i, "sample": n,
            "length": int(sampled.length[i, n]), "finished": bool(sampled.finished[i, n]),
            "answer_number": int(sampled.answer[i, n]), "masked": bool(sampled.failed[i, n]),
            "scores": {"correct": float(sampled.correct[i, n])}
            | {name: float(table[i, n]) for name, table in scores.items()},
        }
        for i, example in enumerate(examples) for n in range(sampled.correct.shape[1])
    ]  # fmt: skip


def log_ratios(model: Model, params: Params, rollout: Rollout, start: int) -> jax.Array:
    """log pi(y) - log pi_ref(y) of each response -> [B]; `start`: where responses begin."""
    mask = rollout.completion_mask_BT
    batch = Batch(
        rollout.tokens_BT, rollout.positions_BT, rollout.segments_BT, mask.astype(jnp.float32)
    )
    reference = train_state.logprobs(model, params, batch, start=start)
    return jnp.sum(jnp.where(mask, rollout.model_logp_BT - reference, 0.0), axis=1)


def grade(
    pool,
    rollout,
    texts: Sequence[str],
    prompts,
    group: int,
    mesh,
    kl,
    judges: Mapping[str, Judge],
) -> tuple[np.ndarray, list[dict]]:
    """Grades of one batch on every host, and this host's texts.

    Args:
      texts, kl: of this host's rows.
      judges: the scorers.

    Returns:
      also [prompts, samples, columns]: the fields of `Graded`, then the scores.
    """
    here = local_slice(rollout.tokens_BT)
    examples = [e for e in prompts.examples for _ in range(group)][here]
    scores, valid = pool(texts, examples)
    wanted = np.array([e.get("kind", "reasoning") == "reasoning" for e in examples])
    scored = []
    for name, judge in judges.items():
        column, sound = ask(judge, name, examples, texts, wanted)
        scored.append(column)
        valid = valid & sound
    valid = valid & engine.sound(rollout)
    mask = local_rows(rollout.response_mask_BT)
    finished = local_rows(rollout.finished_B)
    answers = [find_answer(t) for t in texts]
    columns = [
        *scores.T,
        mask.sum(axis=1),
        finished,
        [zlib.crc32(a.text.strip().encode()) & 0x7FFFFF if a else 0 for a in answers],
        [is_refusal(t) for t in texts],
        [count_words(tags.chain(t)).total() > 0 for t in texts],
        ~valid,
        kl,
        *scored,
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
    return table.reshape(len(prompts.examples), group, -1), rows

"""Sample n responses a prompt and keep every one, with its scores.

Each process appends its own rows to a part file, batch by batch; process 0 merges the parts. A
killed run continues, with any number of processes, at the first batch that is not all written. A
row is the prompt's
example with `response`, `sample`, `index`, `length`, `finished`, `scores`, `masked` (the verifier
failed) and `forged` (the response holds a turn marker).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from posttrain_jax import artifacts, interrupt, process
from posttrain_jax.api import Artifact, Rollout
from posttrain_jax.data.examples import DATA, load_examples
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.files import write_text
from posttrain_jax.mesh import all_rows, barrier, check_batch, from_first, local_rows, local_slice
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr, read_rows
from posttrain_jax.policy import load_policy, open_mesh, open_text, stage_title
from posttrain_jax.rewards import make_terms
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.judges import open_judges
from posttrain_jax.rollout.partners import open_partners
from posttrain_jax.rollout.sampling_settings import open_sampling
from posttrain_jax.verifiers.judging.judge import Judge, ask
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = (
    "_sampling",  # these settings, and
    {
        "data": {},
        "system": "",
        "samples": ...,
        "batch_size": 32,
        "prompt_length": ...,
        "max_new": ...,
        "verifiers": {},
        "model_options": {},
        "workers": 2,
    },
)


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Sample from inputs["policy"]; `verifiers` names the scores, {name: {"verifier": ...}}.

    A score may also come from a reward model or a judge, named as in the rewards of an RL stage.
    """
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    check_batch(mesh, "batch_size", config.batch_size)
    part = workdir / f"part-{process.index()}.jsonl"
    sampling = open_sampling(config, text.tokenizer)
    partners = open_partners(config.partner, text)
    verifiers = config.verifiers.to_dict()
    judged = {
        name: verifiers.pop(name) for name in sorted(verifiers) if "verifier" not in verifiers[name]
    }
    with jax.set_mesh(mesh), Pool(verifiers, workers=config.workers) as pool:
        judges = open_judges(make_terms(judged).terms, inputs, mesh, text)
        names = (*pool.names, *judges)
        model, params = load_policy(inputs["policy"], mesh, **config.model_options)
        params = engine.for_sampling(params, model, mesh)
        examples = load_examples(config.data, inputs, config.seed)
        prompts = engine.encode_prompts(examples, *text, config.prompt_length, config.system)
        number = -(-len(prompts.examples) // config.batch_size)
        start = resume(workdir, len(prompts.examples), config.samples, config.batch_size)
        with MetricLogger(workdir, number, stage_title(workdir), start) as log:
            for index, (batch, real) in enumerate(
                engine.batches(prompts, config.batch_size, start), start
            ):
                with phases("sample"):
                    rollout = engine.roll_out(model, params, engine.job(
                        batch, mesh, text.tokenizer, sampling=sampling, seed=config.seed,
                        first_uid=index * config.batch_size * config.samples,
                        group_size=config.samples, max_new=config.max_new, slots=config.slots,
                        vocab_size=model.config.vocab_size, partners=partners,
                        drafts=config.drafts, cache_dtype=config.cache_dtype,
                    ))  # fmt: skip
                    jax.block_until_ready(rollout)
                with phases("verify"):
                    rows = score(
                        pool,
                        rollout,
                        batch,
                        config.samples,
                        text.tokenizer,
                        judges,
                        sampling.stop_strings,
                    )
                first = index * config.batch_size
                log(index + 1, _means(rows, names, mesh))
                kept = [r | {"index": first + r["index"]} for r in rows if r["index"] < real]
                with open(part, "a", encoding="utf-8") as file:
                    file.write(lines(kept))
                if interrupt.requested():
                    raise interrupt.Interrupted(index + 1)
    barrier("all samples are written")
    rows = merge(workdir) if process.index() == 0 else []
    metrics: dict[str, Any] = {"prompts": len(prompts.examples), "skipped_prompts": prompts.skipped}
    for name in names if rows else ():
        by_prompt: dict[int, list[float]] = {}
        for row in rows:
            by_prompt.setdefault(row["index"], []).append(row["scores"][name])
        metrics[name] = mean_stderr([float(np.mean(v)) for v in by_prompt.values()])
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def score(
    pool: Pool,
    rollout: Rollout,
    prompts: engine.Prompts,
    group: int,
    tokenizer: Tokenizer,
    judges: Mapping[str, Judge],
    strings: Sequence[str] = (),
) -> list[dict]:
    """This host's rows of a batch; `index` is the prompt's place in the batch.

    Args:
      strings: those that stopped a response.
    """
    here = local_slice(rollout.tokens_BT)
    owners = np.repeat(np.arange(len(prompts.examples)), group)[here]
    samples = np.tile(np.arange(group), len(prompts.examples))[here]
    texts = engine.responses(rollout, tokenizer, strings)
    answered = [prompts.examples[i] for i in owners]
    scores, valid = pool(texts, answered)
    for name, judge in judges.items():
        column, sound = ask(judge, name, answered, texts, np.ones(len(texts), bool))
        scores, valid = np.column_stack([scores, column]), valid & sound
    names = (*pool.names, *judges)
    lengths = local_rows(rollout.response_mask_BT).sum(axis=1)
    finished = local_rows(rollout.finished_B)
    valid = valid & engine.sound(rollout)
    return [
        {
            **prompts.examples[owner], "response": text, "index": int(owner), "sample": int(sample),
            "length": int(length), "finished": bool(end), "masked": not ok,
            "forged": any(marker in text for marker in tokenizer.markers),
            "scores": dict(zip(names, map(float, row), strict=True)),
        }
        for owner, sample, text, length, end, ok, row in zip(
            owners, samples, texts, lengths, finished, valid, scores, strict=True
        )
    ]  # fmt: skip


def resume(workdir: Path, prompts: int, samples: int, batch_size: int) -> int:
    """How many batches are all written; process 0 keeps their rows and drops the others."""
    done = 0
    if process.index() == 0:
        rows = written(workdir)
        have = Counter(index // batch_size for index, _ in rows)
        while batch_size * done < prompts and have[done] == samples * min(
            batch_size, prompts - batch_size * done
        ):
            done += 1
        kept = [row for (index, _), row in rows.items() if index < batch_size * done]
        write_text(workdir / "part-0.jsonl", lines(kept))
        for part in workdir.glob("part-*.jsonl"):
            if part.name != "part-0.jsonl":
                part.unlink()
    return from_first(done)


def written(workdir: Path) -> dict[tuple[int, int], dict]:
    """All rows that are on disk, by prompt and sample, in that order.

    A row may be there twice, after a kill between two files; both are the same.
    """
    files = [*workdir.glob("part-*.jsonl"), workdir / DATA]
    rows = {(r["index"], r["sample"]): r for file in files for r in read_rows(file)}
    return dict(sorted(rows.items()))


def merge(workdir: Path) -> list[dict]:
    """All parts in the order of prompts and samples, as the artifact's data.jsonl."""
    rows = list(written(workdir).values())
    write_text(workdir / DATA, lines(rows))
    for part in workdir.glob("part-*.jsonl"):
        part.unlink()
    return rows


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _means(rows: list[dict], names, mesh) -> dict[str, float]:
    table = np.array([[r["scores"][n] for n in names] for r in rows], np.float32)
    return dict(zip(names, map(float, all_rows(mesh, table).mean(axis=0)), strict=True))

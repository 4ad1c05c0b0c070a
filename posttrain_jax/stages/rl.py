"""Reinforcement learning with group-relative advantages (GRPO and its kin).

One pass of the loop: draw prompts, sample a group of completions each, verify them, normalise the
rewards within each group, and make `rollout_size / batch_size` updates on random minibatches of
the rollout, of which all but the first are off-policy. `steps` counts updates, as DeepSeek-R1 does
(8,192 outputs a rollout, 16 minibatches of 512; Nature 645, Methods). The reference policy is
replaced by the latest one every `reference_every` updates. The host looks for ended sequences
`looks` times a rollout and has them verified while the others go on.

Rewards, their weights, steps and kinds are those of rewards.py; prompts come from named groups with
a share each, so that some can join later. Nothing silent: all-equal groups, truncated samples and
masked verifier failures are metrics. With `router_replay` updates keep the experts that the sampler
chose for every token (rollout routing replay, Ma et al. 2025, arXiv 2510.11370; the cost of the
record: `api.Rollout`); the reference chooses its own. With adapters (`lora.rank`) the reference is
another set of them over the same weights: at first one that changes nothing. Left out: tools,
off-policy carry-over of unfinished samples.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, optimizers, registry, train_state, tree
from posttrain_jax.api import Artifact, Batch, Model, Params, Rollout
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.mesh import check_batch, local_slice, total
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.models import lora
from posttrain_jax.policy import (
    Text,
    load_trainable,
    open_mesh,
    open_text,
    save_policy,
    stage_title,
)
from posttrain_jax.rewards import make_terms
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.experience import (
    Judges,
    Judging,
    assemble,
    score,
    shown,
    shuffled,
    take,
)
from posttrain_jax.rollout.judges import open_judges
from posttrain_jax.rollout.prompts import PromptStream
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = {
    "prompts": {},
    "system": "",
    "rewards": {},
    "loss": "grpo",
    "loss_options": {},
    "group_size": ...,
    "batch_size": ...,
    "rollout_size": ...,
    "microbatches": 1,
    "steps": ...,
    "prompt_length": ...,
    "max_new": ...,
    "looks": 4,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "advantage": {},
    "aggregation": "seq_mean_token_mean",
    "aggregation_constant": 0.0,
    "mask_truncated": False,
    "router_replay": False,
    "reference_every": 0,
    "lr": ...,
    "lr_schedule": "constant",
    "lr_end_ratio": 1.0,
    "warmup": 0,
    "optimizer": {},
    "model_options": {},
    "lora": {"rank": 0, "alpha": 32.0, "targets": "", "rslora": False, "dora": False, "base": ""},
    "workers": 2,
    "save_every": 10,
    "samples_every": 5,
    "samples_shown": 8,
}
RL_SHOWN = ("reward", "accuracy", "length", "tokens_per_second")


def check_sizes(config: Any, mesh) -> int:
    """Check the batch arithmetic; the number of minibatches of a rollout.

    Raises:
      ValueError: sizes that don't divide, with the nearest that do.
    """
    for name, size, of, by in (
        ("rollout_size", config.rollout_size, "batch_size", config.batch_size),
        ("rollout_size", config.rollout_size, "group_size", config.group_size),
        ("batch_size", config.batch_size, "microbatches", config.microbatches),
    ):
        if size % by:
            raise ValueError(
                f"{name}={size} is not a multiple of {of}={by}; the nearest: "
                f"{size // by * by or by} or {-(-size // by) * by}"
            )
    minibatches = config.rollout_size // config.batch_size
    for name in ("steps", "reference_every"):
        if config[name] % minibatches:
            raise ValueError(
                f"{name}={config[name]} must be a multiple of the {minibatches} updates of a "
                f"rollout (rollout_size / batch_size)"
            )
    check_batch(mesh, "batch_size / microbatches", config.batch_size // config.microbatches)
    check_batch(mesh, "rollout_size / group_size", config.rollout_size // config.group_size)
    return minibatches


class Setting(NamedTuple):
    """What stays the same over a stage.

    Attributes:
      temperature: of the log-probs that are compared. Where the sampling distribution is truncated
        they are those of the untempered model, else of the sampling distribution.
      frozen: the parameters that are not trained, if any; the reference policy has them too.
    """

    config: Any
    mesh: Mesh
    text: Text
    model: Model
    judges: Judges
    sampling: Sampling
    temperature: float
    minibatches: int
    frozen: Params | None = None

    def whole(self, params: Params) -> Params:
        """Trained parameters with the frozen ones."""
        return tree.join(self.frozen or {}, params)


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"]; reward models and judges are inputs by the roles in `rewards`."""
    mesh, text = open_mesh(config), open_text(config)
    minibatches = check_sizes(config, mesh)
    terms, verifiers = make_terms(config.rewards.to_dict())
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p)
    quarantine = workdir / "quarantine.jsonl"
    with (
        jax.set_mesh(mesh),
        Pool(verifiers, workers=config.workers, quarantine=quarantine) as pool,
    ):
        models = open_judges(terms, inputs, mesh, text)
        model, params = load_trainable(
            inputs["policy"], mesh, config.lora, config.seed, **config.model_options
        )
        if config.router_replay and model.config.experts is None:
            raise ValueError("router_replay=True: the policy's model has no experts; set it False")
        params, frozen = train_state.split(model, params)
        setting = Setting(
            config, mesh, text, model, Judges(terms, pool, models), sampling,
            1.0 if sampling.truncated else config.temperature, minibatches, frozen,
        )  # fmt: skip
        stream = PromptStream(config, inputs, text)
        state, phases, last = train(setting, workdir, params, stream)
        save_policy(workdir, model, state.params, inputs["policy"])
    metrics = {**last, "skipped_prompts": stream.skipped}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def train(setting: Setting, workdir: Path, params: Params, stream: PromptStream):
    """The loop -> (state, seconds by phase, the last rollout's metrics)."""
    config, minibatches = setting.config, setting.minibatches
    optimizer = optimizers.make_optimizer(**config.optimizer)
    update = make_update(setting, optimizer)
    reference = copy(params) if config.loss_options.get("kl_coef") else None
    saved = (train_state.init_state(params, optimizer), reference)
    checkpoints = Checkpoints(workdir, config.save_every)
    start, (state, reference), meta = checkpoints.restore(saved) or (0, saved, {})
    phases, last = PhaseTimer(meta.get("phases")), meta.get("last", {})
    earlier = {name: last[name] for name in last if name.startswith("verifier_")}
    with MetricLogger(workdir, config.steps, stage_title(workdir), start, shown=RL_SHOWN) as log:
        if stream.skipped:
            log.note(f"{stream.skipped} prompts longer than prompt_length are left out")
        for step in range(start, config.steps, minibatches):
            begun = time.monotonic()
            prompts = stream.draw(step // minibatches, step)
            with phases("sample"):
                rollout, judging = roll_out(setting, setting.whole(state.params), prompts, step)
            with phases("verify"):
                scored = score(setting.judges, judging, step, setting.mesh)
            with phases("update"):
                batch, metrics = assemble(
                    rollout, scored, jnp.array([t.weight for t in setting.judges.terms]),
                    group_size=config.group_size, truncated=setting.sampling.truncated,
                    mask_truncated=config.mask_truncated,
                    options=tuple(sorted(config.advantage.items())),
                )  # fmt: skip
                state, found = learn(setting, update, state, reference, batch, step)
                last = report({**metrics, **found}, [t.name for t in setting.judges.terms])
                last |= verifier_counts(setting.judges.pool, earlier)
            step += minibatches
            if reference is not None and config.reference_every:
                reference = copy(state.params) if step % config.reference_every == 0 else reference
            speed = last["tokens"] / (time.monotonic() - begun)
            log(step, {**last, **phases.lap(), "tokens_per_second": speed})
            if (step // minibatches) % config.samples_every == 1 % config.samples_every:
                rows = shown(judging, scored, setting.judges.terms, rollout, config.samples_shown)
                log.samples(step, rows)
            checkpoints.after(step, (state, reference), {"phases": phases.seconds, "last": last})
    checkpoints.close()
    return state, phases, last


copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))


def make_update(setting: Setting, optimizer):
    """The jitted update with the stage's loss and its hyper-parameters."""
    config = setting.config
    loss = registry.load("losses", config.loss).loss
    return train_state.make_update(
        setting.model, optimizer, functools.partial(loss, **config.loss_options),
        frozen=setting.frozen, microbatches=config.microbatches, start=config.prompt_length,
        temperature=setting.temperature,
    )  # fmt: skip


def roll_out(
    setting: Setting, params: Params, prompts: engine.Prompts, step: int
) -> tuple[Rollout, Judging]:
    """The rollout that begins at this update; its uids are those of no other.

    The verifiers work on what has ended while the rest goes on.
    """
    config, mesh, tokenizer = setting.config, setting.mesh, setting.text.tokenizer
    job = engine.job(
        prompts, mesh, tokenizer, sampling=setting.sampling, seed=config.seed,
        first_uid=step * config.batch_size, group_size=config.group_size, max_new=config.max_new,
        record_experts=config.router_replay,
    )  # fmt: skip
    examples = [e for e in prompts.examples for _ in range(config.group_size)]
    judging = Judging(setting.judges.pool, examples[local_slice(job.asked.uids_B)])
    params = engine.for_sampling(params, setting.model, mesh)
    model, params = lora.for_decoding(setting.model, params)
    stretch = -(-config.max_new // config.looks)
    rollout = engine.stream(model, params, job, tokenizer, judging, stretch=stretch)
    return jax.block_until_ready(rollout), judging


def learn(setting: Setting, update, state, reference, batch: Batch, step: int):
    """One update on each minibatch -> (state, metrics, averaged over the minibatches)."""
    config, metrics, lr = setting.config, {}, 0.0
    parts = shuffled(config.rollout_size, setting.minibatches, config.seed, step)
    for number, rows in enumerate(parts):
        part = take(
            batch, rows, config.aggregation, config.microbatches,
            config.aggregation_constant or None,
        )  # fmt: skip
        if reference is not None:
            logp = train_state.logprobs(
                setting.model, setting.whole(reference), part._replace(experts_BTLA=None),
                start=config.prompt_length, temperature=setting.temperature,
            )  # fmt: skip
            part = part._replace(reference_logp_BT=logp)
        lr = optimizers.learning_rate(
            step + number, peak=config.lr, total=config.steps, warmup=config.warmup,
            schedule=config.lr_schedule, end_ratio=config.lr_end_ratio,
        )  # fmt: skip
        state, found = update(state, part, jnp.float32(lr))
        metrics = join(metrics, found, number, setting.minibatches)
    return state, {**metrics, "learning_rate": lr}


def join(metrics: dict, found: dict, number: int, minibatches: int) -> dict[str, Any]:
    """The update's metrics, averaged over a rollout's minibatches.

    The log-prob gap is that of the first minibatch, the only one that is still on-policy.
    """
    joined = {k: metrics.get(k, 0.0) + v / minibatches for k, v in found.items()}
    joined["skipped"] = found["skipped"]
    gap = found.get("max/logprob_gap")
    joined["max/logprob_gap"] = gap if number == 0 else metrics.get("max/logprob_gap")
    return joined


def verifier_counts(pool: Pool, earlier: Mapping[str, float]) -> dict[str, float]:
    """What the pools of all processes counted, on top of the counts of earlier sessions."""
    counts = total(np.array(list(pool.counts.values())))
    names = [f"verifier_{name}" for name in pool.counts]
    return {n: int(earlier.get(n, 0) + c) for n, c in zip(names, counts, strict=True)}


def report(metrics: dict[str, Any], names: list[str]) -> dict[str, float]:
    """Device metrics as numbers under the names of the log."""
    values = jax.device_get(metrics)
    rewards = {
        f"reward/{name}": float(v)
        for name, v in zip(names, values.pop("terms_W"), strict=True)
        if not np.isnan(v)
    }
    renamed = {k.removeprefix("max/"): float(v) for k, v in values.items() if v is not None}
    accuracy = {"accuracy": rewards["reward/accuracy"]} if "reward/accuracy" in rewards else {}
    return {**renamed, **rewards, **accuracy}

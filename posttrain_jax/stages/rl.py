"""Reinforcement learning with group-relative advantages (GRPO and its kin).

One pass of the loop: draw prompts, sample a group of completions each, verify them, normalise the
rewards within each group, and make `rollout_size / batch_size` updates on random minibatches of
the rollout, of which all but the first are off-policy. `steps` counts updates, as DeepSeek-R1 does
(8,192 outputs a rollout, 16 minibatches of 512; Nature 645, Methods). The reference policy is
replaced by the latest one every `reference_every` updates.

Rewards, their weights, steps and kinds are those of rewards.py; prompts come from named groups with
a share each, so that some can join later. Nothing silent: all-equal groups, truncated samples and
masked verifier failures are metrics. Left out: tools, off-policy carry-over of unfinished samples.
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

from posttrain_jax import advantages, artifacts, registry, train_state
from posttrain_jax import reward_model as reward_models
from posttrain_jax.api import Artifact, Batch, Rollout
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.losses.common import aggregation_weights
from posttrain_jax.mesh import check_batch, from_local_rows, local_rows, local_slice
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.policy import load_policy, open_mesh, open_text, save_policy, stage_title
from posttrain_jax.rewards import applies, make_terms
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.prompts import PromptStream
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = {
    "prompts": {},
    "system": "",
    "rewards": {},
    "loss": {"name": "grpo"},
    "loss_options": {},
    "group_size": ...,
    "batch_size": ...,
    "rollout_size": ...,
    "microbatches": 1,
    "steps": ...,
    "prompt_length": ...,
    "max_new": ...,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "advantage": {},
    "aggregation": "seq_mean_token_mean",
    "aggregation_constant": 0.0,
    "mask_truncated": False,
    "reference_every": 0,
    "lr": ...,
    "lr_schedule": "constant",
    "lr_end_ratio": 1.0,
    "warmup": 0,
    "optimizer": {},
    "model_options": {},
    "workers": 2,
    "save_every": 10,
    "samples_every": 5,
    "samples_shown": 8,
}
RL_SHOWN = ("reward", "accuracy", "length", "tokens_per_second")


class Scored(NamedTuple):
    """A rollout's rewards on the mesh: scores and whether they apply [B, W], validity [B]."""

    rewards_BW: jax.Array
    applies_BW: jax.Array
    valid_B: jax.Array


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


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"]; reward models are inputs by the roles that `rewards` names."""
    mesh, text = open_mesh(config), open_text(config)
    minibatches = check_sizes(config, mesh)
    terms, pool_terms = make_terms(config.rewards.to_dict())
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p)
    # Log-probs are compared under the sampling distribution; where that is truncated they are
    # compared under the untempered model instead.
    temperature = 1.0 if sampling.truncated else config.temperature
    loss = registry.load("losses", config.loss.name).loss
    options = dict(config.loss_options)
    checkpoints = Checkpoints(workdir, config.save_every)
    with jax.set_mesh(mesh), Pool(
        pool_terms, workers=config.workers, quarantine=workdir / "quarantine.jsonl"
    ) as pool:
        model, params = load_policy(inputs["policy"], mesh, **config.model_options)
        models = {
            t.reward_model: reward_models.load(inputs[t.reward_model], mesh)
            for t in terms
            if t.reward_model
        }
        stream = PromptStream(config, inputs, text)
        optimizer = train_state.make_optimizer(**config.optimizer)
        update = train_state.make_update(
            model, optimizer, functools.partial(loss, **options),
            microbatches=config.microbatches, start=config.prompt_length, temperature=temperature,
        )  # fmt: skip
        state = train_state.init_state(params, optimizer)
        saved = (state, copy(params))
        start, (state, reference), meta = checkpoints.restore(saved) or (0, saved, {})
        phases, last = PhaseTimer(meta.get("phases")), meta.get("last", {})
        with MetricLogger(
            workdir, config.steps, stage_title(workdir), start, shown=RL_SHOWN
        ) as log:
            if stream.skipped:
                log.note(f"{stream.skipped} prompts longer than prompt_length are left out")
            for step in range(start, config.steps, minibatches):
                begun = time.monotonic()
                prompts = stream.draw(step // minibatches, step)
                with phases("sample"):
                    rollout = engine.roll_out(
                        model, engine.for_sampling(state.params, model, mesh), prompts, mesh,
                        text.tokenizer, sampling=sampling, seed=config.seed,
                        first_uid=step * config.batch_size, group_size=config.group_size,
                        max_new=config.max_new,
                    )  # fmt: skip
                    jax.block_until_ready(rollout)
                with phases("verify"):
                    texts, examples, scored = score(
                        pool, terms, models, rollout, prompts, config, step, text, mesh
                    )
                with phases("update"):
                    weights_W = jnp.array([t.weight for t in terms], jnp.float32)
                    batch, metrics = assemble(
                        rollout, scored, weights_W,
                        group_size=config.group_size, truncated=sampling.truncated,
                        mask_truncated=config.mask_truncated,
                        options=tuple(sorted(config.advantage.items())),
                    )  # fmt: skip
                    seeds = np.random.default_rng([config.seed, step])
                    shuffled = seeds.permutation(config.rollout_size).reshape(minibatches, -1)
                    for number, chosen in enumerate(shuffled):
                        part = take(
                            batch, chosen, config.aggregation, config.microbatches,
                            config.aggregation_constant or None,
                        )  # fmt: skip
                        if options.get("kl_coef"):
                            logp = train_state.logprobs(
                                model, reference, part, start=config.prompt_length,
                                temperature=temperature,
                            )  # fmt: skip
                            part = part._replace(reference_logp_BT=logp)
                        lr = train_state.learning_rate(
                            step + number, peak=config.lr, total=config.steps,
                            warmup=config.warmup, schedule=config.lr_schedule,
                            end_ratio=config.lr_end_ratio,
                        )  # fmt: skip
                        state, found = update(state, part, jnp.float32(lr))
                        metrics |= join(metrics, found, number, minibatches)
                    jax.block_until_ready(state.params)
                step += minibatches
                if config.reference_every and step % config.reference_every == 0:
                    reference = copy(state.params)
                last = report(metrics, [t.name for t in terms])
                speed = last["tokens"] / (time.monotonic() - begun)
                log(step, {**last, **phases.lap(), "learning_rate": lr, "tokens_per_second": speed})
                if (step // minibatches) % config.samples_every == 1 % config.samples_every:
                    log.samples(step, shown(config, texts, examples, scored, terms, rollout))
                checkpoints.after(
                    step, (state, reference), {"phases": phases.seconds, "last": last}
                )
        checkpoints.close()
        save_policy(workdir, model, state.params)
        counts = {f"verifier_{k}": v for k, v in pool.counts.items()}
    return artifacts.finish(
        workdir,
        metrics={**last, "skipped_prompts": stream.skipped, **counts},
        phases=phases.seconds,
    )


copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def score(pool, terms, models, rollout: Rollout, prompts, config, step: int, text, mesh):
    """Scores of a rollout: (this host's texts, their examples, Scored on the mesh)."""
    here = local_slice(rollout.tokens_BT)
    examples = [e for e in prompts.examples for _ in range(config.group_size)][here]
    texts = engine.responses(rollout, text.tokenizer)
    waiting = pool.submit(texts, examples) if pool.names else None
    columns = [
        reward_models.score_local(models[t.reward_model], list(zip(examples, texts)), text, mesh)
        for t in terms
        if t.reward_model
    ]
    columns = [
        jax.nn.sigmoid(c) if t.transform == "sigmoid" else c
        for c, t in zip(columns, (t for t in terms if t.reward_model), strict=True)
    ]
    verified, valid = np.zeros((len(texts), 0), np.float32), np.ones(len(texts), bool)
    if waiting is not None:
        verdicts = waiting.result()
        verified, valid = verdicts.rewards_BW, verdicts.mask_B
    rewards = jnp.concatenate(
        [from_local_rows(mesh, verified), *(c[:, None] for c in columns)], axis=1
    )
    on = from_local_rows(mesh, applies(terms, examples, step))
    return texts, examples, Scored(rewards, on, from_local_rows(mesh, valid))


@functools.partial(
    jax.jit, static_argnames=("group_size", "truncated", "mask_truncated", "options")
)
def assemble(
    rollout: Rollout, scored: Scored, weights_W, *, group_size: int, truncated: bool,
    mask_truncated: bool, options: tuple,
) -> tuple[Batch, dict[str, Any]]:  # fmt: skip
    """Rewards to advantages, rollout to batch, and what is worth knowing of both."""
    mask_BT = rollout.completion_mask_BT
    length_B = jnp.sum(mask_BT, axis=1)
    valid_B = scored.valid_B & (rollout.finished_B if mask_truncated else True)
    values_BW = jnp.where(scored.applies_BW, scored.rewards_BW, 0.0)
    reward_B = values_BW @ weights_W
    advantage_B, equal_G = advantages.group_normalised(
        reward_B, group_size, mask_B=valid_B, **dict(options)
    )
    gap = jnp.abs(rollout.behaviour_logp_BT - rollout.model_logp_BT)
    batch = Batch(
        tokens_BT=rollout.tokens_BT,
        positions_BT=rollout.positions_BT,
        segments_BT=rollout.segments_BT,
        weight_BT=(mask_BT & valid_B[:, None]).astype(jnp.float32),
        advantage_BT=jnp.broadcast_to(advantage_B[:, None], mask_BT.shape),
        behaviour_logp_BT=rollout.model_logp_BT if truncated else rollout.behaviour_logp_BT,
    )
    applied_W = jnp.sum(scored.applies_BW, axis=0)
    metrics = {
        "reward": jnp.mean(reward_B),
        "terms_W": jnp.sum(values_BW, axis=0) / applied_W,  # NaN where a term is off
        "length": jnp.mean(length_B),
        "tokens": jnp.sum(length_B),
        "truncated": jnp.mean(~rollout.finished_B),
        "masked": jnp.mean(~valid_B),
        "all_equal_groups": jnp.mean(equal_G),
        "sampling_gap": jnp.max(jnp.where(mask_BT, gap, 0.0)),
    }
    return batch, metrics


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def take(batch: Batch, rows, aggregation: str, microbatches: int, constant: float | None) -> Batch:
    """A minibatch: the given rows, with the weights of its aggregation."""
    part = jax.tree.map(lambda x: x[rows], batch)
    weight = aggregation_weights(
        part.weight_BT, aggregation, microbatches=microbatches, constant=constant
    )
    return part._replace(weight_BT=weight)


def join(metrics: dict, found: dict, number: int, minibatches: int) -> dict[str, Any]:
    """The update's metrics, averaged over a rollout's minibatches.

    The log-prob gap is that of the first minibatch, the only one that is still on-policy.
    """
    joined = {k: metrics.get(k, 0.0) + v / minibatches for k, v in found.items()}
    joined["skipped"] = found["skipped"]
    gap = found.get("max/logprob_gap")
    joined["max/logprob_gap"] = gap if number == 0 else metrics.get("max/logprob_gap")
    return joined


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


def shown(config, texts, examples, scored: Scored, terms, rollout: Rollout) -> list[dict]:
    """Some rollouts of this step, with their reward parts, for the report."""
    rewards, on = local_rows(scored.rewards_BW), local_rows(scored.applies_BW)
    finished = local_rows(rollout.finished_B)
    weights = np.array([t.weight for t in terms], np.float32)
    stride = max(1, len(texts) // config.samples_shown)
    return [
        {
            "prompt": examples[i]["prompt"],
            "response": texts[i],
            "reward": float((rewards[i] * on[i]) @ weights),
            "rewards": {t.name: float(r) for t, r, o in zip(terms, rewards[i], on[i], strict=True) if o},
            "example_id": examples[i].get("id", ""),
            "finished": bool(finished[i]),
        }
        for i in range(0, len(texts), stride)
    ]

"""On-policy distillation: the student samples, and moves towards its teacher on what it sampled.

One pass of the loop: draw prompts, sample `group_size` completions each, ask the teacher about
every token of them, make one update. No verifier and no reward; no sample is used twice, so no
ratio is clipped. The student is sampled, and both are compared, at one `temperature`.

With k > 0 the loss is a divergence over the teacher's k likeliest tokens at each place, by default
reverse KL (Qwen3's strong-to-weak distillation, arXiv 2505.09388, section 4.5, names no direction;
Agarwal et al. 2023, arXiv 2306.13649). With k = 0 it is the policy gradient with the per-token
advantage log p(y) - log q(y) of `teacher.sampled_kl`: one number a token from the teacher instead
of k, and a noisier gradient. `loss_options` are of losses/distill.py or, with k = 0, of
losses/grpo.py. As in GKD nothing flows back through the sampling itself.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from posttrain_jax import artifacts, nonfinite, optimizers, train_state, tree
from posttrain_jax import teacher as teachers
from posttrain_jax.api import Artifact, Batch, Metrics, Model, Params, Rollout
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.losses import distill, grpo
from posttrain_jax.losses.common import aggregation_weights
from posttrain_jax.mesh import check_batch
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
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.prompts import NOTHING_DRAWN, Drawn, PromptStream
from posttrain_jax.rollout.sampling import Sampling

DEFAULTS = {
    "prompts": {},
    "system": "",
    "k": ...,
    "loss_options": {},
    "group_size": 1,
    "rollout_size": ...,
    "microbatches": 1,
    "steps": ...,
    "prompt_length": ...,
    "max_new": ...,
    "temperature": 1.0,
    "aggregation": "token_mean_global",
    "aggregation_constant": 0.0,
    "lr": ...,
    "lr_schedule": "constant",
    "lr_end_ratio": 1.0,
    "warmup": 0,
    "optimizer": {},
    "model_options": {},
    "teacher_options": {},
    "lora": {"rank": 0, "alpha": 32.0, "targets": "", "rslora": False, "dora": False, "base": ""},
    "stop_after_skipped": 10,
    "save_every": 10,
}
SHOWN = ("loss", "sampled_kl", "length", "tokens_per_second")


class Setting(NamedTuple):
    """What stays the same over a stage; `frozen` are the parameters that are not trained."""

    config: Any
    mesh: Mesh
    text: Text
    model: Model
    frozen: Params
    teacher: teachers.TeacherModel


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"] towards inputs["teacher"] on its own answers to `prompts`.

    Raises:
      ValueError: sizes that don't divide, greedy sampling, or a teacher of another tokenizer or
        chat template.
    """
    mesh, text = open_mesh(config), open_text(config)
    if config.temperature <= 0:
        raise ValueError(
            f"temperature={config.temperature}: expected a number above 0, as the student is "
            "compared with its teacher under the distribution that it samples from"
        )
    check_sizes(config, mesh)
    with jax.set_mesh(mesh):
        model, params = load_trainable(
            inputs["policy"], mesh, config.lora, config.seed, **config.model_options
        )
        teacher = teachers.open_teacher(
            inputs["teacher"], mesh, text, model, **config.teacher_options
        )
        params, frozen = train_state.split(model, params)
        stream = PromptStream(config, inputs, text)
        setting = Setting(config, mesh, text, model, frozen, teacher)
        params, phases, last = train(setting, workdir, params, stream)
        save_policy(workdir, model, params, inputs["policy"])
    metrics = {**last, "skipped_prompts": stream.skipped}
    return artifacts.finish(workdir, metrics=metrics, phases=phases)


def check_sizes(config: Any, mesh: Mesh) -> None:
    """Check the batch arithmetic.

    Raises:
      ValueError: sizes that don't divide.
    """
    for name in ("group_size", "microbatches"):
        if config.rollout_size % config[name]:
            raise ValueError(
                f"rollout_size={config.rollout_size} is not a multiple of {name}={config[name]}"
            )
        check_batch(mesh, f"rollout_size / {name}", config.rollout_size // config[name])


def train(
    setting: Setting, workdir: Path, params: Params, stream: PromptStream
) -> tuple[Params, dict[str, float], dict[str, float]]:
    """The loop -> (trained parameters, seconds by phase, the last step's metrics)."""
    config = setting.config
    update, optimizer = make_update(setting)
    checkpoints = Checkpoints(workdir, config.save_every)
    state = train_state.init_state(params, optimizer)
    start, state, meta = checkpoints.restore(state) or (0, state, {})
    phases, last = PhaseTimer(meta.get("phases")), meta.get("last", {})
    drawn = Drawn(*meta.get("drawn", NOTHING_DRAWN))
    watch = nonfinite.Watch(
        workdir, config.stop_after_skipped, state.skipped, meta.get("in_a_row", 0)
    )
    with MetricLogger(workdir, config.steps, stage_title(workdir), start, shown=SHOWN) as log:
        for step in range(start, config.steps):
            begun = time.monotonic()
            prompts, drawn = stream.draw(step, drawn)
            with phases("sample"):
                rollout = jax.block_until_ready(roll_out(setting, state.params, prompts, step))
            with phases("update"):
                lr = optimizers.scheduled(config, step, config.steps)
                batch, about = annotated(setting, rollout)
                state, found = update(state, batch, jnp.float32(lr))
                values = jax.device_get({**about, **found})
                last = {name.removeprefix("max/"): float(v) for name, v in values.items()}
            rate = last["tokens"] / (time.monotonic() - begun)
            log(step + 1, {**last, **phases.lap(), "learning_rate": lr, "tokens_per_second": rate})
            watch.after(step + 1, state.skipped, batch)
            told = {"phases": phases.seconds, "last": last, "drawn": drawn}
            told["in_a_row"] = watch.in_a_row
            checkpoints.after(step + 1, state, told)
    checkpoints.close()
    return state.params, phases.seconds, last


def make_update(setting: Setting) -> tuple[Callable, Any]:
    """The jitted update with the loss that `k` asks for, and its optimizer."""
    config, optimizer = setting.config, optimizers.make_optimizer(**setting.config.optimizer)
    options = dict(config.loss_options)
    if config.k:
        loss = functools.partial(distill.loss, **{"divergence": "reverse", **options})
    else:
        loss = functools.partial(grpo.loss, **options)
    update = train_state.make_update(
        setting.model, optimizer, loss, frozen=setting.frozen, microbatches=config.microbatches,
        start=config.prompt_length, temperature=config.temperature,
    )  # fmt: skip
    return update, optimizer


def roll_out(setting: Setting, params: Params, prompts: engine.Prompts, step: int) -> Rollout:
    """The student's completions of this step; no other step has their uids."""
    config, mesh = setting.config, setting.mesh
    params = engine.for_sampling(tree.join(setting.frozen, params), setting.model, mesh)
    job = engine.job(
        prompts, mesh, setting.text.tokenizer, sampling=Sampling(config.temperature),
        seed=config.seed, first_uid=step * config.rollout_size, group_size=config.group_size,
        max_new=config.max_new,
    )  # fmt: skip
    return engine.roll_out(*lora.for_decoding(setting.model, params), job)


def annotated(setting: Setting, rollout: Rollout) -> tuple[Batch, Metrics]:
    """The rollout with what the teacher says of it, and what is worth knowing of both."""
    config = setting.config
    batch, about = to_batch(
        rollout, config.aggregation, config.microbatches, config.aggregation_constant or None
    )
    batch = teachers.annotate(
        setting.teacher, batch, config.k, start=config.prompt_length,
        temperature=config.temperature,
    )  # fmt: skip
    if config.k:  # the divergence is all: the head makes no log-probs of the tokens themselves
        return batch._replace(weight_BT=batch.weight_BT * 0.0), about
    advantage_BT, _, found = teachers.sampled_kl(batch)
    return batch._replace(advantage_BT=advantage_BT, teacher=None), {**about, **found}


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def to_batch(
    rollout: Rollout, aggregation: str, microbatches: int, constant: float | None
) -> tuple[Batch, Metrics]:
    """The rollout with the weights of its aggregation, and how long it is."""
    mask_BT = rollout.completion_mask_BT
    weight_BT = aggregation_weights(
        mask_BT, aggregation, microbatches=microbatches, constant=constant
    )
    batch = Batch(
        rollout.tokens_BT, rollout.positions_BT, rollout.segments_BT, weight_BT,
        behaviour_logp_BT=rollout.behaviour_logp_BT,
    )  # fmt: skip
    length_B = jnp.sum(mask_BT, axis=1)
    return batch, {
        "length": jnp.mean(length_B),
        "tokens": jnp.sum(length_B),
        "truncated": jnp.mean(~rollout.finished_B),
    }

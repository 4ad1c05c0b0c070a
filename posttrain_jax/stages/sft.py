"""Supervised fine-tuning: packed conversations, loss on the assistant's tokens only.

The normalisation is the mean over all loss tokens of the batch. Data that doesn't fit into
`length` is left out and counted. Where the policy comes from a file, not from an earlier stage,
put an `import` stage before this one. With `lora.rank` above 0 adapters are trained, over weights
that stay as they are (models/lora.py). Other stages on packed conversations are this one with
another `Lesson` (stages/distill.py). What tools said within a response stands between the texts of
a pair in `results`, and is not learnt.
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

from posttrain_jax import artifacts, nonfinite, optimizers, train_state
from posttrain_jax.api import Array, Artifact, Batch, Metrics, Model, Params, PolicyOut
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.data.examples import encode_examples, load_examples
from posttrain_jax.data.loader import Order, row_batch
from posttrain_jax.data.pack import Rows, pack
from posttrain_jax.losses import sft as cross_entropy
from posttrain_jax.losses.common import aggregation_weights
from posttrain_jax.mesh import check_batch
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.policy import (
    Text,
    load_trainable,
    open_mesh,
    open_text,
    save_policy,
    stage_title,
)

DEFAULTS = {
    "data": {},
    "system": "",
    "results": (),
    "length": ...,
    "batch_size": ...,
    "microbatches": 1,
    "steps": 0,
    "epochs": 0.0,
    "lr": ...,
    "lr_schedule": "cosine",
    "lr_end_ratio": 0.1,
    "warmup": 0,
    "optimizer": {},
    "aggregation": "token_mean_global",
    "model_options": {},
    "lora": {"rank": 0, "alpha": 32.0, "targets": "", "rslora": False, "dora": False, "base": ""},
    "stop_after_skipped": 10,
    "save_every": 50,
}


class Lesson(NamedTuple):
    """What is learnt from packed rows.

    Attributes:
      draw: the numbers of rows -> their batch, with the weights of its loss.
      loss, view: of `train_state.make_update`.
    """

    draw: Callable[[list[int]], Batch]
    loss: Callable[..., tuple[Array, Metrics]]
    view: Callable[..., PolicyOut]


class Scene(NamedTuple):
    """What a lesson is made of."""

    config: Any
    inputs: Mapping[str, Artifact]
    mesh: Mesh
    text: Text
    model: Model
    rows: Rows


def imitation(scene: Scene) -> Lesson:
    """Cross-entropy on the tokens themselves."""
    config, mesh, rows = scene.config, scene.mesh, scene.rows
    draw = lambda chosen: weigh(  # noqa: E731
        row_batch(mesh, rows, chosen), config.aggregation, config.microbatches
    )
    return Lesson(draw, cross_entropy.loss, train_state.linear_out)


def run(
    config: Any, workdir: Path, inputs: Mapping[str, Artifact],
    make_lesson: Callable[[Scene], Lesson] = imitation,
) -> Artifact:  # fmt: skip
    """Fine-tune inputs["policy"] on `config.data`; `steps`, or `epochs` over the packed rows."""
    mesh, text = open_mesh(config), open_text(config)
    with jax.set_mesh(mesh):
        model, params = load_trainable(
            inputs["policy"], mesh, config.lora, config.seed, **config.model_options
        )
        rows, counts = load_rows(config, inputs, text)
        scene = Scene(config, inputs, mesh, text, model, rows)
        params, phases, last = train(scene, workdir, params, make_lesson(scene))
        save_policy(workdir, model, params, inputs["policy"])
    return artifacts.finish(workdir, metrics={**last, **counts}, phases=phases)


def load_rows(
    config: Any, inputs: Mapping[str, Artifact], text: Text
) -> tuple[Rows, dict[str, Any]]:
    """The packed conversations of `config.data`, and how many there are and were left out."""
    examples = load_examples(config.data, inputs, config.seed)
    sequences = encode_examples(examples, *text, config.system, config.results)
    rows, dropped = pack(sequences, config.length, text.tokenizer.pad_id)
    return rows, {"examples": len(examples), "rows": len(rows.tokens), "dropped": dropped}


def count_steps(config: Any, rows: int) -> int:
    """The number of updates that `steps` or `epochs` asks for.

    Raises:
      ValueError: both are set, or neither.
    """
    if bool(config.steps) == bool(config.epochs):
        raise ValueError(f"set one of steps={config.steps} and epochs={config.epochs}, not both")
    return config.steps or max(1, round(config.epochs * rows / config.batch_size))


def train(
    scene: Scene, workdir: Path, params: Params, lesson: Lesson
) -> tuple[Params, dict[str, float], dict[str, float]]:
    """The loop over packed rows.

    Returns:
      the trained parameters, seconds by phase, and the last step's loss.
    """
    config, _, mesh, _, model, rows = scene
    check_batch(mesh, "batch_size", config.batch_size)
    check_batch(mesh, "batch_size / microbatches", config.batch_size // config.microbatches)
    steps = count_steps(config, len(rows.tokens))
    order, checkpoints = (
        Order(len(rows.tokens), config.seed),
        Checkpoints(workdir, config.save_every),
    )
    optimizer = optimizers.make_optimizer(**config.optimizer)
    params, frozen = train_state.split(model, params)
    update = train_state.make_update(
        model, optimizer, lesson.loss, frozen=frozen, microbatches=config.microbatches,
        view=lesson.view,
    )  # fmt: skip
    state = train_state.init_state(params, optimizer)
    start, state, meta = checkpoints.restore(state) or (0, state, {})
    phases = PhaseTimer(meta.get("phases"))
    last = meta.get("last", {})
    watch = nonfinite.Watch(
        workdir, config.stop_after_skipped, state.skipped, meta.get("in_a_row", 0)
    )
    with MetricLogger(workdir, steps, stage_title(workdir), start) as log:
        for step in range(start, steps):
            begun = time.monotonic()
            with phases("compile" if step == start else "update"):
                chosen = order.take(step * config.batch_size, config.batch_size)
                batch = lesson.draw(chosen)
                lr = optimizers.scheduled(config, step, steps)
                state, metrics = update(state, batch, jnp.float32(lr))
                last = {"loss": float(metrics["loss"])}
            tokens = rows.mask.shape[1] * config.batch_size
            rate = tokens / (time.monotonic() - begun)
            log(step + 1, {**metrics, "learning_rate": lr, "tokens_per_second": rate})
            watch.after(step + 1, state.skipped, batch)
            meta = {"phases": phases.seconds, "last": last, "in_a_row": watch.in_a_row}
            checkpoints.after(step + 1, state, meta)
    checkpoints.close()
    return state.params, phases.seconds, {**last, "skipped": int(state.skipped)}


@functools.partial(jax.jit, static_argnums=(1, 2))
def weigh(batch: Batch, aggregation: str, microbatches: int) -> Batch:
    """A batch whose 0/1 weights became those of its aggregation."""
    weight = aggregation_weights(batch.weight_BT, aggregation, microbatches=microbatches)
    return batch._replace(weight_BT=weight)

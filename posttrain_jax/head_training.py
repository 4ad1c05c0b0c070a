"""The update of a model with a head, on rows with marked places, and the loop over its steps.

Shared by the stages that train reward models and process reward models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from posttrain_jax import nonfinite, optimizers, train_state, tree
from posttrain_jax.api import Metrics, Params
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.data.marked import Marked
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.policy import stage_title
from posttrain_jax.train_state import TrainState

Objective = Callable[[Params, Marked], tuple[jax.Array, Metrics]]
"""`(all parameters, rows) -> (loss, metrics)`; a weighted sum, so that parts of a batch add up."""


def make_update(
    objective: Objective, optimizer: optax.GradientTransformation, *,
    frozen: Params | None = None, microbatches: int = 1, together: int = 1,
) -> Callable[[TrainState, Marked, Any], tuple[TrainState, Metrics]]:  # fmt: skip
    """The jitted update `(state, marked, lr) -> (state, metrics)`; the state is donated.

    Args:
      frozen: parameters beside those of the state, which are not trained.
      microbatches, together: as in `train_state.accumulate`.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, marked: Marked, lr, frozen):
        def of_trained(params, part):
            return objective(tree.join(frozen, params), part)

        grads, metrics = train_state.accumulate(
            jax.value_and_grad(of_trained, has_aux=True), state.params, marked, microbatches,
            together,
        )  # fmt: skip
        loss = metrics.get("loss", 0.0)
        state, more = train_state.apply_gradients(state, grads, optimizer, lr, loss)
        return state, {**metrics, **more}

    return functools.partial(update, frozen=frozen or {})


def train(
    config: Any, workdir: Path, params: Params, trained: Callable[[str], bool],
    objective: Objective, batch: Callable[[int], Marked], *, together: int = 1,
    notes: Mapping[str, str] | None = None,
) -> tuple[Params, PhaseTimer]:  # fmt: skip
    """The loop over `config.steps`, from the last checkpoint on.

    Args:
      config: of the stage: steps, lr and its schedule, optimizer, microbatches,
        stop_after_skipped, save_every.
      trained: which parameters are trained, by their paths.
      batch: makes the rows of a step, placed on the mesh.
      notes: printed first, by name: what was left out of the data.

    Returns:
      all parameters, and seconds by phase.
    """
    checkpoints = Checkpoints(workdir, config.save_every)
    optimizer = optimizers.make_optimizer(**config.optimizer)
    params, frozen = tree.split(params, trained)
    update = make_update(
        objective, optimizer, frozen=frozen, microbatches=config.microbatches, together=together
    )
    state = train_state.init_state(params, optimizer)
    start, state, meta = checkpoints.restore(state) or (0, state, {})
    phases = PhaseTimer(meta.get("phases"))
    watch = nonfinite.Watch(
        workdir, config.stop_after_skipped, state.skipped, meta.get("in_a_row", 0)
    )
    shown = ("loss", "pair_accuracy", "label_accuracy", "step_accuracy")
    with MetricLogger(workdir, config.steps, stage_title(workdir), start, shown=shown) as log:
        for name, said in (notes or {}).items():
            log.note(f"{name}: {said}")
        for step in range(start, config.steps):
            with phases("compile" if step == start else "update"):
                lr = optimizers.scheduled(config, step, config.steps)
                marked = batch(step)
                state, metrics = update(state, marked, jnp.float32(lr))
                jax.block_until_ready(metrics)
            log(step + 1, {**metrics, "learning_rate": lr})
            watch.after(step + 1, state.skipped, marked)
            meta = {"phases": phases.seconds, "in_a_row": watch.in_a_row}
            checkpoints.after(step + 1, state, meta)
    checkpoints.close()
    return tree.join(frozen, state.params), phases

"""A Bradley-Terry reward model from pairs of a chosen and a rejected response.

Chosen and rejected lie side by side in one batch (rows 2i and 2i + 1), so each update sees whole
pairs. The loss is -log sigmoid of the score difference (losses/bradley_terry.py). Accuracy on
held-out pairs is measured at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, reward_model, train_state
from posttrain_jax.api import Artifact, Model
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.loader import Order
from posttrain_jax.losses import bradley_terry
from posttrain_jax.mesh import all_rows, check_batch, host_batch, local_rows, local_slice
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr
from posttrain_jax.models.heads import score_sequences
from posttrain_jax.policy import Text, load_policy, open_mesh, open_text, stage_title

DEFAULTS = {
    "data": {},
    "heldout": {},
    "span": "whole",
    "length": ...,
    "pairs_per_step": ...,
    "steps": ...,
    "lr": ...,
    "lr_schedule": "linear",
    "lr_end_ratio": 0.0,
    "warmup": 0,
    "margin": 0.0,
    "optimizer": {},
    "model_options": {},
    "save_every": 50,
}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"] plus a new score head on the pairs of `config.data`."""
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    check_batch(mesh, "2 * pairs_per_step", 2 * config.pairs_per_step)
    check_batch(mesh, "pairs_per_step", config.pairs_per_step)
    with jax.set_mesh(mesh):
        model, backbone = load_policy(inputs["policy"], mesh, **config.model_options)
        tokens, segments, cut = encode_pairs(config, inputs, text, config.data)
        order, checkpoints = (
            Order(len(tokens) // 2, config.seed),
            Checkpoints(workdir, config.save_every),
        )
        optimizer = train_state.make_optimizer(**config.optimizer)
        update = make_update(model, optimizer, config.margin)
        params = reward_model.add_head(model, backbone, mesh, config.seed)
        state = train_state.init_state(params, optimizer)
        start, state, meta = checkpoints.restore(state) or (0, state, {})
        phases = PhaseTimer(meta.get("phases"))
        with MetricLogger(
            workdir, config.steps, stage_title(workdir), start, shown=("loss", "pair_accuracy")
        ) as log:
            for step in range(start, config.steps):
                with phases("compile" if step == start else "update"):
                    pairs = np.array(
                        order.take(step * config.pairs_per_step, config.pairs_per_step)
                    )
                    rows = np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)
                    lr = train_state.learning_rate(
                        step, peak=config.lr, total=config.steps, warmup=config.warmup,
                        schedule=config.lr_schedule, end_ratio=config.lr_end_ratio,
                    )  # fmt: skip
                    batch = place(mesh, tokens, segments, rows)
                    state, metrics = update(state, *batch, jnp.float32(lr))
                    jax.block_until_ready(metrics)
                log(step + 1, {**metrics, "learning_rate": lr})
                checkpoints.after(step + 1, state, {"phases": phases.seconds})
        checkpoints.close()
        finished = reward_model.RewardModel(model, state.params, config.length, config.span)
        reward_model.save(workdir, finished)
        with phases("eval"):
            quality = heldout_accuracy(config, inputs, text, mesh, finished)
    return artifacts.finish(
        workdir, metrics={"pairs": len(tokens) // 2, "cut": cut, **quality}, phases=phases.seconds
    )


def encode_pairs(config, inputs, text: Text, data) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows (chosen, rejected, chosen, ...) of all pairs in `data`, and how many were cut.

    Raises:
      ValueError: an example without a pair.
    """
    pairs = []
    for example in load_examples(data, inputs, config.seed):
        if not (example.get("chosen") and example.get("rejected")):
            raise ValueError(f"example {example.get('id')!r} has no chosen and rejected response")
        pairs += [(example, example["chosen"]), (example, example["rejected"])]
    return reward_model.encode_rows(pairs, text, config.length, config.span)


def place(mesh: Mesh, tokens: np.ndarray, segments: np.ndarray, rows: Sequence[int] | np.ndarray):
    """The chosen rows on the mesh."""
    return tuple(
        host_batch(mesh, (len(rows), array.shape[1]), lambda index, a=array: a[rows[index]])
        for array in (tokens, segments)
    )


def make_update(model: Model, optimizer, margin: float):
    """The jitted update `(state, tokens, segments, lr) -> (state, metrics)`."""

    def objective(params, tokens_BT, segments_BT):
        scores = score_sequences(model, params["backbone"], params["head"], tokens_BT, segments_BT)
        weight = jnp.full(scores.shape[0] // 2, 2.0 / scores.shape[0])
        return bradley_terry.loss(scores[0::2], scores[1::2], weight, margin=margin)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, tokens_BT, segments_BT, lr):
        grads, metrics = jax.grad(objective, has_aux=True)(state.params, tokens_BT, segments_BT)
        state, more = train_state.apply_gradients(state, grads, optimizer, lr)
        return state, {**metrics, **more}

    return update


def heldout_accuracy(config, inputs, text: Text, mesh: Mesh, finished) -> dict[str, Any]:
    """Share of held-out pairs in which the chosen response scores higher, in all and by kind."""
    if not config.heldout:
        return {}
    examples = load_examples(config.heldout, inputs, config.seed)
    size = config.pairs_per_step
    right = []
    for first in range(0, len(examples), size):
        batch = [examples[(first + i) % len(examples)] for i in range(size)]
        pairs = [pair for e in batch for pair in ((e, e["chosen"]), (e, e["rejected"]))]
        here = local_slice(host_batch(mesh, (2 * size,), lambda i: np.zeros(2 * size)[i]))
        scores = reward_model.score_local(finished, pairs[here], text, mesh)
        scores = all_rows(mesh, local_rows(scores)).reshape(-1, 2)
        right += list(scores[:, 0] > scores[:, 1])
    right = np.array(right[: len(examples)], np.float32)
    kinds = np.array([e["kind"] for e in examples])
    by_kind = {
        f"pair_accuracy/{k}": mean_stderr(right[kinds == k].tolist()) for k in sorted(set(kinds))
    }
    return {"pair_accuracy": mean_stderr(right.tolist()), **by_kind}

"""A Bradley-Terry reward model from pairs of a chosen and a rejected response.

The loss is -log sigmoid of the score difference (losses/bradley_terry.py), the mean over the pairs
of a step. Each conversation is a row of `length` tokens; or, with `row_length`, the same pairs lie
packed in fewer rows of so many tokens (Llama 3, arXiv 2407.21783, section 4.1.2, packs responses
too, with one prompt for all, and its attention sees across them; here each has its prompt and sees
only itself, so that packing changes no score). Accuracy on held-out pairs is measured at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, optimizers, reward_model, train_state, tree
from posttrain_jax.api import Artifact, Batch, Model, Params
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.loader import Order, row_batch
from posttrain_jax.data.pairs import Layout, Pair, lay_out, one_a_row, packed
from posttrain_jax.losses import bradley_terry
from posttrain_jax.mesh import (
    all_rows,
    batch_shards,
    check_batch,
    host_batch,
    local_rows,
    local_slice,
)
from posttrain_jax.metrics import MetricLogger, PhaseTimer, mean_stderr
from posttrain_jax.models import heads, lora
from posttrain_jax.policy import Text, load_trainable, open_mesh, open_text, stage_title
from posttrain_jax.verifiers.terms import SPANS

DEFAULTS = {
    "data": {},
    "heldout": {},
    "span": "whole",
    "head": {},
    "length": ...,
    "row_length": 0,
    "pairs_per_step": ...,
    "microbatches": 1,
    "steps": ...,
    "lr": ...,
    "lr_schedule": "linear",
    "lr_end_ratio": 0.0,
    "warmup": 0,
    "margin": 0.0,
    "optimizer": {},
    "model_options": {},
    "lora": {"rank": 0, "alpha": 32.0, "targets": "", "rslora": False, "dora": False, "base": ""},
    "save_every": 50,
}


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"] plus a new score head on the pairs of `config.data`."""
    mesh, text, head = open_mesh(config), open_text(config), check(config)
    check_batch(mesh, "pairs_per_step / microbatches", config.pairs_per_step // config.microbatches)
    with jax.set_mesh(mesh):
        model, params = load_trainable(
            inputs["policy"], mesh, config.lora, config.seed, **config.model_options
        )
        params = reward_model.add_head(model, params, mesh, config.seed, head)
        pairs, cut = encode_pairs(config, inputs, text, config.data)
        order = Order(len(pairs), config.seed)
        steps = [
            order.take(step * config.pairs_per_step, config.pairs_per_step)
            for step in range(config.steps)
        ]
        layout = find_layout(config, mesh, pairs, steps)

        def batch(step: int) -> Batch:
            return place(mesh, [pairs[i] for i in steps[step]], layout, text)

        params, phases = train(config, workdir, model, params, layout, batch)
        model, params["backbone"] = lora.merged(model, params["backbone"])
        finished = reward_model.RewardModel(model, params, config.length, config.span, head)
        reward_model.save(workdir, finished)
        with phases("eval"):
            quality = heldout_accuracy(config, inputs, text, mesh, finished)
    metrics = {"pairs": len(pairs), "cut": cut, "rows_per_step": layout.rows, **quality}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def train(
    config: Any, workdir: Path, model: Model, params: Params, layout: Layout,
    batch: Callable[[int], Batch],
) -> tuple[Params, PhaseTimer]:  # fmt: skip
    """The loop over steps; `batch` makes the batch of a step."""
    checkpoints = Checkpoints(workdir, config.save_every)
    optimizer = optimizers.make_optimizer(**config.optimizer)
    trained, rest = train_state.split(model, params["backbone"])
    params, frozen = {**params, "backbone": trained}, {"backbone": rest}
    update = make_update(
        model, optimizer, layout,
        frozen=frozen, margin=config.margin, microbatches=config.microbatches,
    )  # fmt: skip
    state = train_state.init_state(params, optimizer)
    start, state, meta = checkpoints.restore(state) or (0, state, {})
    phases = PhaseTimer(meta.get("phases"))
    with MetricLogger(
        workdir, config.steps, stage_title(workdir), start, shown=("loss", "pair_accuracy")
    ) as log:
        for step in range(start, config.steps):
            with phases("compile" if step == start else "update"):
                lr = optimizers.learning_rate(
                    step, peak=config.lr, total=config.steps, warmup=config.warmup,
                    schedule=config.lr_schedule, end_ratio=config.lr_end_ratio,
                )  # fmt: skip
                state, metrics = update(state, batch(step), jnp.float32(lr))
                jax.block_until_ready(metrics)
            log(step + 1, {**metrics, "learning_rate": lr})
            checkpoints.after(step + 1, state, {"phases": phases.seconds})
    checkpoints.close()
    return tree.join(frozen, state.params), phases


def check(config: Any) -> heads.HeadConfig:
    """The head that the settings ask for.

    Raises:
      ValueError: a head without exactly one output, an unknown span, microbatches that don't
        divide, or rows too short for a pair.
    """
    head = heads.HeadConfig(**config.head)
    if head.outputs != 1:
        raise ValueError(f"head.outputs={head.outputs}: a reward model of pairs has 1")
    if config.span not in SPANS:
        raise ValueError(f"span={config.span!r}: expected one of {', '.join(SPANS)}")
    if config.pairs_per_step % config.microbatches:
        raise ValueError(
            f"microbatches={config.microbatches} does not divide "
            f"pairs_per_step={config.pairs_per_step}"
        )
    if 0 < config.row_length < 2 * config.length:
        raise ValueError(
            f"row_length={config.row_length} can't hold a pair of two times "
            f"length={config.length} tokens: at least {2 * config.length}, or 0 not to pack"
        )
    return head


def encode_pairs(config, inputs, text: Text, data) -> tuple[Sequence[Pair], int]:
    """The tokens (chosen, rejected) of all pairs in `data`, and how many sequences were cut.

    Raises:
      ValueError: an example without a pair.
    """
    said = []
    for example in load_examples(data, inputs, config.seed):
        if not (example.get("chosen") and example.get("rejected")):
            raise ValueError(f"example {example.get('id')!r} has no chosen and rejected response")
        said += [(example, example["chosen"]), (example, example["rejected"])]
    sequences, cut = reward_model.encode(said, text, config.length, config.span)
    return list(zip(sequences[0::2], sequences[1::2], strict=True)), cut


def find_layout(
    config, mesh: Mesh, pairs: Sequence[Pair], steps: Sequence[Sequence[int]]
) -> Layout:
    """How the pairs of each step lie in rows."""
    if not config.row_length:
        return one_a_row(config.length, config.pairs_per_step)
    sizes = [len(chosen) + len(rejected) for chosen, rejected in pairs]
    return packed(sizes, steps, config.row_length, batch_shards(mesh) * config.microbatches)


def place(mesh: Mesh, pairs: Sequence[Pair], layout: Layout, text: Text) -> Batch:
    """Pairs on the mesh; each one's weight stands on the last tokens of its two sequences."""
    rows = lay_out(pairs, layout, text.tokenizer.pad_id)
    rows = rows._replace(mask=rows.mask / np.float32(len(pairs)))
    return row_batch(mesh, rows, list(range(layout.rows)))


def make_update(
    model: Model, optimizer, layout: Layout, *,
    frozen: Params | None = None, margin: float = 0.0, microbatches: int = 1,
):  # fmt: skip
    """The jitted update `(state, batch, lr) -> (state, metrics)`; `frozen`: what is not trained."""

    def objective(params, part: Batch):
        part = jax.tree.map(lambda x: x.reshape(-1, layout.length), part)
        place_BM, present_BM = heads.places(part.weight_BT > 0, layout.sequences)
        weight_BM = jnp.take_along_axis(part.weight_BT, place_BM, axis=1) * present_BM
        scores_BM = heads.read(model, params, part, place_BM)[..., 0]
        # Row by row, sequences alternate between chosen and rejected.
        scores, weight = scores_BM.reshape(-1, 2), weight_BM.reshape(-1, 2)[:, 0]
        return bradley_terry.loss(scores[:, 0], scores[:, 1], weight, margin=margin)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, batch: Batch, lr, frozen):
        def of_trained(params, part):
            return objective(tree.join(frozen, params), part)

        # What must stay in one microbatch lies along axis 1.
        batch = jax.tree.map(lambda x: x.reshape(-1, layout.together, layout.length), batch)
        grads, metrics = train_state.accumulate(
            jax.value_and_grad(of_trained, has_aux=True), state.params, batch, microbatches
        )
        state, more = train_state.apply_gradients(state, grads, optimizer, lr)
        return state, {**metrics, **more}

    return functools.partial(update, frozen=frozen or {})


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

"""Preference optimisation over pairs of a chosen and a rejected response.

`loss` is a file of losses/ that compares pairs: dpo (with its length-normalised and
length-regularised forms), ipo, simpo, cpo, orpo. Those that hold the policy to a reference take its
log-probs from inputs["reference"], an artifact of kind reference_logprobs; or, where adapters are
trained, from the adapters that the stage starts with over the same weights: new ones change
nothing, so that is the policy without them.

  nll_coef    times the chosen response's negative log-likelihood is added, normalised by nll_norm:
              `response`, a mean over its tokens (Iterative RPO, arXiv 2404.19733, eq. 1; what
              Llama 3 cites); `batch`, over the tokens of all chosen ones; `sum` (CPO)
  mask_formatting_tokens
              headers and turn markers, end of sequence included, count in the likelihood alone
              (Llama 3, arXiv 2407.21783, section 4.1.4)

A pair is two rows of `length` tokens, or of fewer, whose common prompt goes through the layers once
(data/pairs.py); with `row_length`, whole pairs lie packed in fewer rows. What can't be learnt from
is left out and counted (data/preferences.py); its rows are in left_out.jsonl.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, nonfinite, optimizers, registry, train_state, tree
from posttrain_jax.api import Artifact, Batch, Metrics, Model, Params
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.data.loader import Order
from posttrain_jax.data.pairs import Layout
from posttrain_jax.data.preference_rows import (
    Marks,
    compared,
    find_layout,
    imitation,
    place,
    spread,
)
from posttrain_jax.data.preferences import Preferences
from posttrain_jax.mesh import check_batch
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.models.sharing import share_prompts
from posttrain_jax.policy import (
    Text,
    load_trainable,
    open_mesh,
    open_text,
    save_policy,
    stage_title,
)
from posttrain_jax.stages import reference_logprobs

DEFAULTS = {
    "data": {},
    "heldout": {},
    "system": "",
    "loss": "dpo",
    "loss_options": {},
    "nll_coef": 0.0,
    "nll_norm": "response",
    "mask_formatting_tokens": False,
    "length": ...,
    "row_length": 0,
    "pairs_per_step": ...,
    "microbatches": 1,
    "steps": 0,
    "epochs": 0.0,
    "lr": ...,
    "lr_schedule": "linear",
    "lr_end_ratio": 0.0,
    "warmup": 0,
    "optimizer": {},
    "model_options": {},
    "lora": {"rank": 0, "alpha": 32.0, "targets": "", "rslora": False, "dora": False, "base": ""},
    "stop_after_skipped": 10,
    "save_every": 50,
}
NLL_NORMS = ("response", "batch", "sum")


class Pairs(NamedTuple):
    """Encoded pairs, and the reference's log-probs of their responses where they are kept."""

    data: Preferences
    reference: reference_logprobs.Logp | None


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"] on the pairs of `config.data`; `steps`, or `epochs` over them.

    Accuracy on the pairs of `config.heldout` is measured at the end; where the loss takes kept
    log-probs, theirs are inputs["heldout_reference"].
    """
    mesh, text, loss = open_mesh(config), open_text(config), open_loss(config, inputs)
    check_batch(mesh, "pairs_per_step / microbatches", config.pairs_per_step // config.microbatches)
    pairs = read(config, inputs, text, loss, config.data, "reference")
    heldout = None
    if config.heldout:
        heldout = read(config, inputs, text, loss, config.heldout, "heldout_reference")
    reference_logprobs.write_left_out(workdir, pairs.data)
    with jax.set_mesh(mesh):
        model, params = load_trainable(
            inputs["policy"], mesh, config.lora, config.seed, **config.model_options
        )
        trained, frozen = train_state.split(model, params)
        reference = None
        if needs_reference(loss) and pairs.reference is None:
            reference = tree.join(frozen, jax.tree.map(jnp.copy, trained))
        view = View(config, mesh, model, loss, reference, text.tokenizer.pad_id)
        trained, phases, last = train(view, workdir, trained, frozen, pairs)
        save_policy(workdir, model, trained, inputs["policy"])
        with phases("eval"):
            quality = evaluate(view, tree.join(frozen, trained), heldout) if heldout else {}
    metrics = {**last, **pairs.data.counts, **quality}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def open_loss(config: Any, inputs: Mapping[str, Artifact]) -> ModuleType:
    """The loss's module, where it is one of pairs and has all it needs.

    Raises:
      ValueError: another sort of loss, an option it doesn't have, or what it lacks and the setting
        that gives it.
    """
    module = registry.load("losses", config.loss)
    wants = inspect.signature(module.loss).parameters if hasattr(module, "loss") else {}
    needs = getattr(module, "REQUIRES", ())
    if "sequences" not in wants or "advantage_BT" in needs:
        raise ValueError(
            f"loss={config.loss!r} does not compare pairs of responses; dpo does, for example "
            "(and single responses have a stage of their own, of kind kto)"
        )
    if unknown := set(config.loss_options) - set(wants):
        known = sorted(set(wants) - {"out", "batch", "sequences"})
        raise ValueError(f"loss_options {sorted(unknown)}: {config.loss} has {known}")
    if needs_reference(module) and "reference" not in inputs and not config.lora.rank:
        raise ValueError(
            f"loss={config.loss!r} needs the log-probs of a reference: name a stage of kind "
            "reference_logprobs as inputs.reference, or train adapters (lora.rank)"
        )
    kept = needs_reference(module) and "reference" in inputs
    if kept and config.heldout and "heldout_reference" not in inputs:
        raise ValueError(
            "heldout needs log-probs of the reference too: name a stage of kind "
            "reference_logprobs, on the same data, as inputs.heldout_reference"
        )
    if "nll_weight_BT" in needs and not config.nll_coef:
        raise ValueError(f"loss={config.loss!r} needs nll_coef above 0; 1 in its paper")
    if config.nll_norm not in NLL_NORMS:
        raise ValueError(f"nll_norm={config.nll_norm!r}: expected one of {NLL_NORMS}")
    if config.pairs_per_step % config.microbatches:
        raise ValueError(
            f"microbatches={config.microbatches} does not divide "
            f"pairs_per_step={config.pairs_per_step}"
        )
    return module


def needs_reference(loss: ModuleType) -> bool:
    """Whether a loss reads a reference's log-probs."""
    return "reference_logp_BT" in loss.REQUIRES


def read(config, inputs, text: Text, loss: ModuleType, sources, role: str) -> Pairs:
    """The pairs of data sources, with what inputs[role] keeps of the reference, if anything."""
    data = reference_logprobs.read_data(config, inputs, text, False, sources)
    kept = role in inputs and needs_reference(loss)
    return Pairs(data, reference_logprobs.load(inputs[role], data) if kept else None)


class View(NamedTuple):
    """How the stage sees batches: what does not change from step to step.

    Attributes:
      reference: parameters of a reference that is asked at every step; None where its log-probs are
        kept, or not needed.
    """

    config: Any
    mesh: Mesh
    model: Model
    loss: ModuleType
    reference: Params | None
    pad_id: int

    def layout(self, pairs: Pairs, steps: Sequence[Sequence[int]], parts: int) -> Layout:
        """How the pairs of each step lie in rows that divide into so many parts."""
        return find_layout(self.config, self.mesh, pairs.data.groups, steps, parts)

    def reader(self, layout: Layout) -> Model:
        """The model, for rows of this layout."""
        return share_prompts(self.model, layout.members, layout.prompt)

    def bound(self, layout: Layout) -> Callable:
        """The loss with its options, for rows of this layout."""
        return functools.partial(
            self.loss.loss, sequences=layout.sequences, **self.config.loss_options
        )

    def batch(self, pairs: Pairs, chosen: Sequence[int], layout: Layout, total: int) -> Batch:
        """Pairs on the mesh, each with the weight 1 / total, and what the reference says."""
        config, groups = self.config, [pairs.data.groups[i] for i in chosen]
        masked, share = config.mask_formatting_tokens, np.float32(1 / total)
        marks: dict[str, Marks] = {
            "weight_BT": [[share * compared(s, masked) for s in group] for group in groups]
        }
        if config.nll_coef:
            marks["nll_weight_BT"] = imitation(
                groups, total, config.nll_coef, config.nll_norm, masked
            )
        if pairs.reference is not None:
            marks["reference_logp_BT"] = spread(groups, [pairs.reference[i] for i in chosen])
        batch = place(self.mesh, groups, layout, self.pad_id, marks)
        if self.reference is not None:
            logp = train_state.logprobs(self.reader(layout), self.reference, batch)
            batch = batch._replace(reference_logp_BT=logp)
        return batch


def plan_steps(config: Any, count: int) -> list[list[int]]:
    """Which of `count` groups each step trains on, by number.

    Raises:
      ValueError: both steps and epochs are set, or neither.
    """
    if bool(config.steps) == bool(config.epochs):
        raise ValueError(f"set one of steps={config.steps} and epochs={config.epochs}, not both")
    size = config.pairs_per_step
    steps = config.steps or max(1, round(config.epochs * count / size))
    order = Order(count, config.seed)
    return [order.take(step * size, size) for step in range(steps)]


def train(
    view: View, workdir: Path, trained: Params, frozen: Params, pairs: Pairs
) -> tuple[Params, PhaseTimer, Metrics]:
    """The loop; returns what it trained, seconds by phase, and the last step's metrics."""
    config, steps = view.config, plan_steps(view.config, len(pairs.data.groups))
    layout = view.layout(pairs, steps, config.microbatches)
    checkpoints = Checkpoints(workdir, config.save_every)
    optimizer = optimizers.make_optimizer(**config.optimizer)
    update = train_state.make_update(
        view.reader(layout), optimizer, view.bound(layout), frozen=frozen,
        microbatches=config.microbatches, together=layout.together,
    )  # fmt: skip
    state = train_state.init_state(trained, optimizer)
    start, state, meta = checkpoints.restore(state) or (0, state, {})
    phases, last = PhaseTimer(meta.get("phases")), meta.get("last", {})
    watch = nonfinite.Watch(
        workdir, config.stop_after_skipped, state.skipped, meta.get("in_a_row", 0)
    )
    shown = ("loss", "pair_accuracy", "margin")
    with MetricLogger(workdir, len(steps), stage_title(workdir), start, shown=shown) as log:
        for step in range(start, len(steps)):
            begun = time.monotonic()
            with phases("compile" if step == start else "update"):
                batch = view.batch(pairs, steps[step], layout, config.pairs_per_step)
                lr = optimizers.scheduled(config, step, len(steps))
                state, metrics = update(state, batch, jnp.float32(lr))
                last = {name: float(metrics[name]) for name in ("loss", "margin", "skipped")}
            rate = layout.rows * layout.length / (time.monotonic() - begun)
            log(step + 1, {**metrics, "learning_rate": lr, "tokens_per_second": rate})
            watch.after(step + 1, state.skipped, batch)
            meta = {"phases": phases.seconds, "last": last, "in_a_row": watch.in_a_row}
            checkpoints.after(step + 1, state, meta)
    checkpoints.close()
    return state.params, phases, last


@functools.partial(jax.jit, static_argnames=("model", "loss"))
def measure(model: Model, loss: Callable, params: Params, batch: Batch) -> Metrics:
    """A loss's metrics on a batch."""
    return loss(train_state.policy_out(model, params, batch, 1, 1.0), batch)[1]


def evaluate(view: View, params: Params, pairs: Pairs) -> dict[str, Any]:
    """Accuracy, margin and loss on held-out pairs, as the loss sees them."""
    count, size = len(pairs.data.groups), view.config.pairs_per_step
    steps = [list(range(i, min(i + size, count))) for i in range(0, count, size)]
    layout = view.layout(pairs, steps, 1)
    model, loss, found = view.reader(layout), view.bound(layout), {}
    for step in steps:
        metrics = measure(model, loss, params, view.batch(pairs, step, layout, count))
        found = {name: found.get(name, 0.0) + float(x) for name, x in metrics.items()}
    right = found["pair_accuracy"]
    error = (right * (1 - right) / max(1, count - 1)) ** 0.5  # of answers that are 0 or 1
    return {
        "pair_accuracy": {"mean": right, "stderr": error, "n": count},
        "heldout_loss": found["loss"],
        "heldout_margin": found["margin"],
    }

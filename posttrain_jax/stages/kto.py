"""KTO: preference optimisation from single responses, each desirable or not (losses/kto.py).

Examples have a `response` and a `label`; a pair counts as one of each. z, how far the policy has
drifted from the reference, is estimated before each update from as many responses to other prompts
(data/preferences.py) and is the same for all microbatches. The reference's log-probs come from
inputs["reference"], an artifact of kind reference_logprobs with `singles`; or, where adapters are
trained, from those that the stage starts with. Settings are those of the stage kind preference, but
`pairs_per_step` counts responses. `desirable_weight` and `undesirable_weight` (loss_options) should
make up for unequal numbers of the two: the paper's eq. 8 has their total weights between 1 and 4/3
of one another.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, nonfinite, optimizers, train_state, tree
from posttrain_jax.api import Artifact, Batch, Metrics, Model, Params
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.data.pairs import Layout
from posttrain_jax.data.preference_rows import Marks, compared, find_layout, place, spread
from posttrain_jax.data.preferences import Preferences, Side
from posttrain_jax.losses import kto
from posttrain_jax.mesh import check_batch
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.policy import load_trainable, open_mesh, open_text, save_policy, stage_title
from posttrain_jax.stages import reference_logprobs
from posttrain_jax.stages.preference import plan_steps

DEFAULTS = {
    "data": {},
    "system": "",
    "loss_options": {},
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
OWN, OTHER = 0, 1
"""Places in a group: a response, and another one to its prompt."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"] on the responses of `config.data`; `steps`, or `epochs` over them."""
    mesh, text = open_mesh(config), open_text(config)
    check(config, inputs, mesh)
    data = reference_logprobs.read_data(config, inputs, text, True)
    kept = reference_logprobs.load(inputs["reference"], data) if "reference" in inputs else None
    reference_logprobs.write_left_out(workdir, data)
    with jax.set_mesh(mesh):
        model, params = load_trainable(
            inputs["policy"], mesh, config.lora, config.seed, **config.model_options
        )
        trained, frozen = train_state.split(model, params)
        asked = None if kept else tree.join(frozen, jax.tree.map(jnp.copy, trained))
        view = View(config, mesh, model, asked, data, kept, text.tokenizer.pad_id)
        trained, phases, last = train(view, workdir, trained, frozen)
        save_policy(workdir, model, trained, inputs["policy"])
    counts = {**data.counts, "desirable": sum(data.desirable)}
    counts["responses"] = counts.pop("pairs")
    return artifacts.finish(workdir, metrics={**last, **counts}, phases=phases.seconds)


def check(config: Any, inputs: Mapping[str, Artifact], mesh: Mesh) -> None:
    """Refuse settings that can't be.

    Raises:
      ValueError: no reference, or sizes that don't divide.
    """
    if "reference" not in inputs and not config.lora.rank:
        raise ValueError(
            "kto needs the log-probs of a reference: name a stage of kind reference_logprobs (with "
            "singles=True) as inputs.reference, or train adapters (lora.rank)"
        )
    parts, size = config.microbatches, config.pairs_per_step
    if size % parts:
        raise ValueError(f"microbatches={parts} does not divide pairs_per_step={size}")
    check_batch(mesh, "pairs_per_step / microbatches", size // parts)


class View(NamedTuple):
    """How the stage sees batches: what does not change from step to step.

    Attributes:
      asked: parameters of a reference that is asked at every step; None where log-probs are `kept`.
    """

    config: Any
    mesh: Mesh
    model: Model
    asked: Params | None
    data: Preferences
    kept: reference_logprobs.Logp | None
    pad_id: int

    def layout(self, which: int, steps: Sequence[Sequence[int]]) -> Layout:
        """How the responses of each step, or the others, lie in rows."""
        groups = self._groups(which, range(len(self.data.groups)))
        return find_layout(self.config, self.mesh, groups, steps, self.config.microbatches)

    def _groups(self, which: int, chosen: Sequence[int]) -> list[tuple[Side]]:
        return [(self.data.groups[i][which],) for i in chosen]

    def batch(self, which: int, chosen: Sequence[int], layout: Layout) -> Batch:
        """Responses on the mesh, of equal weight, with their labels and what the reference says."""
        groups, share = self._groups(which, chosen), np.float32(1 / len(chosen))
        said = [compared(side, self.config.mask_formatting_tokens) for (side,) in groups]
        signs = [1.0 if self.data.desirable[i] else -1.0 for i in chosen]
        marks: dict[str, Marks] = {
            "weight_BT": [[share * mask] for mask in said],
            "advantage_BT": [[sign * mask] for sign, mask in zip(signs, said, strict=True)],
        }
        if self.kept is not None:
            marks["reference_logp_BT"] = spread(groups, [(self.kept[i][which],) for i in chosen])
        batch = place(self.mesh, groups, layout, self.pad_id, marks)
        if self.asked is not None:
            logp = train_state.logprobs(self.model, self.asked, batch)
            batch = batch._replace(reference_logp_BT=logp)
        return batch


def train(
    view: View, workdir: Path, trained: Params, frozen: Params
) -> tuple[Params, PhaseTimer, Metrics]:
    """The loop; returns what it trained, seconds by phase, and the last step's metrics."""
    config, steps = view.config, plan_steps(view.config, len(view.data.groups))
    layouts = [view.layout(which, steps) for which in (OWN, OTHER)]
    checkpoints = Checkpoints(workdir, config.save_every)
    optimizer = optimizers.make_optimizer(**config.optimizer)
    loss = functools.partial(kto.loss, sequences=layouts[OWN].sequences, **config.loss_options)
    update = train_state.make_update(
        view.model, optimizer, loss, frozen=frozen, microbatches=config.microbatches
    )
    state = train_state.init_state(trained, optimizer)
    start, state, meta = checkpoints.restore(state) or (0, state, {})
    phases, last = PhaseTimer(meta.get("phases")), meta.get("last", {})
    watch = nonfinite.Watch(
        workdir, config.stop_after_skipped, state.skipped, meta.get("in_a_row", 0)
    )
    shown = ("loss", "margin", "kl")
    with MetricLogger(workdir, len(steps), stage_title(workdir), start, shown=shown) as log:
        for step in range(start, len(steps)):
            with phases("compile" if step == start else "update"):
                own, other = (view.batch(w, steps[step], layouts[w]) for w in (OWN, OTHER))
                lr = optimizers.scheduled(config, step, len(steps))
                whole = tree.join(frozen, state.params)
                kl = kto.drift(train_state.logprobs(view.model, whole, other), other)
                state, metrics = update(state, own, jnp.float32(lr), kl=kl)
                metrics = {**kto.means(metrics), "kl": kl}
                last = {name: float(metrics[name]) for name in ("loss", "margin", "skipped")}
            log(step + 1, {**metrics, "learning_rate": lr})
            watch.after(step + 1, state.skipped, own)
            meta = {"phases": phases.seconds, "last": last, "in_a_row": watch.in_a_row}
            checkpoints.after(step + 1, state, meta)
    checkpoints.close()
    return state.params, phases, last

"""A reward model from graded responses; `loss` is a file of losses/.

  bradley_terry  pairs of a chosen and a rejected response
  listwise       all pairs among the responses to a prompt: samples that a verifier found right or
                 wrong, or ranks (edited > chosen > rejected)
  pointwise      single responses with a label
  regression     single responses rated for several `objectives`

data/graded.py says what examples look like. Each response is a row of `length` tokens; or, with
`row_length`, several groups share a row, packed or, as Llama 3 does it, with one prompt for all
responses of a group (`shared_prompt`; data/marked.py). With `gate`, inputs["reward_model"] has
several objectives, and what is trained, on pairs, is the gate that weighs them; all else stays.

What nothing can be learnt from is left out and counted: groups in which two responses of different
grades are the same tokens (cut to the span, or to `length`), groups whose grades are all alike,
empty responses. Accuracy by domain and calibration on held-out examples are measured at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, registry, reward_model
from posttrain_jax.api import Artifact, Model, Params
from posttrain_jax.conversations import encode_parts
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.graded import Graded, read_graded
from posttrain_jax.data.loader import Order
from posttrain_jax.data.marked import (
    Group,
    Layout,
    Marked,
    Response,
    lay_out,
    one_a_row,
    packed,
)
from posttrain_jax.evals.reward_quality import QUALITY
from posttrain_jax.head_training import train
from posttrain_jax.mesh import batch_shards, check_batch, shard_rows
from posttrain_jax.models import heads, lora
from posttrain_jax.policy import Text, load_trainable, open_mesh, open_text
from posttrain_jax.reward_model import RewardModel
from posttrain_jax.verifiers.terms import SPANS

DEFAULTS = {
    "data": {},
    "heldout": {},
    "loss": "bradley_terry",
    "loss_options": {},
    "label": "label",
    "objectives": (),
    "margin": 0.0,
    "margin_field": "",
    "span": "whole",
    "head": {},
    "gate": {},
    "length": ...,
    "row_length": 0,
    "shared_prompt": False,
    "pairs_per_step": ...,
    "microbatches": 1,
    "steps": ...,
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
SHOWN = 3
"""How many of the groups that are left out are named."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"] plus a new head, or a gate over inputs["reward_model"]."""
    mesh, text, loss = open_mesh(config), open_text(config), check(config)
    with jax.set_mesh(mesh):
        started = start(config, inputs, mesh)
        groups, counts, notes = encode_groups(config, inputs, text, config.data)
        order, size = Order(len(groups), config.seed), config.pairs_per_step
        steps = [order.take(step * size, size) for step in range(config.steps)]
        layout = find_layout(config, mesh, groups, steps)

        def batch(step: int) -> Marked:
            chosen = [groups[i] for i in steps[step]]
            rng = np.random.default_rng([config.seed, step]) if config.shared_prompt else None
            return shard_rows(mesh, lay_out(chosen, layout, text.tokenizer.pad_id, rng))

        trained = lambda path: is_trained(started, path)  # noqa: E731
        objective = make_objective(started.model, loss, layout.members, **config.loss_options)
        params, phases = train(
            config, workdir, started.params, trained, objective, batch,
            together=layout.together, notes=notes,
        )  # fmt: skip
        model, backbone = lora.merged(started.model, params["backbone"])
        finished = started._replace(model=model, params={**params, "backbone": backbone})
        reward_model.save(workdir, finished)
        with phases("eval"):
            quality = heldout_quality(config, inputs, text, mesh, finished, loss)
    metrics = {"groups": len(groups), **counts, "rows_per_step": layout.rows, **quality}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def start(config: Any, inputs: Mapping[str, Artifact], mesh: Mesh) -> RewardModel:
    """What is trained: a policy with a new head, or a reward model with a new gate."""
    if config.gate:
        if "reward_model" not in inputs:
            raise ValueError("gate needs inputs['reward_model'], a model of several objectives")
        found = reward_model.load(inputs["reward_model"], mesh)
        return reward_model.add_gate(found, mesh, config.seed, config.gate)
    model, params = load_trainable(
        inputs["policy"], mesh, config.lora, config.seed, **config.model_options
    )
    head = heads.HeadConfig(**config.head)
    params = reward_model.add_head(model, params, mesh, config.seed, head)
    return RewardModel(
        model, params, config.length, config.span, head, objectives=tuple(config.objectives)
    )


def is_trained(started: RewardModel, path: str) -> bool:
    """Whether a parameter is trained: only the gate's where there is one."""
    if started.gate:
        return path.startswith("gate/")
    inside = path.removeprefix("backbone/")
    return inside == path or started.model.trained is None or started.model.trained(inside)


def check(config: Any) -> ModuleType:
    """The module of the loss that the settings ask for.

    Raises:
      ValueError: a head with other outputs than there are objectives, an unknown loss or span,
        microbatches that don't divide, or a gate or shared prompts that can't be.
    """
    loss = registry.load("losses", config.loss)
    if not hasattr(loss, "LABELS"):
        raise ValueError(f"loss={config.loss!r} is no loss of graded responses")
    outputs, wanted = heads.HeadConfig(**config.head).outputs, max(1, len(config.objectives))
    if outputs != wanted:
        raise ValueError(
            f"head.outputs={outputs}: expected {wanted}, one for each of objectives="
            f"{tuple(config.objectives)}, or one score"
        )
    if (loss.LABELS == "ratings") != bool(config.objectives) or (config.gate and config.objectives):
        raise ValueError(
            f"loss={config.loss!r} with objectives={tuple(config.objectives)}, gate="
            f"{dict(config.gate)}: objectives go with regression; a gate is trained by ranks"
        )
    if config.gate and loss.LABELS != "ranks":
        raise ValueError(f"loss={config.loss!r}: a gate is trained by bradley_terry or listwise")
    if config.span not in SPANS:
        raise ValueError(f"span={config.span!r}: expected one of {', '.join(SPANS)}")
    if config.shared_prompt and not config.row_length:
        raise ValueError("shared_prompt needs row_length, the tokens of a row of several responses")
    if config.pairs_per_step % config.microbatches:
        raise ValueError(
            f"microbatches={config.microbatches} does not divide "
            f"pairs_per_step={config.pairs_per_step}"
        )
    return loss


def encode_groups(
    config: Any, inputs: Mapping[str, Artifact], text: Text, data: Any
) -> tuple[list[Group], Counter[str], dict[str, str]]:
    """The groups of all examples in `data`, what was left out or cut, and notes on it.

    Raises:
      ValueError: an example without responses or grades; or nothing is left.
    """
    graded, counts = read_groups(config, inputs, data)
    said = [(group.example, response) for group in graded for response in group.responses]
    parts, cut = encode_parts(said, text, config.length, config.span)
    counts.update({"cut": cut, "dropped_empty": 0, "dropped_equal": 0, "dropped_alike": 0})
    groups, notes, first = [], {}, 0
    for group in graded:
        mine = parts[first : first + len(group.responses)]
        first += len(mine)
        responses = [
            Response(tokens, prompt, grade)
            for (tokens, prompt), grade, said in zip(
                mine, group.grades, group.responses, strict=True
            )
            if said.strip()
        ]
        reason = _refused(responses, registry.load("losses", config.loss).LABELS == "ranks")
        reasons = ["dropped_empty"] * (len(mine) - len(responses)) + [reason] * bool(reason)
        for each in reasons:
            counts[each] += 1
            if counts[each] <= SHOWN:
                notes[each] = f"{notes.get(each, '')} {group.example.get('id')!r}".strip()
        if responses and not reason:
            groups.append(Group(tuple(responses), group.margin))
    if not groups:
        raise ValueError(f"none of {len(graded)} groups of responses can be trained on: {counts}")
    return groups, counts, notes


def read_groups(config: Any, inputs: Mapping[str, Artifact], data: Any):
    """The graded responses of `data`, in groups or each by itself as the loss wants them."""
    graded, counts = read_graded(
        load_examples(data, inputs, config.seed), label=config.label,
        objectives=tuple(config.objectives), margin=config.margin,
        margin_field=config.margin_field,
    )  # fmt: skip
    if registry.load("losses", config.loss).LABELS != "ranks":
        graded = [single for group in graded for single in group.apart()]
    return graded, counts


def _refused(responses: Sequence[Response], ranked: bool) -> str:
    """Why nothing can be learnt from a group; empty where something can."""
    if not ranked:
        return ""
    if len({r.labels for r in responses}) < 2:
        return "dropped_alike"
    grades: dict[bytes, tuple[float, ...]] = {}
    for each in responses:
        if grades.setdefault(each.tokens.tobytes(), each.labels) != each.labels:
            return "dropped_equal"
    return ""


def find_layout(
    config: Any, mesh: Mesh, groups: Sequence[Group], steps: Sequence[Sequence[int]]
) -> Layout:
    """How the groups of each step lie in rows."""
    ways = batch_shards(mesh) * config.microbatches
    if config.row_length:
        return packed(groups, steps, config.row_length, ways, config.shared_prompt)
    check_batch(mesh, "pairs_per_step / microbatches", config.pairs_per_step // config.microbatches)
    members = max(len(group.responses) for group in groups)
    return one_a_row(config.length, config.pairs_per_step, members)


def make_objective(model: Model, loss: ModuleType, members: int, **options: Any):
    """The loss of rows with marked places; `members` marks, one after the other, are a group."""

    def objective(params: Params, part: Marked):
        said = reward_model.outputs(model, params, part.batch, part.place_BM, part.prompt_BM)
        grouped = lambda x: x.reshape(-1, members, x.shape[-1])  # noqa: E731
        margin_G = part.margin_BM.reshape(-1, members)[:, 0]
        return loss.loss(
            grouped(said), grouped(part.label_BMO), grouped(part.weight_BMO), margin_G, **options
        )

    return objective


def heldout_quality(
    config: Any, inputs: Mapping[str, Artifact], text: Text, mesh: Mesh, finished: RewardModel,
    loss: ModuleType,
) -> dict[str, Any]:  # fmt: skip
    """What the finished model makes of the held-out examples (evals/reward_quality.py)."""
    if not config.heldout:
        return {}
    graded, _ = read_groups(config, inputs, config.heldout)
    return quality(graded, text, mesh, finished, loss.LABELS, config.pairs_per_step)


def quality(
    graded: Sequence[Graded], text: Text, mesh: Mesh, model: RewardModel, labels: str, size: int
) -> dict[str, Any]:
    """The metrics of a model on graded responses, `size` responses scored at a time."""
    said = [(group.example, response) for group in graded for response in group.responses]
    found = reward_model.output_all(model, said, text, mesh, 2 * size)
    ends = np.cumsum([len(group.responses) for group in graded])[:-1]
    return QUALITY[labels](graded, np.split(found, ends), model.objectives)

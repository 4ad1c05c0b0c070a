"""A process reward model from solutions whose steps are labelled right or wrong.

Cross-entropy of two classes at the last token of each step, over the steps of a batch (Qwen2.5-Math
-PRM, arXiv 2501.07301, section 2.1). An example has `steps`, a list of texts whose sum is the
response, and `step_labels` (1 or 0), of the first steps or of all: those behind the labelled ones
bear no loss. `step_shares`, with labels="soft", are labels between. stages/step_labels.py makes all
three. Solutions are packed into rows of `length` tokens; what doesn't fit is left out and counted.

On held-out solutions: step accuracy and calibration, and the F1 of finding the first wrong step
(evals/first_error.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, process_reward, reward_model
from posttrain_jax.api import Artifact, Batch, Model, Params
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.loader import Order
from posttrain_jax.data.marked import Marked
from posttrain_jax.data.pack import Rows, pack
from posttrain_jax.data.steps import Steps, encode_steps
from posttrain_jax.evals.calibration import calibration
from posttrain_jax.evals.first_error import first_error, first_error_metrics
from posttrain_jax.evals.reward_quality import domain
from posttrain_jax.head_training import train
from posttrain_jax.losses import step_cross_entropy
from posttrain_jax.mesh import check_batch, shard_rows
from posttrain_jax.metrics import mean_stderr
from posttrain_jax.models import heads, lora
from posttrain_jax.policy import Text, load_trainable, open_mesh, open_text
from posttrain_jax.process_reward import AGGREGATES, ProcessModel
from posttrain_jax.rollout.judges import process_chances

DEFAULTS = {
    "data": {},
    "heldout": {},
    "labels": "hard",
    "separators": ("\n\n",),
    "aggregate": "product",
    "marker": "",
    "head": {"layers": 2, "outputs": 2, "bias": None, "init_std": None},
    "length": ...,
    "batch_size": ...,
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
FIELDS = {"hard": "step_labels", "soft": "step_shares"}


class Labelled(NamedTuple):
    """A solution with the labels of its first steps; `hard` ones also where training is on soft."""

    example: Mapping[str, Any]
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    hard: tuple[float, ...]


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"] plus a new head on the labelled solutions of `config.data`."""
    mesh, text, head = open_mesh(config), open_text(config), check(config)
    check_batch(mesh, "batch_size / microbatches", config.batch_size // config.microbatches)
    with jax.set_mesh(mesh):
        model, params = load_trainable(
            inputs["policy"], mesh, config.lora, config.seed, **config.model_options
        )
        params = reward_model.add_head(model, params, mesh, config.seed, head)
        solutions, counts = read_labelled(config, inputs, config.data)
        rows, more = pack_rows(config, solutions, text)
        marks = mark(rows)
        order, size = Order(len(rows.tokens), config.seed), config.batch_size

        def batch(step: int) -> Marked:
            return shard_rows(mesh, take(marks, order.take(step * size, size)))

        def trained(path: str) -> bool:
            inside = path.removeprefix("backbone/")
            return inside == path or model.trained is None or model.trained(inside)

        params, phases = train(config, workdir, params, trained, make_objective(model), batch)
        model, backbone = lora.merged(model, params["backbone"])
        finished = ProcessModel(
            model, {**params, "backbone": backbone}, config.length, tuple(config.separators),
            config.aggregate, config.marker, head,
        )  # fmt: skip
        process_reward.save(workdir, finished)
        with phases("eval"):
            quality = heldout_quality(config, inputs, text, mesh, finished)
    metrics = {"solutions": len(solutions), "rows": len(rows.tokens), **counts, **more, **quality}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def check(config: Any) -> heads.HeadConfig:
    """The head that the settings ask for.

    Raises:
      ValueError: a head without two classes, unknown labels or aggregate, or microbatches that
        don't divide.
    """
    head = heads.HeadConfig(**config.head)
    process_reward.check_head(head)
    if config.labels not in FIELDS or config.aggregate not in AGGREGATES:
        raise ValueError(
            f"labels={config.labels!r}, aggregate={config.aggregate!r}: expected one of "
            f"{', '.join(FIELDS)}, and one of {', '.join(AGGREGATES)}"
        )
    if config.batch_size % config.microbatches:
        raise ValueError(
            f"microbatches={config.microbatches} does not divide batch_size={config.batch_size}"
        )
    return head


def make_objective(model: Model):
    """The loss of rows with marked step ends."""

    def objective(params: Params, part: Marked):
        said = heads.read(model, params, part.batch, part.place_BM)
        return step_cross_entropy.loss(said, part.label_BMO[..., 0], part.weight_BMO[..., 0])

    return objective


def read_labelled(
    config: Any, inputs: Mapping[str, Artifact], data: Any
) -> tuple[list[Labelled], Counter[str]]:
    """The solutions of `data`, and how many have no labelled step.

    Raises:
      ValueError: an example without steps or labels, with more labels than steps, or with labels
        outside of 0 to 1.
    """
    found, counts = [], Counter(dropped_unlabelled=0)
    field = FIELDS[config.labels]
    for example in load_examples(data, inputs, config.seed):
        steps, labels = example.get("steps"), example.get(field)
        if not isinstance(steps, list) or not isinstance(labels, list):
            raise ValueError(
                f"example {example.get('id')!r} lacks steps or {field}, lists that "
                "stages/step_labels.py makes"
            )
        if len(labels) > len(steps) or not all(0 <= label <= 1 for label in labels):
            raise ValueError(
                f"example {example.get('id')!r}: {field}={labels} of {len(steps)} steps; expected "
                "at most one number a step, 0 (wrong) to 1 (right)"
            )
        if not labels:
            counts["dropped_unlabelled"] += 1
            continue
        hard = example.get("step_labels") or [float(label >= 0.5) for label in labels]
        found.append(Labelled(example, tuple(steps), tuple(labels), tuple(hard)))
    if not found:
        raise ValueError(f"none of the solutions has a labelled step: {dict(counts)}")
    return found, counts


def encode(config: Any, solution: Labelled, text: Text) -> Steps:
    """A solution as the model reads it, whole."""
    return encode_steps(*text, solution.example, solution.steps, marker=config.marker)


def pack_rows(
    config: Any, solutions: Sequence[Labelled], text: Text
) -> tuple[Rows, dict[str, int]]:
    """Packed rows, whose mask is 1 + label at the ends of labelled steps, and what was left out."""
    sequences, hidden = [], 0
    for solution in solutions:
        steps = encode(config, solution, text)
        mask = np.zeros(len(steps.tokens), np.float32)
        for end, label in zip(steps.ends, solution.labels, strict=False):
            if end >= 0:
                mask[end] = 1 + label
            hidden += end < 0
        sequences.append((steps.tokens, mask))
    rows, dropped = pack(sequences, config.length, text.tokenizer.pad_id)
    return rows, {"dropped_long": dropped, "dropped_step_ends": hidden}


def mark(rows: Rows) -> Marked:
    """All rows with their marks; the weights are 1, for `take` to divide."""
    most = int((rows.mask > 0).sum(axis=1).max())
    place = np.zeros((len(rows.tokens), most), np.int32)
    label, weight = np.zeros(place.shape, np.float32), np.zeros(place.shape, np.float32)
    for row, mask in enumerate(rows.mask):
        ends = np.flatnonzero(mask)
        place[row, : len(ends)] = ends
        label[row, : len(ends)] = mask[ends] - 1
        weight[row, : len(ends)] = 1
    arrays: Any = (rows.tokens, rows.positions, rows.segments, np.float32(rows.mask > 0))
    nothing = np.zeros_like(place)
    marks: Any = (place, nothing, label[..., None], weight[..., None], nothing)
    return Marked(Batch(*arrays), *marks)


def take(marks: Marked, chosen: Sequence[int]) -> Marked:
    """A batch of these rows; each of its steps weighs 1 / steps."""
    part = jax.tree.map(lambda x: x[chosen], marks)
    return part._replace(weight_BMO=part.weight_BMO / max(1.0, part.weight_BMO.sum()))


def heldout_quality(
    config: Any, inputs: Mapping[str, Artifact], text: Text, mesh: Mesh, finished: ProcessModel
) -> dict[str, Any]:
    """Step accuracy by domain, calibration and first errors on held-out solutions."""
    if not config.heldout:
        return {}
    solutions, _ = read_labelled(config, inputs, config.heldout)
    encoded = [encode(config, solution, text) for solution in solutions]
    chances = process_chances(finished, encoded, mesh)
    return quality(solutions, chances)


def quality(solutions: Sequence[Labelled], chances: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The metrics of chances of steps, one a step, NaN where a step can't be read."""
    accuracy, confidence, right, found, gold = [], [], [], [], []
    for solution, said in zip(solutions, chances, strict=True):
        seen = [(c, h) for c, h in zip(said, solution.hard, strict=False) if np.isfinite(c)]
        if not seen:
            continue
        chance, label = np.array([c for c, _ in seen]), np.array([h for _, h in seen]) > 0.5
        hit = (chance > 0.5) == label
        accuracy.append((domain(solution.example), float(hit.mean())))
        confidence += np.maximum(chance, 1 - chance).tolist()
        right += hit.tolist()
        whole = first_error(solution.hard) >= 0 or len(solution.hard) == len(solution.steps)
        if whole:  # else nobody knows whether a later step is wrong
            found.append(first_error([c for c, _ in seen]))
            gold.append(first_error([h for _, h in seen]))
    if not accuracy:
        return {}
    metrics: dict[str, Any] = {"step_accuracy": mean_stderr([value for _, value in accuracy])}
    for name in sorted({name for name, _ in accuracy}):
        values = [value for each, value in accuracy if each == name]
        metrics[f"step_accuracy/{name}"] = mean_stderr(values)
    return {**metrics, **first_error_metrics(found, gold), **calibration(confidence, right)}

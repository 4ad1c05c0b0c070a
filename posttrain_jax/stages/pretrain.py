"""Stage 0 of the cookbook, for the tiny preset: a base model from random weights.

Documents are made as they are needed, from (seed, block of steps). The curriculum's parts follow
each other in the order of their names: a part with `until` lasts until those kinds of probes
(data/corpus.py) are answered, one with `steps` for so many updates, and the last one decays the
learning rate. So the ability that everything later rests on is there when the base is done, at a
step that differs by seed; `max_steps` bounds the whole, and the metrics say how it went.
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
from jax.sharding import Mesh

from posttrain_jax import artifacts, optimizers, train_state
from posttrain_jax.api import Artifact, Model, Params
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.data import corpus
from posttrain_jax.data.loader import row_batch
from posttrain_jax.data.pack import Rows, pack
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.losses import sft as cross_entropy
from posttrain_jax.mesh import batch_shards, check_batch, shard_rows
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.models import find_config, make_model
from posttrain_jax.policy import open_mesh, open_text, save_policy, stage_title
from posttrain_jax.stages.sft import weigh

DEFAULTS = {
    "model": ...,
    "model_options": {},
    "curriculum": {},
    "length": 64,
    "batch_size": 32,
    "microbatches": 1,
    "max_steps": ...,
    "check_every": 25,
    "stop_at": 0.97,
    "probes": 540,
    "lr": ...,
    "lr_end_ratio": 0.1,
    "warmup": 10,
    "optimizer": {},
    "save_every": 100,
}


class Place(NamedTuple):
    """Where a run is in its curriculum.

    Attributes:
      part: the number of the current part.
      since: the step at which it began.
    """

    part: int = 0
    since: int = 0


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train `config.model` from random weights through the curriculum."""
    del inputs
    mesh, text = open_mesh(config), open_text(config)
    check_batch(mesh, "batch_size", config.batch_size)
    check_curriculum(config)
    size = {"vocab_size": text.tokenizer.vocab_size, "pad_id": text.tokenizer.pad_id}
    model = make_model(find_config(config.model, **size, **config.model_options))
    with jax.set_mesh(mesh):
        params, phases, metrics = train(config, workdir, mesh, model, text.tokenizer)
        save_policy(workdir, model, params)
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def check_curriculum(config: Any) -> None:
    """Raise ValueError for a part that never ends, or a last part without a number of steps."""
    for name, part in sorted(config.curriculum.items()):
        if ("until" in part) == ("steps" in part):
            raise ValueError(f"curriculum.{name} needs one of until and steps; got {list(part)}")
        if unknown := set(part.get("until", ())) - set(corpus.PROBE_KINDS):
            raise ValueError(
                f"curriculum.{name}.until names {sorted(unknown)}; the kinds of probes are "
                f"{corpus.PROBE_KINDS}"
            )
    if not config.curriculum or "steps" not in config.curriculum[max(config.curriculum)]:
        raise ValueError("the last part of the curriculum needs steps, over which the rate decays")


def train(config: Any, workdir: Path, mesh: Mesh, model: Model, tokenizer: Tokenizer):
    """The loop -> (parameters, seconds by phase, metrics)."""
    parts = [config.curriculum[name] for name in sorted(config.curriculum)]
    questions = encode_probes(config, tokenizer)
    checkpoints = Checkpoints(workdir, config.save_every)
    optimizer = optimizers.make_optimizer(**config.optimizer)
    update = train_state.make_update(
        model,
        optimizer,
        cross_entropy.loss,
        microbatches=config.microbatches,
        view=train_state.linear_out,
    )
    state = train_state.init_state(train_state.init_params(model, mesh, config.seed), optimizer)
    step, state, meta = checkpoints.restore(state) or (0, state, {})
    first, place = step, Place(*meta.get("place", ()))
    phases, last = PhaseTimer(meta.get("phases")), meta.get("last", {})
    total = config.max_steps + parts[-1]["steps"]
    with MetricLogger(workdir, total, stage_title(workdir), step) as log:
        rows = None
        while place.part < len(parts):
            begun, part = time.monotonic(), parts[place.part]
            with phases("data"):
                offset = (step - place.since) % config.check_every
                if rows is None or offset == 0:
                    rows = document_rows(config, tokenizer, part["mix"], step - offset)
                chosen = range(offset * config.batch_size, (offset + 1) * config.batch_size)
                batch = row_batch(mesh, rows, list(chosen))
            with phases("compile" if step == first else "update"):
                lr = rate(config, parts, place, step)
                batch = weigh(batch, "token_mean_global", config.microbatches)
                state, metrics = update(state, batch, jnp.float32(lr))
                last["loss"] = float(metrics["loss"])
            step += 1
            speed = config.batch_size * config.length / (time.monotonic() - begun)
            row = {**metrics, "learning_rate": lr, "tokens_per_second": speed}
            if "until" in part and (step - place.since) % config.check_every == 0:
                with phases("eval"):
                    found = answer_probes(model, state.params, questions, mesh)
                row, last = row | found, last | found
            following = advance(config, parts, place, step, last)
            if following != place:
                log.note(f"part {place.part + 1} of {len(parts)} ends at step {step}")
                place, rows = following, None
            log(step, row)
            meta = {"place": list(place), "phases": phases.seconds, "last": last}
            checkpoints.after(step, state, meta)
    checkpoints.close()
    with phases("eval"):
        last |= answer_probes(model, state.params, questions, mesh)
    return state.params, phases, {**last, "steps": step, "skipped": int(state.skipped)}


def advance(config: Any, parts, place: Place, step: int, found: Mapping[str, float]) -> Place:
    """The place after a step: the next part once this one is over."""
    part, done = parts[place.part], step - place.since
    if "steps" in part:
        over = done >= part["steps"]
    else:
        checked = done % config.check_every == 0
        over = checked and corpus.is_learnt(found, part["until"], config.stop_at)
        if step >= config.max_steps:
            return Place(len(parts) - 1, step)
    return Place(place.part + 1, step) if over else place


def rate(config: Any, parts, place: Place, step: int) -> float:
    """Warm-up, then constant; linear down to lr * lr_end_ratio in the last part."""
    if place.part < len(parts) - 1:
        return optimizers.learning_rate(
            step, peak=config.lr, total=config.max_steps, warmup=config.warmup
        )
    return optimizers.learning_rate(
        step - place.since, peak=config.lr, total=parts[-1]["steps"], schedule="linear",
        end_ratio=config.lr_end_ratio,
    )  # fmt: skip


def document_rows(config: Any, tokenizer: Tokenizer, mix: Mapping[str, float], step: int) -> Rows:
    """Packed rows for the `check_every` steps from `step`, made from (seed, step, mix) alone."""
    need = config.check_every * config.batch_size
    seed = config.seed * 1_000_003 + step
    documents = corpus.stream(seed, dict(mix))
    encoded, room = [], 0
    while room < need * config.length:
        tokens = tokenizer.encode(next(documents))
        encoded.append((tokens, [True] * len(tokens)))
        room += len(tokens)
    rows, _ = pack(encoded, config.length, tokenizer.pad_id)
    order = np.random.default_rng(seed).permutation(len(rows.tokens))[:need]
    return Rows(*(array[order] for array in rows))


def encode_probes(config: Any, tokenizer: Tokenizer):
    """The probes, their prefixes [n, length] right-padded, and (last place, next token) [n, 2]."""
    probes = corpus.probes(config.seed, config.probes)
    tokens = np.full((len(probes), config.length), tokenizer.pad_id, np.int32)
    places = np.zeros((len(probes), 2), np.int32)
    for row, probe in enumerate(probes):
        prefix = tokenizer.encode(probe.prefix)
        tokens[row, : len(prefix)] = prefix
        whole = tokenizer.encode(probe.prefix + probe.target)
        places[row] = len(prefix) - 1, whole[len(prefix)]
    return probes, tokens, places


def answer_probes(model: Model, params: Params, questions, mesh: Mesh) -> dict[str, float]:
    """The share of each group's probes whose likeliest next token is the right one."""
    probes, tokens, places = questions
    pad = ((0, -len(probes) % batch_shards(mesh)), (0, 0))
    placed = shard_rows(mesh, (np.pad(tokens, pad), np.pad(places, pad)))
    right = np.asarray(_right(model, params, *placed))[: len(probes)]
    return {k: round(v, 4) for k, v in corpus.probe_accuracy(probes, right.tolist()).items()}


@functools.partial(jax.jit, static_argnames="model", out_shardings=jax.sharding.PartitionSpec())
def _right(model: Model, params: Params, tokens_BT, places_B2):
    """Whether the likeliest token after place [:, 0] is [:, 1]; replicated on all hosts."""
    length = tokens_BT.shape[1]
    place_BT = jnp.broadcast_to(jnp.arange(length), tokens_BT.shape)
    segments = (place_BT <= places_B2[:, :1]).astype(jnp.int32)
    hidden, _ = model.apply(params, tokens_BT, positions_BT=place_BT, segments_BT=segments)
    last = jnp.take_along_axis(hidden, places_B2[:, :1, None], axis=1)[:, 0]
    return jnp.argmax(model.logits(params, last), axis=-1) == places_B2[:, 1]

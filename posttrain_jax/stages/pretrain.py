"""Stage 0 of the cookbook, for the tiny preset: a base model from random weights.

Documents are made as they are needed, from (seed, block of steps). Training does not stop at a
fixed step: the ability that everything later rests on (looking an operation up by its label) comes
in one sudden transition, at a step that differs by seed. So the loss decays only after the probes
of data/corpus.py are answered, or `max_steps` is reached; which of the two is in the metrics.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax import artifacts, train_state
from posttrain_jax.api import Artifact, Model, Params
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.data import corpus
from posttrain_jax.data.loader import row_batch
from posttrain_jax.data.pack import Rows, pack
from posttrain_jax.losses import sft as cross_entropy
from posttrain_jax.mesh import check_batch, shard_rows
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.models import find_config, make_model
from posttrain_jax.policy import open_mesh, open_text, save_policy, stage_title
from posttrain_jax.stages.sft import weigh

DEFAULTS = {
    "model": ...,
    "model_options": {},
    "mix": {},
    "length": 64,
    "batch_size": 32,
    "microbatches": 1,
    "max_steps": ...,
    "check_every": 50,
    "stop_at": 0.97,
    "probes": 192,
    "cooldown": 50,
    "lr": ...,
    "lr_end_ratio": 0.1,
    "warmup": 10,
    "optimizer": {},
    "save_every": 100,
}
BLOCK = 50
"""Steps whose documents are made and packed together."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train `config.model` from random weights until its probes are answered."""
    del inputs
    mesh, text = open_mesh(config), open_text(config)
    check_batch(mesh, "batch_size", config.batch_size)
    size = {"vocab_size": text.tokenizer.vocab_size, "pad_id": text.tokenizer.pad_id}
    model = make_model(find_config(config.model, **size, **config.model_options))
    questions = encode_probes(config, text.tokenizer)
    checkpoints = Checkpoints(workdir, config.save_every)
    optimizer = train_state.make_optimizer(**config.optimizer)
    update = train_state.make_update(
        model, optimizer, cross_entropy.loss, microbatches=config.microbatches
    )
    with jax.set_mesh(mesh):
        params = train_state.init_params(model, mesh, config.seed)
        state = train_state.init_state(params, optimizer)
        start, state, meta = checkpoints.restore(state) or (0, state, {})
        phases, decay_from = PhaseTimer(meta.get("phases")), meta.get("decay_from")
        found = meta.get("found", {})
        total = config.max_steps + config.cooldown
        with MetricLogger(workdir, total, stage_title(workdir), start) as log:
            step, block = start, None
            while decay_from is None or step < decay_from + config.cooldown:
                begun = time.monotonic()
                with phases("data"):
                    if block is None or step % BLOCK == 0:
                        block = document_rows(config, text.tokenizer, step // BLOCK)
                    batch = row_batch(mesh, block, block_rows(config, step))
                with phases("compile" if step == start else "update"):
                    lr = rate(config, step, decay_from)
                    state, metrics = update(
                        state, weigh(batch, "token_mean_global", 1), jnp.float32(lr)
                    )
                    loss = float(metrics["loss"])
                step += 1
                speed = config.batch_size * config.length / (time.monotonic() - begun)
                row = {**metrics, "learning_rate": lr, "tokens_per_second": speed}
                if decay_from is None and step % config.check_every == 0:
                    with phases("eval"):
                        found = answer_probes(model, state.params, questions, mesh)
                    row |= found
                    if min(found.values()) >= config.stop_at or step >= config.max_steps:
                        decay_from = step
                        log.note(f"probes {found} at step {step}: decaying to the end")
                log(step, row)
                checkpoints.after(
                    step, state,
                    {"decay_from": decay_from, "found": found, "phases": phases.seconds},
                )  # fmt: skip
        checkpoints.close()
        save_policy(workdir, model, state.params)
    passed = min(found.values()) >= config.stop_at
    return artifacts.finish(
        workdir,
        metrics={"loss": loss, "steps": step, "criterion_met": passed, **found},
        phases=phases.seconds,
    )


def rate(config: Any, step: int, decay_from: int | None) -> float:
    """Warm-up, then constant, then linear down to lr * lr_end_ratio once the decay began."""
    if decay_from is None:
        return train_state.learning_rate(
            step, peak=config.lr, total=config.max_steps, warmup=config.warmup
        )
    return train_state.learning_rate(
        step - decay_from, peak=config.lr, total=config.cooldown, schedule="linear",
        end_ratio=config.lr_end_ratio,
    )  # fmt: skip


def document_rows(config: Any, tokenizer, block: int) -> Rows:
    """Packed rows for the steps of a block, made from (seed, block) alone."""
    need = BLOCK * config.batch_size
    seed = config.seed * 1_000_003 + block
    documents = corpus.stream(seed, dict(config.mix) or None)
    encoded, room = [], 0
    while room < need * config.length:
        tokens = tokenizer.encode(next(documents))
        encoded.append((tokens, [True] * len(tokens)))
        room += len(tokens)
    rows, _ = pack(encoded, config.length, tokenizer.pad_id)
    order = np.random.default_rng(seed).permutation(len(rows.tokens))[:need]
    return Rows(*(array[order] for array in rows))


def block_rows(config: Any, step: int) -> list[int]:
    """Which rows of its block a step trains on."""
    first = step % BLOCK * config.batch_size
    return list(range(first, first + config.batch_size))


def encode_probes(config: Any, tokenizer) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Probe prefixes by `kind/task`: tokens [n, length] right-padded, with their next token."""
    kinds: dict[str, list[tuple[list[int], int]]] = {}
    for probe in corpus.probes(config.seed, config.probes):
        prefix = tokenizer.encode(probe.prefix)
        after = tokenizer.encode(probe.prefix + probe.target)
        kinds.setdefault(f"{probe.kind}/{probe.task}", []).append((prefix, after[len(prefix)]))
    result = {}
    for kind, pairs in kinds.items():
        tokens = np.full((len(pairs), config.length), tokenizer.pad_id, np.int32)
        for row, (prefix, _) in enumerate(pairs):
            tokens[row, : len(prefix)] = prefix
        places = np.array([[len(prefix) - 1, target] for prefix, target in pairs], np.int32)
        result[kind] = (tokens, places)
    return result


def answer_probes(model: Model, params: Params, questions, mesh) -> dict[str, float]:
    """The share of each kind's probes whose likeliest next token is the right one."""
    tokens = np.concatenate([tokens for tokens, _ in questions.values()])
    places = np.concatenate([places for _, places in questions.values()])
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    pad = -len(tokens) % ways
    padded = shard_rows(mesh, (np.pad(tokens, ((0, pad), (0, 0))), np.pad(places, ((0, pad), (0, 0)))))
    right = np.asarray(_right(model, params, *padded))[: len(tokens)]
    bounds = np.cumsum([len(t) for t, _ in questions.values()])[:-1]
    return {
        kind: round(float(part.mean()), 4)
        for kind, part in zip(questions, np.split(right, bounds), strict=True)
    }


@functools.partial(jax.jit, static_argnames="model", out_shardings=jax.sharding.PartitionSpec())
def _right(model: Model, params: Params, tokens_BT, places_B2):
    """Whether the likeliest token after place [:, 0] is [:, 1]; replicated on all hosts."""
    length = tokens_BT.shape[1]
    place_BT = jnp.broadcast_to(jnp.arange(length), tokens_BT.shape)
    segments = (place_BT <= places_B2[:, :1]).astype(jnp.int32)
    hidden, _ = model.apply(params, tokens_BT, positions_BT=place_BT, segments_BT=segments)
    last = jnp.take_along_axis(hidden, places_B2[:, :1, None], axis=1)[:, 0]
    return jnp.argmax(model.logits(params, last), axis=-1) == places_B2[:, 1]

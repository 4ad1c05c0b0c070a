"""Run by test_distill_devices.py on eight virtual devices: what one and eight of them distil."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from posttrain_jax import teacher, train_state
from posttrain_jax.api import Batch
from posttrain_jax.kernels import chunks, top_logprobs
from posttrain_jax.losses import distill
from posttrain_jax.mesh import local_rows, make_mesh, shard_rows
from posttrain_jax.models import ModelConfig, make_model

CONFIG = ModelConfig(
    vocab_size=32, layers=1, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, max_length=32,
    pad_id=0, tied=False,
)  # fmt: skip
KS = (3, 20)  # of two parts of a vocabulary of 32, the second is more than either has
MOVES = re.compile(r"(?:f|s)32\[([\d,]+)\]\S* all-gather\(")


def random_batch(mesh):
    """Eight rows, the first places without weight."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 32, (8, 12)).astype(np.int32)
    positions = np.tile(np.arange(12, dtype=np.int32), (8, 1))
    weight = np.float32((positions > 2) & (rng.random((8, 12)) < 0.8)) / 50
    return shard_rows(mesh, Batch(tokens, positions, np.ones_like(tokens), weight))


def run(sizes, devices):
    """The teacher's tokens, and the student after an update towards them, for each k."""
    mesh, model = make_mesh(sizes, devices), make_model(CONFIG)
    descent, found = optax.trace(decay=0.0), {}
    with jax.set_mesh(mesh):
        teaching = teacher.TeacherModel(model, train_state.init_params(model, mesh, 1), 32)
        for k in KS:
            batch = teacher.annotate(teaching, random_batch(mesh), k, start=2, temperature=1.3)
            assert batch.teacher is not None
            update = train_state.make_update(
                model, descent, functools.partial(distill.loss, divergence="reverse"),
                microbatches=2, start=2, temperature=1.3,
            )  # fmt: skip
            state = train_state.init_state(train_state.init_params(model, mesh, 0), descent)
            state, metrics = update(state, batch, jnp.float32(3.0))
            found[str(k)] = {
                "tokens": local_rows(batch.teacher.tokens_BTJ).tolist(),
                "logp": local_rows(batch.teacher.logp_BTJ).tolist(),
                "metrics": {name: float(value) for name, value in metrics.items()},
                "norms": [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(state.params)],
            }
    return found


def moved(mesh):
    """The shapes that devices gather in a search for the likeliest 4 of 1,024 tokens."""
    chunks.CHUNKS = {"cpu": (4096, 1)}
    with jax.set_mesh(mesh):
        hidden = shard_rows(mesh, np.zeros((8, 64, 16), np.float32))
        head = jax.device_put(
            np.zeros((1024, 16), np.float32),
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("tensor", "fsdp")),
        )
        program = jax.jit(lambda h, w: top_logprobs(h, w, 4)).lower(hidden, head).compile()
    return [[int(n) for n in shape.split(",")] for shape in MOVES.findall(program.as_text())]


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    eight = {"fsdp": 4, "tensor": 2}
    print(json.dumps({
        "one": run({}, jax.devices()[:1]),
        "eight": run(eight, jax.devices()),
        "moved": moved(make_mesh(eight)),
    }))  # fmt: skip

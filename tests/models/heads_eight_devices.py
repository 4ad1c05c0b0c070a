"""Run by test_heads_on_eight_devices.py: prints what one and eight devices give for heads."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from posttrain_jax import head_training, reward_model, train_state, tree
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.marked import Group, Response, lay_out, packed
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.losses import listwise
from posttrain_jax.mesh import batch_shards, make_mesh, shard_rows
from posttrain_jax.models import ModelConfig, heads, make_model
from posttrain_jax.models.head_files import load_with_head, save_with_head
from posttrain_jax.policy import Text
from posttrain_jax.stages import reward_model as stage

GOLDEN = Path(__file__).parents[1] / "golden" / "heads" / "qwen2_reward"
CONFIG = ModelConfig(
    vocab_size=32, layers=1, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, max_length=32,
    pad_id=0, tied=False,
)  # fmt: skip


def update(model, mesh, params):
    """One step of descent on packed groups in two microbatches -> numbers of it."""
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(2, 32, rng.integers(1, 5)).astype(np.int32)  # noqa: E731
    groups = [
        Group(tuple(Response(draw(), 0, (label,)) for label in (1.0, 0.0, 1.0))) for _ in range(16)
    ]
    layout = packed(groups, [range(16)], 24, 8)
    assert layout.groups >= 2 and layout.rows == 8 and batch_shards(mesh) in (1, 4)
    descent = optax.trace(decay=0.0)
    objective = stage.make_objective(model, listwise, layout.members)
    run = head_training.make_update(objective, descent, microbatches=2, together=layout.together)
    state = train_state.init_state(params, descent)
    batch = shard_rows(mesh, lay_out(groups, layout, 0))
    values = jax.jit(heads.values, static_argnums=0)(model, params, batch.batch)
    state, metrics = run(state, batch, jnp.float32(1.0))
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "values": float(jnp.sum(jnp.abs(values))),
        "norms": [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(state.params)],
    }


def files(mesh, folder: Path, text):
    """A reward model, from its file into shards and back -> digests of the tensors."""
    found = reward_model.from_folder(GOLDEN, mesh)
    config = dataclasses.replace(found.model.config, pad_id=text.tokenizer.pad_id)
    save_with_head(folder, config, found.params, found.head, text.tokenizer)
    return tree.digest(load_with_head(folder).params), tree.digest(load_with_head(GOLDEN).params)


def run(sizes, devices, text):
    """All of it on one mesh."""
    mesh, model = make_mesh(sizes, devices), make_model(CONFIG)
    with jax.set_mesh(mesh):
        policy = train_state.init_params(model, mesh, seed=0)
        head = heads.HeadConfig(layers=2)
        params = reward_model.add_head(model, policy, mesh, 1, head)
        shards = {k: list(x.addressable_shards[0].data.shape) for k, x in params["head"].items()}
        born = tree.digest(params)
        folder = Path(sys.argv[1]) / str(len(devices))
        written, read = files(mesh, folder, text)
        return {
            "born": born, "shards": shards, "written": written, "read": read,
            **update(model, mesh, params),
        }  # fmt: skip


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    tokenizer = load_tokenizer("tiny")
    text = Text(tokenizer, load_template("tiny", tokenizer))
    print(json.dumps({
        "one": run({}, jax.devices()[:1], text),
        "eight": run({"fsdp": 4, "tensor": 2}, jax.devices(), text),
    }))  # fmt: skip

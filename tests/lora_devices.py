"""Run by test_lora_devices.py on eight virtual devices: adapters on one of them and on all."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax import optimizers, policy, train_state
from posttrain_jax.api import Batch
from posttrain_jax.losses import sft
from posttrain_jax.mesh import make_mesh, shard_rows
from posttrain_jax.models import ModelConfig, lora, make_model
from posttrain_jax.stages.sft import weigh

CONFIG = ModelConfig(
    vocab_size=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, tied=False
)
KINDS = {"lora": {}, "dora": {"dora": True}, "int8": {"base": "int8"}, "nf4": {"base": "nf4"}}


def losses(mesh, settings) -> list[float]:
    """Three updates of the adapters, and the loss of the merged model after them."""
    plain = make_model(CONFIG)
    model = lora.wrap(plain, lora.LoraConfig(2, **settings))
    with jax.set_mesh(mesh):
        weights = train_state.init_params(plain, mesh, 0)
        params, frozen = train_state.split(model, policy.add_adapters(model, weights, mesh, 1))
        optimizer = optimizers.make_optimizer()
        make = train_state.make_update
        update = make(model, optimizer, sft.loss, frozen=frozen, microbatches=2)
        state, found = train_state.init_state(params, optimizer), []
        homes = jax.tree.map(lambda x: x.sharding, state)
        for step in range(3):
            tokens = np.random.default_rng(step).integers(1, 32, (16, 10)).astype(np.int32)
            places = np.tile(np.arange(10, dtype=np.int32), (16, 1))
            batch = Batch(tokens, places, np.ones_like(tokens), np.float32(places > 0))
            batch = weigh(shard_rows(mesh, batch), "token_mean_global", 2)
            state, metrics = update(state, batch, jnp.float32(0.05))
            found.append(float(metrics["loss"]))
        same = lambda x, home: x.sharding.is_equivalent_to(home, x.ndim)  # noqa: E731
        assert all(jax.tree.leaves(jax.tree.map(same, state, homes)))
    return found


if __name__ == "__main__":
    eight, one = make_mesh({"fsdp": 4, "tensor": 2}), make_mesh(devices=jax.devices()[:1])
    found = {kind: (losses(one, s), losses(eight, s)) for kind, s in KINDS.items()}
    model = lora.wrap(make_model(CONFIG), lora.LoraConfig(2, base="nf4"))
    where = train_state.param_shardings(model, eight)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shards = jax.tree.map(lambda x, s: list(s.shard_shape(x.shape)), shapes, where)["layers"]
    names = ("q_lora_a", "q_lora_b", "o_lora_a", "o_lora_b", "down_lora_a")
    held = {"q": shards["q"].codes, "down": shards["down"].codes}
    print(json.dumps({"losses": found, "shards": {n: shards[n] for n in names} | held}))

"""Run by test_eight_devices.py on eight virtual devices: prints what one and eight of them give."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from posttrain_jax import optimizers, train_state, tree
from posttrain_jax.api import Batch
from posttrain_jax.losses import grpo, sft
from posttrain_jax.mesh import batch_shards, from_local_rows, local_rows, make_mesh, shard_rows
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.sharing import share_prompts
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.experience import Credit, Mix, assemble, take, to_batch
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.scoring import Scored
from posttrain_jax.stages.sft import weigh

CONFIG = ModelConfig(
    vocab_size=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, max_length=32,
    pad_id=0, tied=False,
)  # fmt: skip
PROMPT, NEW, GROUP = 5, 6, 4


def sft_losses(model, mesh, params):
    """Three updates on packed rows, two microbatches each -> (losses, whether no shard moved)."""
    optimizer = optimizers.make_optimizer(weight_decay=0.1)
    update = train_state.make_update(model, optimizer, sft.loss, microbatches=2)
    state, losses = train_state.init_state(params, optimizer), []
    homes = where(state)
    for step in range(3):
        rng = np.random.default_rng(step)
        tokens = rng.integers(1, 32, (8, 12)).astype(np.int32)
        lengths = rng.integers(1, 12, (8, 1))
        segments = np.where(np.arange(12) < lengths, 1, 2).astype(np.int32)
        positions = np.where(segments == 1, np.arange(12), np.arange(12) - lengths)
        mask = (positions > 0) & (rng.random((8, 12)) < 0.7)
        batch = Batch(tokens, positions.astype(np.int32), segments, np.float32(mask))
        batch = weigh(shard_rows(mesh, batch), "token_mean_global", 2)
        state, metrics = update(state, batch, jnp.float32(0.02))
        losses.append(float(metrics["loss"]))
    return losses, where(state) == homes


def where(arrays):
    """Which part of each array each device holds."""
    shards = [x.addressable_shards for x in jax.tree.leaves(arrays)]
    return [[(str(s.device), str(s.index)) for s in each] for each in shards]


def rollout_and_update(model, mesh, params):
    """A rollout of four prompts, rewards from its tokens, and one GRPO update."""
    rng = np.random.default_rng(9)
    segments = (np.arange(PROMPT) >= rng.integers(0, 4, (4, 1))).astype(np.int32)
    prompts = segments * rng.integers(2, 32, (4, PROMPT), np.int32)
    uids = from_local_rows(mesh, np.arange(16, dtype=np.uint32))
    asked = Asked(*shard_rows(mesh, (prompts, segments)), jax.random.key(3), uids)
    rules = Rules(Sampling(temperature=0.8, stop=(1, 2)), NEW, GROUP)
    rollout = sample(model, engine.for_sampling(params, model, mesh), asked, rules)
    tokens = local_rows(rollout.tokens_BT)
    rewards = (tokens[:, PROMPT:] % 3 == 0).sum(axis=1, keepdims=True).astype(np.float32)
    on, valid = np.ones((16, 1), bool), np.arange(16) != 5
    scored = Scored(*(from_local_rows(mesh, x) for x in (rewards, on, valid)))
    credit, mix = Credit(group_size=GROUP), Mix(jnp.ones(1), jnp.zeros(1))
    batch = to_batch(rollout, scored, truncated=False, credit=credit)
    batch, metrics = assemble(batch, rollout, scored, mix, credit=credit)
    shared = of_shared_prompts(model, params, batch)
    part = take(batch, np.random.default_rng(0).permutation(16), "seq_mean_token_mean", 2, None)
    logp = train_state.logprobs(model, params, part, start=PROMPT, temperature=0.8)
    part = part._replace(reference_logp_BT=logp - 0.1)
    descent = optax.trace(decay=0.0)  # linear in the gradient, so that its errors don't grow
    update = train_state.make_update(
        model, descent, functools.partial(grpo.loss, kl_coef=0.1), microbatches=2, start=PROMPT,
        temperature=0.8,
    )  # fmt: skip
    state, found = update(train_state.init_state(params, descent), part, jnp.float32(1.0))
    return {
        "tokens": tokens.tolist(),
        "reward": float(metrics["reward"]),
        "grpo": {name: float(value) for name, value in found.items()},
        "norms": [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(state.params)],
        "shared": shared,
    }


def of_shared_prompts(model, params, batch):
    """What an update sees and does where each prompt is read once, and how far that is from what
    it is where each row reads its own."""
    found = []
    for group in (1, GROUP):
        alike, descent = share_prompts(model, group, PROMPT), optax.trace(decay=0.0)
        logp = train_state.logprobs(alike, params, batch, start=PROMPT)
        update = train_state.make_update(alike, descent, grpo.loss, together=group, start=PROMPT)
        part = take(batch, np.arange(16), "token_mean_global", 1, None, group)
        state = train_state.init_state(jax.tree.map(jnp.copy, params), descent)
        state, _ = update(state, part, jnp.float32(1.0))
        found.append((logp, state.params))
    apart = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), *found)
    return {
        "apart": float(max(jax.tree.leaves(apart))),
        "moved": float(jnp.max(jnp.abs(found[1][1]["embed"] - params["embed"]))),
        "logp": float(jnp.sum(found[1][0])),
    }


def run(sizes, devices):
    """All of it on one mesh."""
    mesh, model = make_mesh(sizes, devices), make_model(CONFIG)
    with jax.set_mesh(mesh):
        params = train_state.init_params(model, mesh, seed=0)
        born = tree.digest(params)
        shards = {
            jax.tree_util.keystr(path, simple=True, separator="."): [
                list(x.addressable_shards[0].data.shape), x.sharding.is_fully_replicated
            ]
            for path, x in jax.tree.leaves_with_path(params)
        }  # fmt: skip
        found = rollout_and_update(model, mesh, jax.tree.map(jnp.copy, params))
        losses, stays = sft_losses(model, mesh, params)
    return {
        "born": born, "shards": shards, "sft": losses, "stays": stays,
        "ways": batch_shards(mesh), **found,
    }  # fmt: skip


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    results = {
        "one": run({}, jax.devices()[:1]),
        "eight": run({"fsdp": 4, "tensor": 2}, jax.devices()),
    }
    assert math.isfinite(results["eight"]["sft"][0])
    print(json.dumps(results))

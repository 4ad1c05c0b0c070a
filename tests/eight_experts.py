"""Run by test_eight_experts.py on eight virtual devices: a mixture of experts on several meshes."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from posttrain_jax import train_state
from posttrain_jax.api import Batch
from posttrain_jax.losses import sft
from posttrain_jax.mesh import local_rows, make_mesh, shard_rows
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.config import Experts, Latent
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.continuous import Sizes, sample_queue
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

CONFIG = ModelConfig(
    vocab_size=32, layers=2, width=16, heads=4, kv_heads=4, head_dim=4, ffn=24, max_length=32,
    pad_id=0, tied=False, latent=Latent(8, 8, 4, 6, 4),
    experts=Experts(8, 3, 12, shared=1, first_dense=1, router="sigmoid", scale=2.0, groups=4,
                    active_groups=2),
)  # fmt: skip
MESHES = {
    "fsdp 2, expert 4": {"fsdp": 2, "expert": 4},
    "fsdp 4, tensor 2": {"fsdp": 4, "tensor": 2},
}
SAMPLED = "fsdp 2, expert 4"
PROMPT, NEW, GROUP = 4, 5, 2


def sft_batch(mesh):
    """Packed rows with padding."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 32, (16, 10)).astype(np.int32)
    lengths = rng.integers(1, 10, (16, 1))
    segments = np.where(np.arange(10) < lengths, 1, (np.arange(10) < 9) * 2).astype(np.int32)
    positions = np.where(segments == 1, np.arange(10), np.arange(10) - lengths).astype(np.int32)
    bears = np.float32((positions > 0) & (segments > 0))
    weight = bears / bears.sum()
    return shard_rows(mesh, Batch(tokens, positions, segments, weight))


def rollout(model, mesh, params):
    """Two completions each of eight prompts of several lengths; on several devices also queued."""
    rng = np.random.default_rng(9)
    segments = (np.arange(PROMPT) >= rng.integers(0, 3, (8, 1))).astype(np.int32)
    prompts = segments * rng.integers(2, 32, (8, PROMPT), np.int32)
    uids = np.arange(16, dtype=np.uint32)[:, None]
    prompts, segments, uids = shard_rows(mesh, (prompts, segments, uids))
    asked = Asked(prompts, segments, jax.random.key(3), uids[:, 0])
    rules = Rules(Sampling(stop=(1, 2)), NEW, GROUP, record_experts=True)
    params = engine.for_sampling(params, model, mesh)
    made = sample(model, params, asked, rules)
    if mesh.size == 1:
        return made, made
    return made, sample_queue(model, params, asked, rules, Sizes(2, 4, 1, 1, 1))[0]


def replayed(model, mesh, params):
    """A rollout with its experts; the trainer's log-prob gap to it with them, and without."""
    made, queued = rollout(model, mesh, params)
    mask, gaps = local_rows(made.completion_mask_BT), []
    for experts in (made.experts_BTLA, None):
        weight = made.completion_mask_BT.astype(jnp.float32)
        batch = Batch(
            made.tokens_BT, made.positions_BT, made.segments_BT, weight, experts_BTLA=experts
        )  # fmt: skip
        logp = train_state.logprobs(model, params, batch, start=PROMPT)
        gaps.append(float(np.abs(local_rows(logp - made.model_logp_BT)[mask]).max()))
    return {
        "tokens": local_rows(made.tokens_BT).tolist(),
        "experts": local_rows(made.experts_BTLA).tolist(),
        "queued": [local_rows(x).tolist() for x in (queued.tokens_BT, queued.experts_BTLA)],
        "gaps": gaps,
    }


def collectives(text):
    """(kind, sizes of the result) of all collectives of a compiled program."""
    found = re.findall(r"= f32\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter)\(", text)
    return sorted({(kind, sizes) for sizes, kind in found})


def run(sizes, devices, sampled):
    """An update on one mesh, and a rollout where `sampled`."""
    mesh, model = make_mesh(sizes, devices), make_model(CONFIG)
    with jax.set_mesh(mesh):
        params = train_state.init_params(model, mesh, seed=0)
        found = replayed(model, mesh, params) if sampled else {}
        descent = optax.trace(decay=0.0)  # linear in the gradient, so that its errors don't grow
        update = train_state.make_update(model, descent, sft.loss, microbatches=2)
        given = (train_state.init_state(params, descent), sft_batch(mesh), jnp.float32(1.0), {})
        program = update.func.lower(*given).compile()
        state, metrics = program(*given)
        leaves = jax.tree.leaves_with_path(state.params)
    return {
        **found,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "params": {jax.tree_util.keystr(p): np.asarray(x).ravel().tolist() for p, x in leaves},
        "shard": list(state.params["layers"]["expert_gate"].addressable_shards[0].data.shape),
        "collectives": collectives(program.as_text()),
    }


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    every = jax.devices()
    print(json.dumps({
        "one": run({}, every[:1], True),
        **{name: run(sizes, every, name == SAMPLED) for name, sizes in MESHES.items()},
    }))  # fmt: skip

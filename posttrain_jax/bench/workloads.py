"""What `posttrain bench` times: one step of training or sampling, on full rows of random tokens.

Nothing is padded and nothing ends early, so that tokens a second are those of the work itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import advantages, optimizers, train_state
from posttrain_jax.api import Batch, Model, Params
from posttrain_jax.bench.flops import forward_flops
from posttrain_jax.losses import dpo, grpo, sft
from posttrain_jax.losses.common import aggregation_weights
from posttrain_jax.mesh import shard_rows
from posttrain_jax.rollout.engine import for_sampling
from posttrain_jax.rollout.sampler import Asked, Rules, sample
from posttrain_jax.rollout.sampling import Sampling

MICROBATCHES = 8
"""Of the GRPO update."""


class Sizes(NamedTuple):
    """How large a step is.

    Attributes:
      batch, seq: rows and tokens a row (SFT, DPO).
      masked: first tokens of a row that bear no loss, the prompt's.
      pairs: pairs of rows (DPO).
      prompts, group, prompt_len, max_new: of a rollout.
    """

    batch: int
    seq: int
    masked: int
    pairs: int
    prompts: int
    group: int
    prompt_len: int
    max_new: int


class Workload(NamedTuple):
    """One kind of step.

    Attributes:
      step: makes one, and returns arrays that are ready when it is done.
      tokens: what a step counts as, for tokens a second.
      rows: tokens that go through a matrix at once, for the rate of the feed-forward product.
      flops: what a step needs.
    """

    step: Callable[[], Any]
    tokens: int
    rows: int
    flops: float


def rows_of(model: Model, mesh: Mesh, rows: int, sizes: Sizes) -> Batch:
    """Full rows of random tokens, the first `sizes.masked` of each without weight."""
    vocabulary = model.config.vocab_size
    tokens = np.random.default_rng(0).integers(3, vocabulary, (rows, sizes.seq), np.int32)
    mask = np.tile((np.arange(sizes.seq) >= sizes.masked).astype(np.float32), (rows, 1))
    places = np.tile(np.arange(sizes.seq, dtype=np.int32), (rows, 1))
    return Batch(*shard_rows(mesh, (tokens, places, np.ones_like(places), mask / mask.sum())))


def _training(model: Model, params: Params, loss: Callable, **options):
    """(the update, held state)."""
    optimizer = optimizers.make_optimizer()
    update = train_state.make_update(model, optimizer, loss, **options)
    return update, [train_state.init_state(params, optimizer)]


def sft_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """One SFT update."""
    update, held = _training(model, params, sft.loss)
    batch = rows_of(model, mesh, sizes.batch, sizes)

    def step():
        held[0], metrics = update(held[0], batch, jnp.float32(1e-5))
        return metrics

    used = sizes.seq - max(1, sizes.masked)
    flops = 3 * sizes.batch * forward_flops(model.config, sizes.seq, head=used)
    tokens = sizes.batch * sizes.seq
    return Workload(step, tokens, tokens, flops)


def dpo_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """Reference log-probs and one DPO update."""
    rows = 2 * sizes.pairs
    reference = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(params)
    update, held = _training(model, params, dpo.loss)
    batch = rows_of(model, mesh, rows, sizes)
    weight = jnp.where(batch.weight_BT != 0, 1.0 / sizes.pairs, 0.0)
    batch = batch._replace(weight_BT=weight)

    def step():
        logp = train_state.logprobs(model, reference, batch)
        held[0], metrics = update(
            held[0], batch._replace(reference_logp_BT=logp), jnp.float32(1e-6)
        )
        return metrics

    used = sizes.seq - max(1, sizes.masked)
    flops = 4 * rows * forward_flops(model.config, sizes.seq, head=used)
    tokens = rows * sizes.seq
    return Workload(step, tokens, tokens, flops)


def _prompts(model: Model, mesh: Mesh, sizes: Sizes) -> tuple[Asked, Rules]:
    shape, vocabulary = (sizes.prompts, sizes.prompt_len), model.config.vocab_size
    tokens = np.random.default_rng(1).integers(3, vocabulary, shape, np.int32)
    uids = np.arange(sizes.prompts * sizes.group, dtype=np.uint32)
    tokens, segments, uids = shard_rows(mesh, (tokens, np.ones_like(tokens), uids))
    asked = Asked(tokens, segments, jax.random.key(0), uids)
    return asked, Rules(Sampling(), sizes.max_new, sizes.group)


def _rollout_flops(model: Model, sizes: Sizes) -> float:
    config, rows = model.config, sizes.prompts * sizes.group
    prefill = sizes.prompts * forward_flops(config, sizes.prompt_len, head=1)
    # The last token of a completion is sampled, and never goes into the model.
    decode = forward_flops(config, sizes.max_new - 1, before=sizes.prompt_len)
    return prefill + rows * decode


def sample_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """One rollout, from prompts to tokens."""
    placed, job = for_sampling(params, model, mesh), _prompts(model, mesh, sizes)
    rows = sizes.prompts * sizes.group
    flops = _rollout_flops(model, sizes)
    return Workload(lambda: sample(model, placed, *job), rows * sizes.max_new, rows, flops)


def grpo_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """Rollout, reference log-probs and one update in microbatches."""
    reference = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(params)
    loss = functools.partial(grpo.loss, kl_coef=0.04)
    start = sizes.prompt_len
    update, held = _training(model, params, loss, microbatches=MICROBATCHES, start=start)
    job = _prompts(model, mesh, sizes)

    def step():
        rollout = sample(model, for_sampling(held[0].params, model, mesh), *job)
        reward = jnp.mean(rollout.tokens_BT[:, start:] % 7 == 0, axis=1)
        advantage, _ = advantages.group_normalised(reward, sizes.group)
        mask = rollout.completion_mask_BT.astype(jnp.float32)
        batch = Batch(
            rollout.tokens_BT, rollout.positions_BT, rollout.segments_BT,
            aggregation_weights(mask, "token_mean_global"), advantage[:, None] * mask,
            rollout.behaviour_logp_BT,
        )  # fmt: skip
        logp = train_state.logprobs(model, reference, batch, start=start)
        held[0], metrics = update(
            held[0], batch._replace(reference_logp_BT=logp), jnp.float32(1e-6)
        )
        return metrics

    rows, length = sizes.prompts * sizes.group, sizes.prompt_len + sizes.max_new
    forward = forward_flops(model.config, length, head=sizes.max_new)
    flops = _rollout_flops(model, sizes) + 4 * rows * forward
    return Workload(step, rows * sizes.max_new, rows * length // MICROBATCHES, flops)


WORKLOADS = {"sft": sft_step, "dpo": dpo_step, "sample": sample_step, "grpo": grpo_step}

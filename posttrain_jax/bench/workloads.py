"""What `posttrain bench` times: one step of training or sampling, on full rows of random tokens.

Nothing is padded and nothing ends early, so that tokens a second are those of the work itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posttrain_jax import optimizers, reward_model, train_state
from posttrain_jax.api import Batch, Model, Params
from posttrain_jax.bench.flops import forward_flops
from posttrain_jax.data.preferences import Preferences, Side
from posttrain_jax.losses import dpo, sft
from posttrain_jax.mesh import shard_rows
from posttrain_jax.models import heads
from posttrain_jax.rollout.collect import Sampled, Setting
from posttrain_jax.rollout.engine import for_sampling
from posttrain_jax.rollout.experience import Mix
from posttrain_jax.rollout.prompts import NOTHING_DRAWN
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.scoring import Scored
from posttrain_jax.rollout.updates import begin, learn, prepare
from posttrain_jax.settings import defaults_of
from posttrain_jax.stages import preference, rl

MICROBATCHES = 8
"""Of the updates after a rollout."""


class Sizes(NamedTuple):
    """How large a step is.

    Attributes:
      batch, seq: rows and tokens a row (SFT, DPO).
      masked: first tokens of a row that bear no loss, the prompt's.
      pairs: pairs of rows (DPO).
      prompts, group, prompt_len, max_new: of a rollout.
      slots: sequences at once, where they come from a queue sixteen times as long.
      drafts: tokens that a step of the queue guesses of each.
      temperature: of the queue's sampling.
      shortest: tokens of the shortest prompt of the queue, lengths being uniform; 0: `prompt_len`.
    """

    batch: int
    seq: int
    masked: int
    pairs: int
    prompts: int
    group: int
    prompt_len: int
    max_new: int
    slots: int
    drafts: int = 0
    temperature: float = 1.0
    shortest: int = 0


class Workload(NamedTuple):
    """One kind of step.

    Attributes:
      step: makes one, and returns arrays that are ready when it is done.
      tokens: what a step counts as, for tokens a second.
      rows: tokens that go through a matrix at once, for the rate of the feed-forward product.
      flops: what a step needs.
      told: what a step's result says beside its time.
    """

    step: Callable[[], Any]
    tokens: int
    rows: int
    flops: float
    told: Callable[[Any], dict[str, float]] = lambda result: {}


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
    update, held = _training(model, params, sft.loss, view=train_state.linear_out)
    batch = rows_of(model, mesh, sizes.batch, sizes)

    def step():
        held[0], metrics = update(held[0], batch, jnp.float32(1e-5))
        return metrics

    used = sizes.seq - max(1, sizes.masked)
    flops = 3 * sizes.batch * forward_flops(model.config, sizes.seq, head=used)
    tokens = sizes.batch * sizes.seq
    return Workload(step, tokens, tokens, flops)


def dpo_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """One pass of the preference stage's loop, with a reference that is asked at every step."""
    config: Any = ConfigDict(
        defaults_of("preference") | {"length": sizes.seq, "pairs_per_step": sizes.pairs}
    )
    reference = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(params)
    view = preference.View(config, mesh, model, dpo, reference, 0)
    pairs = preference.Pairs(_pairs(model, sizes), None)
    chosen = range(sizes.pairs)
    layout = view.layout(pairs, [chosen], config.microbatches)
    update, held = _training(
        view.reader(layout), params, view.bound(layout), together=layout.together
    )

    def step():
        batch = view.batch(pairs, chosen, layout, sizes.pairs)
        held[0], metrics = update(held[0], batch, jnp.float32(1e-6))
        return metrics

    prompt, count = max(1, sizes.masked), 2 * sizes.pairs
    said = sizes.seq - prompt
    reading = sizes.pairs * forward_flops(model.config, prompt, head=0)
    reading += count * forward_flops(model.config, said, before=prompt, head=said)
    return Workload(step, count * sizes.seq, layout.rows * layout.length, 4 * reading)


def _pairs(model: Model, sizes: Sizes) -> Preferences:
    """Pairs of random responses to random prompts of `sizes.masked` tokens."""
    random, size = np.random.default_rng(0), (sizes.pairs, 2, sizes.seq)
    tokens = random.integers(3, model.config.vocab_size, size, np.int32)
    prompt = max(1, sizes.masked)
    tokens[:, 1, :prompt] = tokens[:, 0, :prompt]
    said = np.arange(sizes.seq) >= prompt
    side = lambda row: Side(row, said, np.zeros_like(said))  # noqa: E731
    return Preferences([(side(one), side(other)) for one, other in tokens], [], [], [])


def prompts_of(model: Model, mesh: Mesh, sizes: Sizes) -> tuple[Asked, Rules]:
    """A rollout of random prompts that all fill their width."""
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


def _reading_flops(model: Model, sizes: Sizes, head: int) -> float:
    """Of a forward pass over a rollout, each prompt once."""
    config, rows = model.config, sizes.prompts * sizes.group
    prompts = sizes.prompts * forward_flops(config, sizes.prompt_len, head=0)
    return prompts + rows * forward_flops(config, sizes.max_new, before=sizes.prompt_len, head=head)


def sample_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """One rollout, from prompts to tokens."""
    placed, job = for_sampling(params, model, mesh), prompts_of(model, mesh, sizes)
    rows = sizes.prompts * sizes.group
    flops = _rollout_flops(model, sizes)
    return Workload(lambda: sample(model, placed, *job), rows * sizes.max_new, rows, flops)


def _learning(
    model: Model, params: Params, mesh: Mesh, sizes: Sizes, value: Params | None = None, **settings
) -> Callable[[], Any]:
    """One pass of the RL stage's loop, but for prompts and verifiers: a reward is of tokens."""
    rows = sizes.prompts * sizes.group
    config = ConfigDict(defaults_of("rl") | {
        "seed": 0, "group_size": sizes.group, "rollout_size": rows, "batch_size": rows,
        "microbatches": MICROBATCHES, "prompt_length": sizes.prompt_len, "max_new": sizes.max_new,
        "steps": 1, "lr": 1e-6, "aggregation": "token_mean_global", **settings,
    })  # fmt: skip
    needs = frozenset({"value_BT"} if value is not None else ())
    nobody: Any = None  # reads or judges texts here
    setting = Setting(
        config, mesh, nobody, model, nobody, Sampling(), 1.0,
        rl.make_credit(config), Mix(jnp.ones(1), jnp.zeros(1)), needs,
        value=None if value is None else model,
    )  # fmt: skip
    updates, carried = begin(setting, params, value)
    held, job = [carried], prompts_of(model, mesh, sizes)

    @jax.jit
    def score(tokens_BT):
        reward_B = jnp.mean(tokens_BT[:, sizes.prompt_len :] % 7 == 0, axis=1)
        every = jnp.ones(rows, bool)
        return Scored(reward_B[:, None], every[:, None], every)

    def step():
        policy = for_sampling(held[0].policy.params, model, mesh)
        sampled = Sampled(sample(model, policy, *job), nobody, NOTHING_DRAWN)
        scored = score(sampled.rollout.tokens_BT)
        batch, _ = prepare(setting, held[0], sampled, scored)
        held[0], metrics, _ = learn(setting, updates, held[0], batch, 0)
        return metrics

    return step


def grpo_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """Rollout, reference log-probs and one update in microbatches."""
    step = _learning(model, params, mesh, sizes, loss_options={"kl_coef": 0.04})
    rows, length = sizes.prompts * sizes.group, sizes.prompt_len + sizes.max_new
    flops = _rollout_flops(model, sizes) + 4 * _reading_flops(model, sizes, head=sizes.max_new)
    return Workload(step, rows * sizes.max_new, rows * length // MICROBATCHES, flops)


def ppo_step(model: Model, params: Params, mesh: Mesh, sizes: Sizes) -> Workload:
    """Rollout, reference log-probs, values, one update of the policy and of a value model.

    The value model is as large as the policy and starts from it.
    """
    backbone = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(params)
    value = reward_model.add_head(model, backbone, mesh, 0, heads.VALUE)
    step = _learning(
        model, params, mesh, sizes, value, advantage={"name": "gae"}, loss="ppo",
        kl_in_reward={"coef": 0.05, "estimator": "k1", "log_bound": 40.0, "bound": 0.0},
    )  # fmt: skip
    rows, length = sizes.prompts * sizes.group, sizes.prompt_len + sizes.max_new
    both = sum(_reading_flops(model, sizes, head=head) for head in (sizes.max_new, 0))
    flops = _rollout_flops(model, sizes) + 4 * both
    return Workload(step, rows * sizes.max_new, rows * length // MICROBATCHES, flops)


WORKLOADS = {
    "sft": sft_step, "dpo": dpo_step, "sample": sample_step, "grpo": grpo_step, "ppo": ppo_step,
}  # fmt: skip

"""What a rollout teaches: it becomes a batch, and policy and value model are updated on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax import optimizers, registry, teacher, train_state, value_model
from posttrain_jax.api import Batch, Params, PolicyOut
from posttrain_jax.mesh import batch_shards
from posttrain_jax.models.sharing import share_prompts
from posttrain_jax.rollout.annotate import in_parts
from posttrain_jax.rollout.carry import Carry
from posttrain_jax.rollout.checks import samples_ahead, updates_a_rollout
from posttrain_jax.rollout.collect import Sampled, Setting
from posttrain_jax.rollout.experience import assemble, shuffled, take, to_batch, value_places
from posttrain_jax.rollout.scoring import Scored
from posttrain_jax.train_state import TrainState

copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))


class Carried(NamedTuple):
    """The arrays that go from one rollout to the next; all of a checkpoint.

    Attributes:
      value: of the value model, where it is one of its own.
      reference: the reference policy, where a KL to it is asked for.
      before: the policy before the updates on the latest rollout, where the rollout after that was
        sampled with it (`max_off_policy_steps=1`).
      left: what the next rollout goes on with (`carry_over`).
    """

    policy: TrainState
    value: TrainState | None = None
    reference: Params | None = None
    before: Params | None = None
    left: Carry | None = None

    @property
    def sampling(self) -> Params:
        """The trained parameters that the next rollout is sampled with."""
        return self.policy.params if self.before is None else self.before


class Updates(NamedTuple):
    """The jitted updates of the policy and of the value model, if it is one of its own."""

    policy: Callable
    value: Callable | None = None


def begin(setting: Setting, params: Params, value: Params | None) -> tuple[Updates, Carried]:
    """The updates, and the state before the first.

    Args:
      params: the trained parameters, with a value head if the policy has one.
      value: the value model's.
    """
    config, update_value, value_state = setting.config, None, None
    optimizer = optimizers.make_optimizer(**config.optimizer)
    update = make_update(setting, optimizer)
    if value is not None and setting.value is not None:
        other, together = config.value.optimizer or config.optimizer, rows_together(setting)
        other = optimizers.make_optimizer(**other)
        update_value = train_state.make_update(
            share_prompts(setting.value, together, config.prompt_length), other,
            make_value_loss(config.value), view=value_model.value_out,
            microbatches=config.microbatches, together=together, start=config.prompt_length,
        )  # fmt: skip
        value_state = train_state.init_state(value, other)
    referred = config.loss_options.get("kl_coef") or config.kl_in_reward.coef
    reference = copy(value_model.without_head(params)) if referred else None
    before = copy(params) if samples_ahead(config) else None
    policy = train_state.init_state(params, optimizer)
    return Updates(update, update_value), Carried(policy, value_state, reference, before)


def make_update(setting: Setting, optimizer):
    """The jitted update of the policy, with the stage's loss and its hyper-parameters."""
    config, together = setting.config, rows_together(setting)
    loss = registry.load("losses", config.loss).loss
    return train_state.make_update(
        share_prompts(setting.model, together, config.prompt_length), optimizer,
        functools.partial(loss, **config.loss_options),
        frozen=setting.frozen, microbatches=config.microbatches, together=together,
        start=config.prompt_length, temperature=setting.temperature,
    )  # fmt: skip


def rows_together(setting: Setting) -> int:
    """How many rows stay in one microbatch: groups, whose prompt is then read once, or 1.

    1 where minibatches are random rows of a rollout, or a microbatch of whole groups can't be
    spread over the mesh.
    """
    config = setting.config
    if config.batch_size != config.rollout_size:
        return 1
    return _group(setting, config.batch_size // config.microbatches)


def _group(setting: Setting, rows: int) -> int:
    size = setting.config.group_size
    return 1 if rows % (size * batch_shards(setting.mesh)) else size


def make_value_loss(settings: Any) -> Callable:
    """The loss of a value model: losses/value.py times `coef`, which decides what is clipped."""
    plain = functools.partial(registry.load("losses", "value").loss, **settings.loss_options)

    def loss(out: PolicyOut, batch: Batch):
        value, metrics = plain(out, batch)
        return settings.coef * value, metrics

    return loss


def prepare(
    setting: Setting, carried: Carried, sampled: Sampled, scored: Scored, greedy_P=None
) -> tuple[Batch, dict[str, Any]]:
    """A scored rollout as the batch to learn from, and device metrics of it.

    A teacher asked for the sampled tokens only (k = 0) adds to the advantages, else to the batch.
    """
    truncated = setting.sampling.truncated
    batch = to_batch(sampled.rollout, scored, truncated=truncated, credit=setting.credit)
    batch = annotate(setting, carried, batch)
    batch, metrics = assemble(
        batch, sampled.rollout, scored, setting.mix, greedy_P, credit=setting.credit
    )
    if setting.teacher is None or setting.config.teacher.k:
        return batch, metrics
    said_BT, _, more = teacher.sampled_kl(batch)
    return batch._replace(advantage_BT=batch.advantage_BT + said_BT, teacher=None), metrics | more


def annotate(setting: Setting, carried: Carried, batch: Batch) -> Batch:
    """What models say of the rollout before the first update on it.

    The reference policy, the policy itself, its values, a teacher.
    """
    config = setting.config
    parts, start = config.rollout_size // config.batch_size, config.prompt_length
    together = _group(setting, config.batch_size)
    alike = functools.partial(share_prompts, group=together, width=start)
    each = functools.partial(in_parts, parts=parts, together=together)
    model = alike(setting.model)
    logp = functools.partial(
        train_state.logprobs, model, start=start, temperature=setting.temperature
    )
    policy, more = setting.whole(carried.policy.params), {}
    if carried.reference is not None:
        reference, plain = setting.whole(carried.reference), batch._replace(experts_BTLA=None)
        more["reference_logp_BT"] = each(functools.partial(logp, reference), plain)
    if recomputes(config):
        more["proximal_logp_BT"] = each(functools.partial(logp, policy), batch)
    if "value_BT" in setting.needs:
        view, reader, params = train_state.policy_out, model, policy
        if setting.value is not None and carried.value is not None:
            view, reader, params = value_model.value_out, alike(setting.value), carried.value.params
        find = functools.partial(value_model.values, view, reader, params, start=start)
        more["value_BT"] = each(find, value_places(batch, config.advantage))
    if setting.teacher is not None:
        asked = setting.teacher._replace(model=alike(setting.teacher.model))
        find = functools.partial(
            teacher.likeliest, asked, k=config.teacher.k, start=start,
            temperature=setting.temperature,
        )  # fmt: skip
        more["teacher"] = each(find, batch)
    return batch._replace(**more)


def recomputes(config: Any) -> bool:
    """Whether the loss wants the policy's log-probs at the first update beside the sampler's."""
    asked = any(name.startswith("off_policy_") for name in config.loss_options)
    return bool(config.max_off_policy_steps) or asked


def minibatches(setting: Setting, batch: Batch, step: int) -> Iterator[tuple[int, Batch, Any]]:
    """(number of the update, minibatch, its rows) of all inner epochs, each in an order of its own.

    Args:
      step: the first update on this rollout.
    """
    config, number = setting.config, 0
    parts = config.rollout_size // config.batch_size
    for epoch in range(config.inner_epochs):
        order = shuffled(config.rollout_size, parts, config.seed, step + epoch * parts)
        for rows in order:
            yield number, taken(setting, batch, rows), rows
            number += 1


def taken(setting: Setting, batch: Batch, rows) -> Batch:
    """Some rows of a rollout's batch, with the weights of the stage's aggregation."""
    config = setting.config
    return take(
        batch, rows, config.aggregation, config.microbatches, config.aggregation_constant or None,
        rows_together(setting),
    )  # fmt: skip


def learn(
    setting: Setting, updates: Updates, carried: Carried, batch: Batch, step: int,
    controls: Mapping[str, Any] | None = None,
) -> tuple[Carried, dict[str, Any], list[Any]]:  # fmt: skip
    """All updates on a rollout -> (state, metrics, how many were skipped in all after each).

    Args:
      controls: of the policy's loss, see `train_state.make_update`.
    """
    config, metrics, skipped, rates = setting.config, {}, [], {}
    count, places = updates_a_rollout(config), value_places(batch, config.advantage)
    if samples_ahead(config):
        carried = carried._replace(before=copy(carried.policy.params))
    for number, part, rows in minibatches(setting, batch, step):
        rates["learning_rate"] = optimizers.scheduled(config, step + number, config.steps)
        lr = jnp.float32(rates["learning_rate"])
        policy, found = updates.policy(carried.policy, part, lr, **(controls or {}))
        carried = carried._replace(policy=policy)
        if updates.value is not None:
            peak = config.value.lr or None
            lr = jnp.float32(optimizers.scheduled(config, step + number, config.steps, peak))
            value, other = updates.value(carried.value, taken(setting, places, rows), lr)
            carried = carried._replace(value=value)
            found = found | of_value(other) | {"skipped": found["skipped"] + other["skipped"]}
        metrics = join(metrics, found, number, count)
        skipped.append(found["skipped"])
    if config.max_off_policy_steps:
        del metrics["max/logprob_gap"]  # to an older policy: not the sampler's error
    return carried, {**metrics, **rates, **(controls or {})}, skipped


def of_value(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of the value model's update, beside those of the policy's."""
    kept = {name: metrics[name] for name in metrics if name.startswith("value_")}
    return {**kept, "value_grad_norm": metrics["grad_norm"]}


def join(metrics: dict, found: dict, number: int, count: int) -> dict[str, Any]:
    """The updates' metrics, averaged over a rollout's.

    The log-prob gap is that of the first, the only one that is still on-policy.
    """
    joined = {k: metrics.get(k, 0.0) + v / count for k, v in found.items()}
    joined["skipped"] = found["skipped"]
    gap = found.get("max/logprob_gap")
    joined["max/logprob_gap"] = gap if number == 0 else metrics.get("max/logprob_gap")
    return joined

"""From a scored rollout to training batches: rewards, advantages, minibatches."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax import registry
from posttrain_jax.advantages import Told, group_normalised, kl_penalty, with_end
from posttrain_jax.api import Array, Batch, Rollout
from posttrain_jax.losses.common import aggregation_weights
from posttrain_jax.mesh import constrain
from posttrain_jax.rewards import Term
from posttrain_jax.rollout.scoring import Scored

Options = tuple[tuple[str, Any], ...]


class Mix(NamedTuple):
    """How the scores of the terms add up: sum of weight (score + offset)."""

    weights_W: Array
    offsets_W: Array


class Credit(NamedTuple):
    """How rewards become advantages; static.

    Attributes:
      estimator: a file of advantages/, and `options` of it.
      group_size: consecutive rows that answer one prompt.
      no_eos: the reward of a response that met the length limit, in place of what it scored; None:
        it keeps what it scored.
      mask_truncated: such a response bears no loss.
      kl: options of `advantages.kl_penalty`; empty: no KL in the reward.
    """

    estimator: str = "group"
    options: Options = ()
    group_size: int = 1
    no_eos: float | None = None
    mask_truncated: bool = False
    kl: Options = ()


def make_mix(terms: Sequence[Term]) -> Mix:
    """The weights and offsets of a recipe's terms."""
    numbers = np.array([(t.weight, t.offset) for t in terms], np.float32).reshape(-1, 2)
    return Mix(jnp.asarray(numbers[:, 0]), jnp.asarray(numbers[:, 1]))


def _valid(scored: Scored, finished_B: Array, credit: Credit) -> Array:
    return scored.valid_B & (finished_B if credit.mask_truncated else True)


def _rewards(scored: Scored, finished_B: Array, mix: Mix, credit: Credit) -> tuple[Array, Array]:
    """Each response's reward [B], and the terms that it is the weighted sum of [B, W]."""
    values_BW = jnp.where(scored.applies_BW, scored.rewards_BW + mix.offsets_W, 0.0)
    reward_B = jnp.sum(values_BW * mix.weights_W, axis=1)  # not a matmul: those are bf16 on TPU
    if credit.no_eos is not None:
        reward_B = jnp.where(finished_B, reward_B, credit.no_eos)
        share = credit.no_eos / jnp.sum(mix.weights_W)  # so that the terms still add up to it
        values_BW = jnp.where(finished_B[:, None], values_BW, share)
    return reward_B, values_BW


@functools.partial(jax.jit, static_argnames="credit")
def equal_rewards(scored: Scored, finished_B: Array, mix: Mix, credit: Credit) -> Array:
    """Whether a row's group has equal rewards, or one valid row at most -> [B]."""
    reward_B, _ = _rewards(scored, finished_B, mix, credit)
    valid_B = _valid(scored, finished_B, credit)
    _, equal_G = group_normalised(reward_B, credit.group_size, mask_B=valid_B)
    return constrain(jnp.repeat(equal_G, credit.group_size), "batch")


@functools.partial(jax.jit, static_argnames=("truncated", "credit"))
def to_batch(rollout: Rollout, scored: Scored, *, truncated: bool, credit: Credit) -> Batch:
    """A rollout as a batch whose weights are the 0/1 loss mask, without advantages yet.

    Args:
      truncated: the sampling distribution leaves tokens out, so the untempered model's log-probs
        are the behaviour's.
    """
    valid_B = _valid(scored, rollout.finished_B, credit)
    return Batch(
        tokens_BT=rollout.tokens_BT,
        positions_BT=rollout.positions_BT,
        segments_BT=rollout.segments_BT,
        weight_BT=(rollout.completion_mask_BT & valid_B[:, None]).astype(jnp.float32),
        behaviour_logp_BT=rollout.model_logp_BT if truncated else rollout.behaviour_logp_BT,
        experts_BTLA=rollout.experts_BTLA,
    )


def value_places(batch: Batch, options: Mapping[str, Any]) -> Batch:
    """The batch as a value model learns from it: the place of the reward has a value too.

    Args:
      batch: of `to_batch`.
      options: of the estimator, see advantages/gae.py.
    """
    if options.get("reward_place", "last") != "after":
        return batch
    return batch._replace(weight_BT=with_end(batch.weight_BT != 0).astype(jnp.float32))


@functools.partial(jax.jit, static_argnames="credit")
def assemble(
    batch: Batch, rollout: Rollout, scored: Scored, mix: Mix, greedy_P: Array | None = None, *,
    credit: Credit,
) -> tuple[Batch, dict[str, Any]]:  # fmt: skip
    """The batch with advantages and returns, and what is worth knowing of the rollout.

    Args:
      batch: of `to_batch`, with the values and reference log-probs that the estimator needs.
      greedy_P: the reward of each prompt's greedy response.

    Returns:
      also device metrics; `terms_W` is each term's mean over the samples that it applies to (NaN:
      none).
    """
    mask_BT, finished_B = rollout.completion_mask_BT, rollout.finished_B
    length_B = jnp.sum(rollout.response_mask_BT, axis=1)
    valid_B = _valid(scored, finished_B, credit)
    reward_B, values_BW = _rewards(scored, finished_B, mix, credit)
    kl_BT = penalty(batch, mask_BT, credit)
    told = Told(
        reward_B, values_BW, mix.weights_W, valid_B, mask_BT, credit.group_size, kl_BT,
        batch.value_BT, None if greedy_P is None else jnp.repeat(greedy_P, credit.group_size),
    )  # fmt: skip
    estimator = registry.load("advantages", credit.estimator)
    advantage_BT, return_BT, found = estimator.advantage(told, **dict(credit.options))
    counted_BW = scored.applies_BW & scored.valid_B[:, None]
    scores_BW = jnp.where(scored.applies_BW, scored.rewards_BW, 0.0)
    metrics = {
        "reward": jnp.mean(reward_B),
        "terms_W": jnp.sum(scores_BW * counted_BW, axis=0) / jnp.sum(counted_BW, axis=0),
        "length": jnp.mean(length_B),
        "tokens": jnp.sum(length_B),
        "truncated": jnp.mean(~finished_B),
        "masked": jnp.mean(~valid_B),
        **found,
    }
    if kl_BT is not None:
        metrics["kl_in_reward"] = jnp.mean(jnp.sum(kl_BT, axis=1))
    if greedy_P is not None:
        metrics["greedy_reward"] = jnp.mean(greedy_P)
    return batch._replace(advantage_BT=advantage_BT, return_BT=return_BT), metrics


def penalty(batch: Batch, mask_BT: Array, credit: Credit) -> Array | None:
    """What each token costs for its divergence from the reference, under the trainer's policy."""
    if not credit.kl:
        return None
    logp_BT = batch.behaviour_logp_BT
    if batch.proximal_logp_BT is not None:
        logp_BT = batch.proximal_logp_BT
    assert logp_BT is not None and batch.reference_logp_BT is not None
    mask_BT = mask_BT & (batch.weight_BT != 0)
    return kl_penalty(logp_BT, batch.reference_logp_BT, mask_BT, **dict(credit.kl))


@functools.partial(jax.jit, static_argnames="credit")
def total_rewards(scored: Scored, finished_B: Array, mix: Mix, credit: Credit) -> Array:
    """Each response's reward -> [B]; 0 where a verifier failed."""
    reward_B, _ = _rewards(scored, finished_B, mix, credit)
    return jnp.where(scored.valid_B, reward_B, 0.0)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def take(
    batch: Batch, rows, aggregation: str, microbatches: int, constant: float | None,
    together: int = 1,
) -> Batch:  # fmt: skip
    """A minibatch: the given rows, with the weights of its aggregation, a teacher's too."""
    part = jax.tree.map(lambda x: x[rows], batch)
    weight = aggregation_weights(
        part.weight_BT, aggregation, microbatches=microbatches, together=together, constant=constant
    )
    teacher = part.teacher
    if teacher is not None:
        teacher = teacher._replace(weight_BT=teacher.weight_BT * weight)
    return part._replace(weight_BT=weight, teacher=teacher)


def shuffled(rows: int, parts: int, seed: int, step: int) -> np.ndarray:
    """All rows in a random order, as `parts` equal minibatches; as they are where that is one."""
    if parts == 1:
        return np.arange(rows)[None]
    return np.random.default_rng([seed, step]).permutation(rows).reshape(parts, -1)

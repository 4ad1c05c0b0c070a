"""From a rollout to training batches: scores, rewards, advantages, minibatches."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import advantages
from posttrain_jax import reward_model as reward_models
from posttrain_jax.api import Batch, Rollout
from posttrain_jax.losses.common import aggregation_weights
from posttrain_jax.mesh import from_local_rows, local_rows, local_slice
from posttrain_jax.policy import Text
from posttrain_jax.rewards import Term, applies
from posttrain_jax.rollout import engine
from posttrain_jax.verifiers.pool import Pool


class Judges(NamedTuple):
    """Everything that scores a response: terms, the verifier pool, reward models by input role."""

    terms: tuple[Term, ...]
    pool: Pool
    models: Mapping[str, reward_models.RewardModel]


class Scored(NamedTuple):
    """A rollout's rewards on the mesh: scores and whether they apply [B, W], validity [B]."""

    rewards_BW: jax.Array
    applies_BW: jax.Array
    valid_B: jax.Array


class Texts(NamedTuple):
    """This host's responses and the examples they answer, in row order."""

    responses: list[str]
    examples: list[Mapping[str, Any]]


def score(
    judges: Judges,
    rollout: Rollout,
    prompts: engine.Prompts,
    group_size: int,
    step: int,
    text: Text,
    mesh: Mesh,
) -> tuple[Texts, Scored]:
    """Score a rollout; the verifiers run while the reward models do."""
    here = local_slice(rollout.tokens_BT)
    examples = [e for e in prompts.examples for _ in range(group_size)][here]
    texts = Texts(engine.responses(rollout, text.tokenizer), examples)
    waiting = judges.pool.submit(*texts)
    pairs = list(zip(examples, texts.responses, strict=True))
    columns = []
    for term in judges.terms:
        if term.reward_model:
            found = reward_models.score_local(judges.models[term.reward_model], pairs, text, mesh)
            columns.append(jax.nn.sigmoid(found) if term.transform == "sigmoid" else found)
    verdicts = waiting.result()
    verified_BW = from_local_rows(mesh, verdicts.rewards_BW)
    scored = Scored(
        jnp.concatenate([verified_BW, *(column[:, None] for column in columns)], axis=1),
        from_local_rows(mesh, applies(judges.terms, examples, step)),
        from_local_rows(mesh, verdicts.mask_B),
    )
    return texts, scored


@functools.partial(
    jax.jit, static_argnames=("group_size", "truncated", "mask_truncated", "options")
)
def assemble(
    rollout: Rollout,
    scored: Scored,
    weights_W: jax.Array,
    *,
    group_size: int,
    truncated: bool,
    mask_truncated: bool,
    options: tuple[tuple[str, Any], ...],
) -> tuple[Batch, dict[str, Any]]:
    """Rewards to advantages, rollout to batch, and what is worth knowing of both.

    Args:
      weights_W: the terms' weights.
      truncated: the sampling distribution leaves tokens out, so the untempered model's log-probs
        are the behaviour's.
      mask_truncated: samples that met the length limit bear no loss.
      options: of `advantages.group_normalised`.

    Returns:
      a batch whose weights are the 0/1 loss mask, and device metrics; `terms_W` is each term's
      mean over the samples that it applies to (NaN: none).
    """
    mask_BT = rollout.completion_mask_BT
    length_B = jnp.sum(mask_BT, axis=1)
    valid_B = scored.valid_B & (rollout.finished_B if mask_truncated else True)
    values_BW = jnp.where(scored.applies_BW, scored.rewards_BW, 0.0)
    reward_B = jnp.sum(values_BW * weights_W, axis=1)  # not a matmul: those are bf16 on TPU
    advantage_B, equal_G = advantages.group_normalised(
        reward_B, group_size, mask_B=valid_B, **dict(options)
    )
    batch = Batch(
        tokens_BT=rollout.tokens_BT,
        positions_BT=rollout.positions_BT,
        segments_BT=rollout.segments_BT,
        weight_BT=(mask_BT & valid_B[:, None]).astype(jnp.float32),
        advantage_BT=jnp.broadcast_to(advantage_B[:, None], mask_BT.shape),
        behaviour_logp_BT=rollout.model_logp_BT if truncated else rollout.behaviour_logp_BT,
    )
    counted_BW = scored.applies_BW & scored.valid_B[:, None]
    metrics = {
        "reward": jnp.mean(reward_B),
        "terms_W": jnp.sum(values_BW * counted_BW, axis=0) / jnp.sum(counted_BW, axis=0),
        "length": jnp.mean(length_B),
        "tokens": jnp.sum(length_B),
        "truncated": jnp.mean(~rollout.finished_B),
        "masked": jnp.mean(~valid_B),
        "all_equal_groups": jnp.mean(equal_G),
    }
    return batch, metrics


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def take(batch: Batch, rows, aggregation: str, microbatches: int, constant: float | None) -> Batch:
    """A minibatch: the given rows, with the weights of its aggregation."""
    part = jax.tree.map(lambda x: x[rows], batch)
    weight = aggregation_weights(
        part.weight_BT, aggregation, microbatches=microbatches, constant=constant
    )
    return part._replace(weight_BT=weight)


def shuffled(rows: int, parts: int, seed: int, step: int) -> np.ndarray:
    """All rows in a random order, as `parts` equal minibatches."""
    return np.random.default_rng([seed, step]).permutation(rows).reshape(parts, -1)


def shown(texts: Texts, scored: Scored, terms: Sequence[Term], rollout: Rollout, count: int):
    """Some of this host's rollouts with their reward parts, for the report."""
    rewards, on = local_rows(scored.rewards_BW), local_rows(scored.applies_BW)
    finished = local_rows(rollout.finished_B)
    rows = []
    for i in range(0, len(texts.responses), max(1, len(texts.responses) // count)):
        parts = {t.name: float(r) for t, r, o in zip(terms, rewards[i], on[i], strict=True) if o}
        example = texts.examples[i]
        rows.append(
            {
                "prompt": example["prompt"],
                "response": texts.responses[i],
                "reward": sum(t.weight * parts.get(t.name, 0.0) for t in terms),
                "rewards": parts,
                "example_id": example.get("id", ""),
                "finished": bool(finished[i]),
            }
        )
    return rows

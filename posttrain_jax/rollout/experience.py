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
from posttrain_jax.api import Batch, Rollout
from posttrain_jax.losses.common import aggregation_weights
from posttrain_jax.mesh import from_local_rows, local_rows
from posttrain_jax.rewards import Term, applies
from posttrain_jax.rollout import engine
from posttrain_jax.verifiers.judging.judge import Judge, ask
from posttrain_jax.verifiers.pool import Part, Pool, Verdicts


class Judges(NamedTuple):
    """Everything that scores a response: terms, the verifier pool, judge models by term."""

    terms: tuple[Term, ...]
    pool: Pool
    models: Mapping[str, Judge]


class Scored(NamedTuple):
    """A rollout's rewards on the mesh: scores and whether they apply [B, W], validity [B]."""

    rewards_BW: jax.Array
    applies_BW: jax.Array
    valid_B: jax.Array


class Judging:
    """The verifiers at work on a rollout while it is being made.

    Called with the sequences that have ended (`engine.stream`); each example that a verifier sees
    tells the completion's length in tokens and whether it was finished.

    Args:
      examples: what this host's rows answer, in row order.
    """

    def __init__(self, pool: Pool, examples: Sequence[Mapping[str, Any]]):
        self._pool = pool
        self._parts: list[Part] = []
        self.examples = examples
        self.responses = [""] * len(examples)

    def __call__(self, ended: engine.Ended) -> None:
        told = []
        for row, response, length, finished in zip(*ended, strict=True):
            self.responses[row] = response
            about = {"completion_length": int(length), "finished": bool(finished)}
            told.append({**self.examples[row], **about})
        self._parts.append((ended.rows, self._pool.submit(ended.responses, told)))

    def verdicts(self) -> Verdicts:
        """The verdicts on all rows, in their order."""
        return self._pool.gather(self._parts)


def score(judges: Judges, judging: Judging, step: int, mesh: Mesh) -> Scored:
    """Score a rollout; the judges work while the last verdicts arrive.

    A judge sees the samples that its term applies to.

    Raises:
      RuntimeError: verifiers or a judge failed on too many samples.
    """
    on_BW = applies(judges.terms, judging.examples, step)
    columns, sound_B = [], np.ones(len(judging.responses), bool)
    for number, term in enumerate(judges.terms):
        if term.name in judges.models:
            scores, sound = ask(
                judges.models[term.name], term.name, judging.examples, judging.responses,
                on_BW[:, number],
            )  # fmt: skip
            columns.append(scores)
            sound_B &= sound
    verdicts = judging.verdicts()
    return Scored(
        from_local_rows(mesh, np.column_stack([verdicts.rewards_BW, *columns])),
        from_local_rows(mesh, on_BW),
        from_local_rows(mesh, verdicts.mask_B & sound_B),
    )


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
        experts_BTLA=rollout.experts_BTLA,
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


def shown(judging: Judging, scored: Scored, terms: Sequence[Term], rollout: Rollout, count: int):
    """Some of this host's rollouts with their reward parts, for the report."""
    rewards, on = local_rows(scored.rewards_BW), local_rows(scored.applies_BW)
    finished = local_rows(rollout.finished_B)
    rows = []
    for i in range(0, len(judging.responses), max(1, len(judging.responses) // count)):
        parts = {t.name: float(r) for t, r, o in zip(terms, rewards[i], on[i], strict=True) if o}
        example = judging.examples[i]
        rows.append(
            {
                "prompt": example["prompt"],
                "response": judging.responses[i],
                "reward": sum(t.weight * parts.get(t.name, 0.0) for t in terms),
                "rewards": parts,
                "example_id": example.get("id", ""),
                "finished": bool(finished[i]),
            }
        )
    return rows

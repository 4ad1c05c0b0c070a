"""A stage's rollouts: prompts drawn, responses sampled, and those that judge them at work.

With dynamic sampling (DAPO, arXiv 2503.14476, section 3.2) groups whose rewards are all equal give
their places to groups of further draws whose rewards are not, until none is left or as many as
`dynamic_sampling` draws were made; what is left is counted as any all-equal group. On several hosts
each fills the places of its own rows. Estimators that compare with a greedy response get one a
prompt. With `carry_over` so many groups of a rollout go on unfinished in the next (carry.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import tree, value_model
from posttrain_jax.api import Model, Params, Rollout
from posttrain_jax.mesh import constrain, from_local_rows, local_rows, local_slice, total
from posttrain_jax.models import lora
from posttrain_jax.policy import Text
from posttrain_jax.rollout import carry, engine
from posttrain_jax.rollout.carry import Carry
from posttrain_jax.rollout.experience import Credit, Mix, equal_rewards, total_rewards
from posttrain_jax.rollout.partners import Partners
from posttrain_jax.rollout.prompts import Drawn, PromptStream
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.scoring import Judges, Judging, Scored, score
from posttrain_jax.teacher import TeacherModel


class Setting(NamedTuple):
    """What stays the same over a stage.

    Attributes:
      temperature: of the log-probs that are compared. Where the sampling distribution is truncated
        they are those of the untempered model, else of the sampling distribution.
      needs: the fields of `Told` that the estimator asks for beside the rewards.
      frozen: the parameters that are not trained, if any; the reference policy has them too.
      value: the value model, where it is one of its own.
      teacher: whose student the policy is, if anyone's.
      partners: who answers the policy's calls or turns, if anyone does.
    """

    config: Any
    mesh: Mesh
    text: Text
    model: Model
    judges: Judges
    sampling: Sampling
    temperature: float
    credit: Credit
    mix: Mix
    needs: frozenset[str] = frozenset()
    frozen: Params | None = None
    value: Model | None = None
    teacher: TeacherModel | None = None
    partners: Partners | None = None

    def whole(self, params: Params) -> Params:
        """Trained parameters with the frozen ones."""
        return tree.join(self.frozen or {}, params)


class Sampled(NamedTuple):
    """A rollout and those who judge it.

    Attributes:
      drawn: how far the prompts are after it.
      greedy: the greedy rollout of the same prompts and its judging, where it is asked for.
      scored: the scores, where they are known already.
      metrics: of dynamic sampling, of what was carried over.
      left: what goes on in the next rollout, if anything does.
    """

    rollout: Rollout
    judging: Judging
    drawn: Drawn
    greedy: tuple[Rollout, Judging] | None = None
    scored: Scored | None = None
    metrics: dict[str, float] = {}  # noqa: RUF012  (never changed)
    left: Carry | None = None


def collect(
    setting: Setting, params: Params, stream: PromptStream, step: int, drawn: Drawn,
    left: Carry | None = None,
) -> Sampled:  # fmt: skip
    """The rollout that is learnt from at update `step`, sampled with these trained parameters.

    Args:
      left: what goes on from the one before.
    """
    config, judges, mesh = setting.config, setting.judges, setting.mesh
    policy = for_decoding(setting, params)
    if left is not None:
        return _go_on(setting, policy, stream, step, drawn, left)

    def draw(drawn: Drawn) -> Sampled:
        prompts, after = stream.draw(step, drawn)
        return roll_out(setting, policy, prompts, drawn)._replace(drawn=after)

    sampled = draw(drawn)
    if not config.dynamic_sampling:
        return sampled
    sampled = sampled._replace(scored=score(judges, sampled.judging, step, mesh))
    redraws, replaced = 0, 0
    while redraws < config.dynamic_sampling and _lacking(setting, sampled):
        other = draw(sampled.drawn)
        other = other._replace(scored=score(judges, other.judging, step, mesh))
        sampled, count = replace_equal(setting, sampled, other)
        redraws, replaced = redraws + 1, replaced + count
    return sampled._replace(metrics={"redraws": redraws, "replaced_groups": replaced})


def for_decoding(setting: Setting, params: Params) -> tuple[Model, Params]:
    """The policy as the sampler has it: whole, without a value head, adapters merged."""
    params = setting.whole(value_model.without_head(params))
    params = engine.for_sampling(params, setting.model, setting.mesh)
    return lora.for_decoding(setting.model, params)


def roll_out(
    setting: Setting, policy: tuple[Model, Params], prompts: engine.Prompts, drawn: Drawn
) -> Sampled:
    """A group of responses to each prompt; no other draw has their uids.

    The verifiers work on what has ended while the rest goes on.
    """
    first = drawn.draws * setting.config.rollout_size
    group = setting.config.group_size
    rollout, judging = _stream(setting, policy, prompts, setting.sampling, first, group)
    greedy = None
    if "greedy_B" in setting.needs:
        likeliest = setting.sampling._replace(temperature=0.0)
        greedy = _stream(setting, policy, prompts, likeliest, first, 1)
    return Sampled(rollout, judging, drawn, greedy)


def _stream(setting: Setting, policy, prompts, sampling: Sampling, first: int, group_size: int):
    job = _job(setting, prompts, sampling, first, group_size)
    examples = [e for e in prompts.examples for _ in range(group_size)]
    judging = Judging(setting.judges.pool, examples[local_slice(job.asked.uids_B)])
    (model, params), tokenizer = policy, setting.text.tokenizer
    rollout = engine.stream(model, params, job, tokenizer, judging, stretch=_stretch(setting))
    judging.sound_B = engine.sound(rollout)
    return jax.block_until_ready(rollout), judging


def _job(setting: Setting, prompts, sampling: Sampling, first: int, group_size: int) -> engine.Job:
    config = setting.config
    return engine.job(
        prompts, setting.mesh, setting.text.tokenizer, sampling=sampling, seed=config.seed,
        first_uid=first, group_size=group_size, max_new=config.max_new,
        record_experts=config.router_replay, slots=config.slots, drafts=config.drafts,
        cache_dtype=config.cache_dtype, vocab_size=setting.model.config.vocab_size,
        partners=setting.partners,
    )  # fmt: skip


def _stretch(setting: Setting) -> int:
    return -(-setting.config.max_new // setting.config.looks)


def nothing_said(setting: Setting, stream: PromptStream, drawn: Drawn) -> tuple[Carry, Drawn]:
    """What goes on in the first rollout: `carry_over` groups that have not begun."""
    rows, after = stream.rows(0, drawn, setting.config.carry_over)
    first, group = drawn.draws * setting.config.rollout_size, setting.config.group_size
    job = _job(setting, stream.take(rows), setting.sampling, first, group)
    return engine.leave_all(job, setting.model, rows, setting.mesh), after


def _go_on(
    setting: Setting, policy, stream: PromptStream, step: int, drawn: Drawn, left: Carry
) -> Sampled:
    """A rollout of what was left and of new prompts, which leaves as many groups again."""
    rows, after = stream.rows(step, drawn)
    first, group = drawn.draws * setting.config.rollout_size, setting.config.group_size
    job = _job(setting, stream.take(rows), setting.sampling, first, group)
    job = engine.go_on(job, left, rows, setting.mesh)
    assert job.source_P is not None
    asked = stream.take(local_rows(job.source_P).tolist()).examples
    judging = Judging(setting.judges.pool, [e for e in asked for _ in range(group)])
    (model, params), tokenizer = policy, setting.text.tokenizer
    rollout, left, kept = engine.stream_on(
        model, params, job, tokenizer, judging, stretch=_stretch(setting), version=step
    )
    judging.keep(kept)
    carried = {name: float(x) for name, x in carry.told(rollout, left, np.int32(step)).items()}
    return Sampled(jax.block_until_ready(rollout), judging, after, metrics=carried, left=left)


def scores(setting: Setting, sampled: Sampled, step: int) -> tuple[Scored, jax.Array | None]:
    """The scores of a rollout, and the reward of each prompt's greedy response if it has them."""
    judges, mesh = setting.judges, setting.mesh
    scored = sampled.scored or score(judges, sampled.judging, step, mesh)
    if sampled.greedy is None:
        return scored, None
    rollout, judging = sampled.greedy
    found = score(judges, judging, step, mesh)
    return scored, total_rewards(found, rollout.finished_B, setting.mix, setting.credit)


def _equal(setting: Setting, sampled: Sampled) -> np.ndarray:
    """Which of this host's groups have equal rewards."""
    assert sampled.scored is not None
    found = equal_rewards(sampled.scored, sampled.rollout.finished_B, setting.mix, setting.credit)
    return local_rows(found).reshape(-1, setting.credit.group_size)[:, 0]


def _lacking(setting: Setting, sampled: Sampled) -> bool:
    return bool(total(np.sum(_equal(setting, sampled))))


def replace_equal(setting: Setting, sampled: Sampled, other: Sampled) -> tuple[Sampled, int]:
    """Groups of equal rewards replaced by groups of `other` of unequal ones, as far as there are.

    Returns:
      also how many were replaced, on all hosts.
    """
    size = setting.credit.group_size
    places = np.flatnonzero(_equal(setting, sampled))
    theirs = np.flatnonzero(~_equal(setting, other))
    count = min(len(places), len(theirs))
    spread = lambda groups: (groups[:count, None] * size + np.arange(size)).reshape(-1)  # noqa: E731
    places, theirs = spread(places), spread(theirs)
    sampled.judging.take_over(places, other.judging, theirs)
    whole, here = sampled.rollout.finished_B.shape[0], local_slice(sampled.rollout.finished_B)
    rows = np.arange(here.start, here.stop)
    rows[places] = whole + here.start + theirs
    kept = _choose(
        (sampled.rollout, sampled.scored), (other.rollout, other.scored),
        from_local_rows(setting.mesh, rows),
    )  # fmt: skip
    merged = sampled._replace(rollout=kept[0], scored=kept[1], drawn=other.drawn)
    return merged, int(total(np.array(count)))


@jax.jit
def _choose(ours: Any, theirs: Any, rows_B: jax.Array) -> Any:
    """Rows of two rollouts, one behind the other."""

    def choose(a, b):
        return constrain(jnp.concatenate([a, b])[rows_B], "batch", *[None] * (a.ndim - 1))

    return jax.tree.map(choose, ours, theirs)

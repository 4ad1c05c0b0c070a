"""Reinforcement learning: GRPO and its kin, REINFORCE with its baselines, PPO; all by settings.

One pass of the loop: draw prompts, sample a group of responses each, verify them, turn rewards into
advantages (`advantage`: a file of advantages/ by `name`, and its options), and make `inner_epochs`
times `rollout_size / batch_size` updates on random minibatches of the rollout, of which all but the
first are off-policy. `steps` counts updates, as DeepSeek-R1 does (8,192 outputs a rollout, 16
minibatches of 512; Nature 645, Methods). The reference policy is replaced by the latest one every
`reference_every` updates; its KL is in the loss (`loss_options.kl_coef`) or in the reward
(`kl_in_reward`). The host looks for ended sequences `looks` times a rollout and has them verified
while the others go on.

Values, where the estimator asks for them (`gae`), are those of the input `value`, a model of its
own that starts from a reward model or a policy, or without that input of a head on the policy.
The input `teacher`, another policy with the same tokens, makes it on-policy distillation: with its
`teacher.k` likeliest tokens a place in the batch for losses/distill.py (alone, or beside the policy
gradient), with k = 0 by its log-probs of the sampled tokens, added to the advantages.

With `max_off_policy_steps=1` a rollout is sampled before the updates on the one before it, so that
its verifiers have that long, and ratios are to the policy at the first update on it; one more copy
of the trained parameters is held, that a resumed run samples the same again. With `carry_over` as
well, rollouts are sampled with the latest policy, and what is older are the tokens of so many
groups that the rollout before left unfinished (rollout/carry.py).

Rewards, their weights, steps and kinds are those of rewards.py; prompts come from named groups with
a share each, so that some can join later. Nothing silent: all-equal groups, truncated samples,
masked verifier failures, skipped updates are metrics. With `slots` so many sequences are sampled at
once and the others wait for a free one (rollout/continuous.py): less memory, and less time where
their lengths differ. With `router_replay` updates keep the experts that the sampler chose for every
token (rollout routing replay, Ma et al. 2025, arXiv 2510.11370; the cost of the record:
`api.Rollout`); the reference chooses its own. With adapters (`lora.rank`) the reference is another
set of them over the same weights: at first one that changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from posttrain_jax import artifacts, entropy_control, nonfinite, train_state, value_model
from posttrain_jax.api import Artifact, Batch, Params
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.mesh import total
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.policy import load_trainable, open_mesh, open_text, save_policy, stage_title
from posttrain_jax.rewards import make_terms
from posttrain_jax.rollout.checks import ESTIMATOR, check, samples_ahead, updates_a_rollout
from posttrain_jax.rollout.collect import Setting, collect, nothing_said, scores
from posttrain_jax.rollout.experience import Credit, make_mix
from posttrain_jax.rollout.judges import open_judges
from posttrain_jax.rollout.partners import open_partners
from posttrain_jax.rollout.prompts import NOTHING_DRAWN, Drawn, PromptStream
from posttrain_jax.rollout.sampling_settings import open_sampling
from posttrain_jax.rollout.scoring import Judges, shown
from posttrain_jax.rollout.updates import begin, copy, learn, minibatches, prepare
from posttrain_jax.teacher import open_teacher
from posttrain_jax.verifiers.pool import Pool

DEFAULTS = (
    "_sampling",  # these settings, and
    {
        "prompts": {},
        "system": "",
        "rewards": {},
        "no_eos": {"mode": "none", "value": 0.0},
        "kl_in_reward": {"coef": 0.0, "estimator": "k1", "log_bound": 40.0, "bound": 0.0},
        "advantage": {},
        "loss": "grpo",
        "loss_options": {},
        "entropy_control": {"target": 0.0, "step": 0.005},
        "value": {"lr": 0.0, "coef": 0.1, "optimizer": {}, "loss_options": {}},
        "teacher": {"k": 0},
        "group_size": ...,
        "batch_size": ...,
        "rollout_size": ...,
        "inner_epochs": 1,
        "microbatches": 1,
        "steps": ...,
        "prompt_length": ...,
        "max_new": ...,
        "looks": 4,
        "dynamic_sampling": 0,
        "max_off_policy_steps": 0,
        "carry_over": 0,
        "aggregation": "seq_mean_token_mean",
        "aggregation_constant": 0.0,
        "mask_truncated": False,
        "router_replay": False,
        "reference_every": 0,
        "lr": ...,
        "lr_schedule": "constant",
        "lr_end_ratio": 1.0,
        "warmup": 0,
        "optimizer": {},
        "stop_after_skipped": 20,
        "model_options": {},
        "lora": {
            "rank": 0,
            "alpha": 32.0,
            "targets": "",
            "rslora": False,
            "dora": False,
            "base": "",
        },
        "workers": 2,
        "save_every": 10,
        "samples_every": 5,
        "samples_shown": 8,
    },
)  # fmt: skip
RL_SHOWN = ("reward", "accuracy", "length", "tokens_per_second")


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"]; reward models and judges are inputs by the roles in `rewards`."""
    mesh, text = open_mesh(config), open_text(config)
    estimator = check(config, mesh, inputs)
    terms, verifiers = make_terms(config.rewards.to_dict())
    sampling = open_sampling(config, text.tokenizer)
    quarantine = workdir / "quarantine.jsonl"
    with (
        jax.set_mesh(mesh),
        Pool(verifiers, workers=config.workers, quarantine=quarantine) as pool,
    ):
        judges = Judges(terms, pool, open_judges(terms, inputs, mesh, text))
        model, params = load_trainable(
            inputs["policy"], mesh, config.lora, config.seed, **config.model_options
        )
        if config.router_replay and model.config.experts is None:
            raise ValueError("router_replay=True: the policy's model has no experts; set it False")
        params, frozen = train_state.split(model, params)
        needs, value, value_params = frozenset(getattr(estimator, "REQUIRES", ())), None, None
        if "value" in inputs:
            value, value_params = value_model.load(
                inputs["value"], mesh, model, config.seed, **config.model_options
            )
        elif "value_BT" in needs:
            params = value_model.with_head(params, model, mesh, config.seed)
        teacher = None
        if "teacher" in inputs:
            teacher = open_teacher(inputs["teacher"], mesh, text, model)
        setting = Setting(
            config, mesh, text, model, judges, sampling,
            1.0 if sampling.truncated else config.temperature, make_credit(config),
            make_mix(terms), needs, frozen, value, teacher,
            open_partners(config.partner, text),
        )  # fmt: skip
        stream = PromptStream(config, inputs, text)
        params, phases, last = train(setting, workdir, params, value_params, stream)
        save_policy(workdir, model, value_model.without_head(params), inputs["policy"])
    metrics = {**last, "skipped_prompts": stream.skipped}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def make_credit(config: Any) -> Credit:
    """How the settings turn rewards into advantages."""
    options = dict(config.advantage.items())
    kl = dict(config.kl_in_reward.items())
    return Credit(
        options.pop("name", ESTIMATOR), tuple(sorted(options.items())), config.group_size,
        config.no_eos.value if config.no_eos.mode == "replace" else None, config.mask_truncated,
        tuple(sorted(kl.items())) if kl["coef"] else (),
    )  # fmt: skip


def train(
    setting: Setting, workdir: Path, params: Params, value: Params | None, stream: PromptStream
) -> tuple[Params, PhaseTimer, dict[str, float]]:
    """The loop -> (trained parameters, seconds by phase, the last rollout's metrics)."""
    config, each = setting.config, updates_a_rollout(setting.config)
    updates, carried = begin(setting, params, value)
    drawn = NOTHING_DRAWN
    if config.carry_over:
        left, drawn = nothing_said(setting, stream, drawn)
        carried = carried._replace(left=left)
    checkpoints = Checkpoints(workdir, config.save_every)
    start, carried, meta = checkpoints.restore(carried) or (0, carried, {})
    phases, last = PhaseTimer(meta.get("phases")), meta.get("last", {})
    drawn, in_a_row = Drawn(*meta.get("drawn", drawn)), meta.get("in_a_row", 0)
    coef = meta.get("entropy_coef", config.loss_options.get("entropy_coef", 0.0))
    earlier, ahead = {name: last[name] for name in last if name.startswith("verifier_")}, None
    with MetricLogger(workdir, config.steps, stage_title(workdir), start, shown=RL_SHOWN) as log:
        if stream.skipped:
            log.note(f"{stream.skipped} prompts longer than prompt_length are left out")
        for step in range(start, config.steps, each):
            begun = time.monotonic()
            with phases("sample"):
                latest = (carried.sampling, stream, step, drawn, carried.left)
                sampled = ahead or collect(setting, *latest)
                ahead, drawn = None, sampled.drawn
                carried = carried._replace(left=sampled.left)
                if samples_ahead(config) and step + each < config.steps:
                    ahead = collect(setting, carried.policy.params, stream, step + each, drawn)
            with phases("verify"):
                scored, greedy_P = scores(setting, sampled, step)
            with phases("update"):
                batch, metrics = prepare(setting, carried, sampled, scored, greedy_P)
                controls = entropy_control.controls(
                    coef, last.get("entropy"), config.entropy_control
                )
                carried, found, skips = learn(setting, updates, carried, batch, step, controls)
                before = last.get("skipped", 0)
                last = report({**metrics, **found}, [t.name for t in setting.judges.terms])
                last |= {**sampled.metrics, **verifier_counts(setting.judges.pool, earlier)}
            in_a_row = follow_skips(setting, workdir, batch, step, in_a_row, before, skips)
            coef = entropy_control.steered(coef, last.get("entropy"), config.entropy_control)
            step += each
            if (
                carried.reference is not None
                and config.reference_every
                and (step % config.reference_every == 0)
            ):
                latest = value_model.without_head(carried.policy.params)
                carried = carried._replace(reference=copy(latest))
            speed = last["tokens"] / (time.monotonic() - begun)
            log(step, {**last, **phases.lap(), "tokens_per_second": speed})
            if last.get("all_equal_groups") == 1:
                log.note(f"update {step}: the rewards of every group are equal: nothing to learn")
            if (step // each) % config.samples_every == 1 % config.samples_every:
                terms = setting.judges.terms
                rows = shown(sampled.judging, scored, terms, sampled.rollout, config.samples_shown)
                log.samples(step, rows)
            told = {"phases": phases.seconds, "last": last, "drawn": drawn, "in_a_row": in_a_row}
            checkpoints.after(step, carried, {**told, "entropy_coef": coef})
    checkpoints.close()
    return carried.policy.params, phases, last


def follow_skips(
    setting: Setting, workdir: Path, batch: Batch, step: int, in_a_row: int, before: float,
    skips: Sequence[Any],
) -> int:  # fmt: skip
    """How many updates in a row were skipped by now, see nonfinite.py.

    Raises:
      NonFiniteError: too many; the last one's batch is saved.
    """
    limit = setting.config.stop_after_skipped
    totals = jax.device_get(list(skips))
    in_a_row, longest, last = nonfinite.longest_run(in_a_row, before, totals)
    if limit and longest >= limit:
        part = next(p for n, p, _ in minibatches(setting, batch, step) if n == last)
        raise nonfinite.stop(workdir, step + last + 1, longest, limit, part)
    return in_a_row


def verifier_counts(pool: Pool, earlier: Mapping[str, float]) -> dict[str, float]:
    """What the pools of all processes counted, on top of the counts of earlier sessions."""
    counts = total(np.array(list(pool.counts.values())))
    names = [f"verifier_{name}" for name in pool.counts]
    return {n: int(earlier.get(n, 0) + c) for n, c in zip(names, counts, strict=True)}


def report(metrics: dict[str, Any], names: list[str]) -> dict[str, float]:
    """Device metrics as numbers under the names of the log."""
    values = jax.device_get(metrics)
    rewards = {
        f"reward/{name}": float(v)
        for name, v in zip(names, values.pop("terms_W"), strict=True)
        if not np.isnan(v)
    }
    renamed = {k.removeprefix("max/"): float(v) for k, v in values.items() if v is not None}
    accuracy = {"accuracy": rewards["reward/accuracy"]} if "reward/accuracy" in rewards else {}
    return {**renamed, **rewards, **accuracy}

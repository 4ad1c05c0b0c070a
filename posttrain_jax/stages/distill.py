"""Distillation on given responses: sequence-level, or logit-level where there is a teacher.

Sequence-level: a smaller model imitates a teacher's verified responses. DeepSeek-R1-Distill is
supervised fine-tuning alone, no RL (arXiv 2501.12948v1, section 2.4). So without a teacher among
the inputs this stage is `sft` with a student for its policy, and the check that the teacher's
responses are what it trains on: every example must be a sampled response, none the task's own
worked solution.

Logit-level: the loss is a divergence from the teacher's next-token distribution at each place
(losses/distill.py), times `kd_coef`; `ce_coef` adds cross-entropy on the tokens themselves, at
temperature 1 whatever `temperature` is. The teacher's k likeliest tokens come from the input
`teacher_logprobs` (a stage of that kind, over the same rows), or from the input `teacher`, which
then lives on the mesh beside the student. Any data will do. On the student's own samples:
stages/on_policy_distill.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain_jax import teacher as teachers
from posttrain_jax import teacher_cache, train_state
from posttrain_jax.api import Array, Artifact, Batch, Metrics, PolicyOut
from posttrain_jax.losses import distill
from posttrain_jax.losses import sft as cross_entropy
from posttrain_jax.stages import sft
from posttrain_jax.stages.sft import Lesson, Scene

DEFAULTS = (
    "sft",  # that stage's settings, and
    {
        "k": 0,
        "temperature": 1.0,
        "loss_options": {},
        "kd_coef": 1.0,
        "ce_coef": 0.0,
        "teacher_options": {},
    },
)
ROLES = ("teacher", "teacher_logprobs")


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Train inputs["policy"], the student.

    Raises:
      ValueError: settings or inputs that don't go together; see `check`.
    """
    teacher = check(config, inputs)
    return sft.run(config, workdir, inputs, lesson if teacher else sft.imitation)


def check(config: Any, inputs: Mapping[str, Artifact]) -> str:
    """The role of the teacher among the inputs; empty for sequence-level distillation.

    Raises:
      ValueError: two teachers, a setting that nothing would read, a teacher without `k`; without a
        teacher, a data source that is not its responses.
    """
    given = [role for role in ROLES if role in inputs]
    if len(given) == 2:
        raise ValueError("inputs has teacher and teacher_logprobs: give one of the two")
    if given:
        if given == ["teacher"] and config.k < 1:
            raise ValueError(f"k={config.k}: with an input 'teacher' set how many tokens a place")
        return given[0]
    settings = config.to_dict()
    unread = [key for key, value in DEFAULTS[1].items() if settings[key] != value]
    if unread:
        raise ValueError(
            f"{unread[0]} is set, but without a teacher nothing reads it: add an input 'teacher' "
            "or 'teacher_logprobs'"
        )
    foreign = [n for n, source in config.data.items() if source.get("input") != "teacher_data"]
    if foreign:
        raise ValueError(
            f"without an input 'teacher' or 'teacher_logprobs' distill trains on the teacher's "
            f"responses only: data.{foreign[0]} must be {{'input': 'teacher_data'}}; use the kind "
            "'sft' for other data"
        )
    return ""


def lesson(scene: Scene) -> Lesson:
    """The teacher's distributions at each place, and the tokens where `ce_coef` is not 0."""
    config, plain = scene.config, sft.imitation(scene)
    annotate = _from_cache(scene) if "teacher_logprobs" in scene.inputs else _live(scene)

    def draw(chosen: list[int]) -> Batch:
        batch = annotate(plain.draw(chosen), chosen)
        # Where no cross-entropy is asked for, the head makes no log-probs of the tokens.
        return batch if config.ce_coef else batch._replace(weight_BT=batch.weight_BT * 0.0)

    loss = functools.partial(
        mixed, kd_coef=config.kd_coef, ce_coef=config.ce_coef, options=dict(config.loss_options)
    )
    view = functools.partial(train_state.policy_out, teacher_temperature=config.temperature)
    return Lesson(draw, loss, view)


Annotate = Callable[[Batch, list[int]], Batch]


def _live(scene: Scene) -> Annotate:
    config = scene.config
    teacher = teachers.open_teacher(
        scene.inputs["teacher"], scene.mesh, scene.text, scene.model, **config.teacher_options
    )
    ask = functools.partial(teachers.annotate, teacher, temperature=config.temperature)
    return lambda batch, _: ask(batch, config.k)


def _from_cache(scene: Scene) -> Annotate:
    config, artifact = scene.config, scene.inputs["teacher_logprobs"]
    teachers.check_text(artifact, scene.text)
    cache, k = teacher_cache.open_cache(artifact, scene.rows, config.k, config.temperature)
    vocab_size = scene.model.config.vocab_size

    def annotate(batch: Batch, chosen: list[int]) -> Batch:
        found = cache.take(scene.mesh, chosen, k, batch.weight_BT)
        return batch._replace(teacher=teachers.within(found, vocab_size))

    return annotate


def mixed(
    out: PolicyOut, batch: Batch, *, kd_coef: float, ce_coef: float, options: Mapping[str, Any]
) -> tuple[Array, Metrics]:
    """kd_coef times the divergence, plus ce_coef times the cross-entropy."""
    divergence, metrics = distill.loss(out, batch, **options)
    value, metrics = kd_coef * divergence, {**metrics, "distill": divergence}
    if ce_coef:
        nll, more = cross_entropy.loss(out, batch)
        value, metrics = value + ce_coef * nll, {**more, **metrics, "nll": nll}
    return value, {**metrics, "loss": value}

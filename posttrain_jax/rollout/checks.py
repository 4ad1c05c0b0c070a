"""Whether the settings of an RL stage fit together, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from posttrain_jax import registry
from posttrain_jax.mesh import check_batch

ESTIMATOR = "group"


def check(config: Any, mesh: Any, inputs: Iterable[str]) -> ModuleType:
    """Check all settings of a stage; the estimator that they name.

    Raises:
      ValueError: the first thing wrong, with the setting to change.
    """
    check_sizes(config, mesh)
    estimator = registry.load("advantages", config.advantage.get("name", ESTIMATOR))
    check_estimator(config, estimator, inputs)
    check_carry_over(config, mesh, getattr(estimator, "REQUIRES", ()))
    if config.no_eos.mode not in ("none", "replace"):
        raise ValueError(f"no_eos.mode={config.no_eos.mode!r}: expected none or replace")
    if config.max_off_policy_steps not in (0, 1):
        raise ValueError(
            f"max_off_policy_steps={config.max_off_policy_steps}: expected 0 or 1; a rollout is "
            "sampled with the policy of one rollout before, or with the latest"
        )
    return estimator


def samples_ahead(config: Any) -> bool:
    """Whether a rollout is sampled before the updates on the one before it."""
    return bool(config.max_off_policy_steps) and not config.carry_over


def check_carry_over(config: Any, mesh: Any, requires: Iterable[str]) -> None:
    """Check `carry_over`, groups that may go on in the next rollout.

    Raises:
      ValueError: what it does not go with.
    """
    count, groups = config.carry_over, config.rollout_size // config.group_size
    if not count:
        return
    if not 0 < count <= groups:
        raise ValueError(f"carry_over={count}: expected 0 to {groups} groups, those of a rollout")
    check_batch(mesh, "carry_over", count)
    if not config.slots:
        raise ValueError(f"carry_over={count} needs a queue, got slots=0: set slots")
    for wrong, setting in (
        (config.max_off_policy_steps != 1, "max_off_policy_steps=1: what goes on is off-policy"),
        (config.dynamic_sampling, "dynamic_sampling=0"),
        (config.router_replay, "router_replay=False: tokens of an older policy have other experts"),
        ("greedy_B" in requires, "an advantage without a greedy response"),
        (config.partner, "no partner: conversations can't go on"),
    ):
        if wrong:
            raise ValueError(f"carry_over={count} expects {setting}; set one of them off")


def updates_a_rollout(config: Any) -> int:
    """How many updates are made on one rollout."""
    return config.rollout_size // config.batch_size * config.inner_epochs


def check_sizes(config: Any, mesh: Any) -> int:
    """Check the batch arithmetic; the number of updates of a rollout.

    Raises:
      ValueError: sizes that don't divide, with the nearest that do.
    """
    for name, size, of, by in (
        ("rollout_size", config.rollout_size, "batch_size", config.batch_size),
        ("rollout_size", config.rollout_size, "group_size", config.group_size),
        ("batch_size", config.batch_size, "microbatches", config.microbatches),
    ):
        if size % by:
            raise ValueError(
                f"{name}={size} is not a multiple of {of}={by}; the nearest: "
                f"{size // by * by or by} or {-(-size // by) * by}"
            )
    if config.inner_epochs < 1:
        raise ValueError(f"inner_epochs={config.inner_epochs}: expected at least 1")
    updates = updates_a_rollout(config)
    for name in ("steps", "reference_every"):
        if config[name] % updates:
            raise ValueError(
                f"{name}={config[name]} must be a multiple of the {updates} updates of a "
                f"rollout (rollout_size / batch_size * inner_epochs)"
            )
    check_batch(mesh, "batch_size / microbatches", config.batch_size // config.microbatches)
    check_batch(mesh, "rollout_size / group_size", config.rollout_size // config.group_size)
    return updates


def check_estimator(config: Any, estimator: ModuleType, inputs: Iterable[str]) -> None:
    """Check what an estimator of advantages asks for.

    Raises:
      ValueError: groups that are too small, a value model too many or too few.
    """
    name = estimator.__name__.rpartition(".")[2]
    requires = getattr(estimator, "REQUIRES", ())
    smallest = getattr(estimator, "MIN_GROUP", 1)
    if config.group_size < smallest:
        raise ValueError(
            f"group_size={config.group_size}: the advantage {name!r} compares the responses to a "
            f"prompt and needs groups of at least {smallest}; raise group_size, or choose another "
            "advantage.name"
        )
    if config.dynamic_sampling and (config.group_size < 2 or "greedy_B" in requires):
        raise ValueError(
            f"dynamic_sampling={config.dynamic_sampling} looks for groups of unequal rewards: with "
            f"group_size={config.group_size} and the advantage {name!r} set it to 0"
        )
    if "value" in inputs and "value_BT" not in requires:
        raise ValueError(f"inputs.value is given, but the advantage {name!r} asks for no values")
    after = config.advantage.get("reward_place") == "after"
    if after and "value" not in inputs:
        raise ValueError(
            "advantage.reward_place='after' needs values one place after the end, which a value "
            "head on the policy does not learn: give a value model as inputs.value"
        )

"""What a recipe would do, without doing it: stage graph, batch arithmetic, parameter counts.

Needs no device. Sizes come from the model families by abstract evaluation; a family that does not
exist yet has no count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from posttrain_jax.recipe import MESH, missing, model_families

WEIGHTS = ("student", "policy")  # the input roles whose weights a stage starts from
SHOWN_SETTINGS = ("steps", "max_steps", "epochs", "lr", "samples", "count")


def make_plan(config: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    """The plan of a resolved, validated config, JSON-able."""
    stages = [_plan_stage(config, name) for name in config["order"]]
    return {
        **{key: config[key] for key in ("recipe", "preset", "seed", "tokenizer", "chat_template")},
        "mesh": dict(config["mesh"]),
        "stages": stages,
        "remarks": remarks,
        "missing": missing(config),
    }


def draw(config: Mapping[str, Any]) -> list[str]:
    """The stage graph as text: each stage below the one whose weights it starts from.

    A stage without weights stands below its last input; all inputs are named beside each stage.
    """
    stages = config["stages"]
    children: dict[str, list[str]] = {"": []}
    for name in config["order"]:
        inputs = stages[name].get("inputs", {})
        last = max(inputs.values(), key=config["order"].index, default="")
        children.setdefault(_weights(inputs) or last, []).append(name)
    lines: list[str] = []

    def visit(name: str, prefix: str, last: bool, top: bool) -> None:
        branch = "" if top else ("└─ " if last else "├─ ")
        inputs = list(stages[name].get("inputs", {}).items())
        roles = ", ".join(f"{role}: {source}" for role, source in inputs)
        lines.append(
            f"{prefix}{branch}{name} [{stages[name]['kind']}]{'  <- ' * bool(roles)}{roles}"
        )
        below = children.get(name, [])
        for i, child in enumerate(below):
            inner = prefix if top else prefix + ("   " if last else "│  ")
            visit(child, inner, i == len(below) - 1, False)

    for name in children[""]:
        visit(name, "", True, True)
    return lines


def parameters(spec: str) -> int | None:
    """The number of parameters of `family:size`; None where the family does not exist yet."""
    return _counts(spec)[0]


def _counts(spec: str) -> tuple[int, int] | tuple[None, None]:
    """All parameters of `family:size`, and those that a token makes use of."""
    if spec.partition(":")[0] not in model_families():
        return None, None
    import jax

    from posttrain_jax.models.families import active_count, find_config, parameter_count

    jax.config.update("jax_platforms", "cpu")  # counting must not take hold of an accelerator
    config = find_config(spec)
    return parameter_count(config), active_count(config)


def trained(spec: str, stage: Mapping[str, Any]) -> int | None:
    """How many parameters a stage trains where they are adapters; None where they are all."""
    settings = stage.get("lora") or {}
    if not settings.get("rank") or spec.partition(":")[0] not in model_families():
        return None
    from posttrain_jax.models import find_config, lora, make_model

    return lora.adapter_count(make_model(find_config(spec)), lora.LoraConfig(**settings))


def model_of(config: Mapping[str, Any], name: str) -> str:
    """The model spec of a stage: its own, or that of the stage its policy comes from."""
    stage = config["stages"][name]
    inputs = stage.get("inputs", {})
    if isinstance(stage.get("model"), str) and stage["model"]:
        return stage["model"]
    source = _weights(inputs)
    if stage["kind"] == "merge" and inputs:
        source = next(iter(inputs.values()))
    return model_of(config, source) if source else ""


def _weights(inputs: Mapping[str, str]) -> str:
    return next((inputs[role] for role in WEIGHTS if role in inputs), "")


def arithmetic(stage: Mapping[str, Any], mesh: Mapping[str, int]) -> tuple[dict, list[str]]:
    """The sizes that follow from a stage's settings, and what does not divide.

    Reads the settings that stages share: batch_size (rows an update; a whole rollout where there is
    no such setting), microbatches, length (tokens a row), pairs_per_step, steps (updates), and of a
    rollout rollout_size, group_size, prompt_length, max_new.
    """
    sizes: dict[str, Any] = {key: stage[key] for key in SHOWN_SETTINGS if stage.get(key)}
    rollout = stage.get("rollout_size", 0)
    rows = stage.get("batch_size", rollout)
    length = stage.get("length") or stage.get("prompt_length", 0) + stage.get("max_new", 0)
    if rollout:
        sizes["questions a rollout"] = rollout // stage["group_size"]
        sizes["completions a rollout"] = rollout
        sizes["updates a rollout"] = rollout // rows * stage.get("inner_epochs", 1)
        sizes["rollouts"] = stage["steps"] // (sizes["updates a rollout"] or 1)
    if rows:
        sizes["rows a batch"] = rows
        sizes["rows a microbatch"] = rows // stage.get("microbatches", 1)
    if rows and length:
        sizes["tokens a batch, at most"] = rows * length
    if pairs := stage.get("pairs_per_step", 0):
        sizes["pairs a step"] = pairs
        sizes["tokens a step, at most"] = 2 * pairs * length
    return sizes, _problems(stage, mesh)


def _problems(stage: Mapping[str, Any], mesh: Mapping[str, int]) -> list[str]:
    """Every division with a remainder, with the nearest sizes that divide."""
    rollout = stage.get("rollout_size", 0)
    rows = stage.get("batch_size", rollout)
    pairs, micro = stage.get("pairs_per_step", 0), stage.get("microbatches", 1)
    split = [mesh.get(axis, 1) for axis in ("data", "fsdp", "expert")]
    ways = math.prod(size for size in split if size > 0)
    checks = (
        ("rollout_size", rollout, "batch_size", rows),
        ("rollout_size", rollout, "group_size", stage.get("group_size", 0)),
        ("batch_size", rows, "microbatches", micro),
        ("batch_size / microbatches", rows // micro, "data x fsdp x expert of the mesh", ways),
        ("pairs_per_step", pairs, "microbatches", micro),
        ("pairs_per_step / microbatches", pairs // micro, "data x fsdp x expert of the mesh", ways),
    )
    found = []
    for what, size, by, parts in checks:
        if size and parts and size % parts:
            near = [n for n in (size // parts * parts, -(-size // parts) * parts) if n]
            found.append(
                f"{what} = {size} does not divide by {by} = {parts}; "
                f"the nearest that do: {' or '.join(map(str, near))}"
            )
    return found


def queue(stage: Mapping[str, Any], spec: str, mesh: Mapping[str, int]) -> dict[str, Any]:
    """The sizes of a sampler's queue (rollout/continuous.py); nothing where a stage has none.

    Args:
      spec: the stage's model; bytes are counted where its family exists.
    """
    group = stage.get("group_size") or stage.get("samples", 0)
    prompts = stage["rollout_size"] // group if stage.get("rollout_size") else 0
    prompts, partner = prompts or stage.get("batch_size", 0), stage.get("partner") or {}
    answered = bool(partner.get("tools") or partner.get("environment"))
    slots = stage.get("slots") or (prompts * group if answered else 0)
    if not slots or (slots >= prompts * group and not answered and not stage.get("cache_dtype")):
        return {}
    from posttrain_jax.rollout import continuous
    from posttrain_jax.rollout.prefill import prompt_widths
    from posttrain_jax.rollout.request import Rules
    from posttrain_jax.rollout.sampling import Sampling

    ways = math.prod(max(1, mesh.get(axis, 1)) for axis in ("data", "fsdp", "expert"))
    rules = Rules(Sampling(), stage["max_new"], group, cache_dtype=stage.get("cache_dtype", ""))
    plan = continuous.plan_sizes(max(1, slots // ways), max(1, prompts // ways), rules)
    return {
        "slots a shard": plan.slots,
        "pages a shard": plan.pages,
        "places a page": continuous.page_size(),
        "prompts in the pool": plan.entries,
        "prompts a prefill": plan.prefill,
        "places of a prefill": list(prompt_widths(stage["prompt_length"], plan.narrowest)),
        "free slots that are worth a prefill": plan.threshold,
        **_cache(stage, spec, plan, rules, max(1, prompts // ways)),
    }


def _cache(stage: Mapping[str, Any], spec: str, sizes: Any, rules: Any, prompts: int):
    """What a queue's cache takes of a model whose family exists."""
    if spec.partition(":")[0] not in model_families():
        return {}
    import jax

    from posttrain_jax.models.families import find_config, make_model
    from posttrain_jax.rollout import continuous, limits, pools

    jax.config.update("jax_platforms", "cpu")
    model = make_model(find_config(spec, **stage.get("model_options", {})))
    ring = pools.ring_pages(model.config, sizes.slots, sizes.pages, continuous.page_size())
    rings = {"pages of a slot in local layers": ring} if ring else {}
    held = limits.cache_bytes(model, rules, sizes, prompts, stage["prompt_length"])
    return {**rings, "cache bytes a shard": held}


def window(config: Mapping[str, Any], name: str) -> list[str]:
    """What a stage samples beyond the length of its model, as `rollout.limits` will refuse it."""
    stage, longest = config["stages"][name], _longest(config, name)
    size = stage.get("prompt_length", 0) + stage.get("max_new", 0)
    if not longest or not stage.get("max_new") or size <= longest:
        return []
    return [
        f"prompt_length + max_new = {size} tokens, and the model is for {longest} (max_length): "
        "lower one of them, or set model_options.max_length"
    ]


def _longest(config: Mapping[str, Any], name: str) -> int:
    """The length of a stage's model, which a stage before it may have set; 0: unknown."""
    stage = config["stages"][name]
    if given := stage.get("model_options", {}).get("max_length"):
        return given
    if source := _weights(stage.get("inputs", {})):
        return _longest(config, source)
    spec = model_of(config, name)
    if spec.partition(":")[0] not in model_families():
        return 0
    from posttrain_jax.models.families import find_config

    return find_config(spec).max_length


def _plan_stage(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    stage = config["stages"][name]
    mesh = {**MESH, **config["mesh"], **stage.get("mesh", {})}
    sizes, problems = arithmetic(stage, mesh)
    model = model_of(config, name)
    whole, active = _counts(model) if model else (None, None)
    return {
        "name": name,
        "kind": stage["kind"],
        "inputs": dict(stage.get("inputs", {})),
        "model": model,
        "parameters": whole,
        "active_parameters": active,
        "adapter_parameters": trained(model, stage) if model else None,
        "sizes": {**sizes, **queue(stage, model, mesh)},
        "problems": [*problems, *window(config, name)],
    }

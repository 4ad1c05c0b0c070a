"""A weighted average of policies' parameters, saved as a policy.

  theta = sum_i w_i theta_i / sum_i w_i

Llama 3 averages the models of its reward-model, SFT and DPO runs so (arXiv 2407.21783, section
4.1.5; weights not published); between two policies trained for different rewards it gives the
points of rewarded soups (Rame et al. 2023, arXiv 2306.04488). Sums are in float32. Adapters come
merged into their weights.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from posttrain_jax import artifacts
from posttrain_jax.api import Artifact, Model, Params
from posttrain_jax.checkpoint import load_about
from posttrain_jax.policy import load_policy, open_mesh, save_policy

DEFAULTS = {"weights": {}}
FREE = ("dtype", "param_dtype", "remat", "attention_impl")
"""Fields of a model's config in which policies may differ; the first one's are kept."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Average all inputs; `weights` maps a role to its weight, 1 for those it doesn't name."""
    mesh, weights = open_mesh(config), shares(dict(config.weights), inputs)
    with jax.set_mesh(mesh):
        (role, share), *others = weights.items()
        model, first = _load(inputs, role, mesh)
        total, distances = _scale(first, share), {}
        for other, share in others:
            theirs, params = _load(inputs, other, mesh)
            check_same(model.config, theirs.config, role, other)
            distances[f"distance/{other}"] = float(_distance(first, params))
            total = _add(total, params, share)
        merged = jax.tree.map(lambda x, like: x.astype(like.dtype), total, first)
        save_policy(workdir, model, merged)
    shown = {f"weight/{name}": share for name, share in weights.items()}
    return artifacts.finish(workdir, metrics={"policies": len(weights), **shown, **distances})


def _load(inputs: Mapping[str, Artifact], role: str, mesh: Mesh) -> tuple[Model, Params]:
    if "head" in load_about(inputs[role].path):
        raise ValueError(f"input {role!r} (stage {inputs[role].stage!r}) has a head: no policy")
    return load_policy(inputs[role], mesh)


def shares(weights: Mapping[str, float], inputs: Mapping[str, Any]) -> dict[str, float]:
    """Each input's share of the average, in the order of their roles.

    Raises:
      ValueError: fewer than two policies, a weight for none of them, or weights without an average.
    """
    if unknown := set(weights) - set(inputs):
        raise ValueError(f"weights names {sorted(unknown)}; the inputs are {sorted(inputs)}")
    if len(inputs) < 2:
        raise ValueError(f"a merge needs at least two inputs, got {sorted(inputs)}")
    found = {role: float(weights.get(role, 1.0)) for role in sorted(inputs)}
    total = math.fsum(found.values())
    if not all(map(math.isfinite, found.values())) or total <= 0:
        raise ValueError(f"weights={found}: expected finite numbers with a sum above 0")
    return {role: weight / total for role, weight in found.items()}


def check_same(one: Any, other: Any, first: str, second: str) -> None:
    """Refuse to average models of different sizes.

    Raises:
      ValueError: the inputs' roles, and each field in which they differ.
    """
    ours, theirs = dataclasses.asdict(one), dataclasses.asdict(other)
    differ = [
        f"{name}: {ours[name]} and {theirs[name]}"
        for name in ours
        if name not in FREE and ours[name] != theirs[name]
    ]
    if differ:
        raise ValueError(f"inputs {first!r} and {second!r} differ in {'; '.join(differ)}")


@jax.jit
def _scale(params, share):
    return jax.tree.map(lambda x: share * x.astype(jnp.float32), params)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total, params, share):
    return jax.tree.map(lambda t, x: t + share * x.astype(jnp.float32), total, params)


@jax.jit
def _distance(one, other):
    """The Euclidean distance of two sets of parameters over the norm of the first."""
    square = lambda x: jnp.sum(jnp.square(x.astype(jnp.float32)))  # noqa: E731
    gaps = jax.tree.map(lambda a, b: square(a.astype(jnp.float32) - b), one, other)
    sizes = jax.tree.map(square, one)
    return jnp.sqrt(sum(jax.tree.leaves(gaps)) / sum(jax.tree.leaves(sizes)))

"""A weighted average of models' parameters, saved as the model that they are.

  theta = sum_i w_i theta_i / sum_i w_i

Llama 3 averages the models of its reward-model, SFT and DPO runs so (arXiv 2407.21783, section
4.1.5; weights not published); between two policies trained for different rewards it gives the
points of rewarded soups (Rame et al. 2023, arXiv 2306.04488). Sums are in float32. Adapters come
merged into their weights; heads are averaged with their models.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from posttrain_jax import artifacts, process_reward, reward_model
from posttrain_jax.api import Artifact, Params
from posttrain_jax.checkpoint import model_kind
from posttrain_jax.policy import load_policy, open_mesh, save_policy

DEFAULTS = {"weights": {}}
FREE = ("dtype", "param_dtype", "remat", "attention_impl")
"""Fields of a model's config in which policies may differ; the first one's are kept."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Average all inputs; `weights` maps a role to its weight, 1 for those it doesn't name."""
    mesh, weights = open_mesh(config), shares(dict(config.weights), inputs)
    with jax.set_mesh(mesh):
        (role, share), *others = weights.items()
        first = open_part(inputs[role], mesh)
        total, distances = _scale(first.params, share), {}
        for other, share in others:
            part = open_part(inputs[other], mesh)
            check_same(first.form, part.form, role, other)
            distances[f"distance/{other}"] = float(_distance(first.params, part.params))
            total = _add(total, part.params, share)
        first.save(workdir, jax.tree.map(lambda x, y: x.astype(y.dtype), total, first.params))
    shown = {f"weight/{name}": share for name, share in weights.items()}
    return artifacts.finish(workdir, metrics={"policies": len(weights), **shown, **distances})


class Part(NamedTuple):
    """A model to average.

    Attributes:
      form: what it must have in common with the others.
      save: writes a model like it, with other parameters, into a folder.
    """

    form: dict[str, Any]
    params: Params
    save: Callable[[Path, Params], None]


def open_part(artifact: Artifact, mesh: Mesh) -> Part:
    """The model of an artifact: a policy, or one with a head."""
    kind = model_kind(artifact.path)
    if kind == "policy":
        model, params = load_policy(artifact, mesh)
        form = {"kind": kind, **dataclasses.asdict(model.config)}
        return Part(form, params, lambda folder, merged: save_policy(folder, model, merged))
    module: Any = reward_model if kind == "reward_model" else process_reward
    found = module.load(artifact, mesh)
    beside = {k: v for k, v in found._asdict().items() if k not in ("model", "params")}
    form = {"kind": kind, **dataclasses.asdict(found.model.config), **beside}
    return Part(
        form,
        found.params,
        lambda folder, merged: module.save(folder, found._replace(params=merged)),
    )


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


def check_same(ours: dict[str, Any], theirs: dict[str, Any], first: str, second: str) -> None:
    """Refuse to average models of different forms.

    Raises:
      ValueError: the inputs' roles, and each field in which they differ.
    """
    names = [name for name in {**ours, **theirs} if name not in FREE]
    differ = [
        f"{name}: {ours.get(name)} and {theirs.get(name)}"
        for name in names
        if ours.get(name) != theirs.get(name)
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

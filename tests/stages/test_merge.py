"""Averages of policies against float64, and what can't be averaged."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax import artifacts, policy, reward_model
from posttrain_jax.api import Artifact
from posttrain_jax.models import heads, lora
from posttrain_jax.stages import merge


def save(folder, model, params, **more):
    policy.save_policy(folder, model, params, **more)
    return Artifact(folder.name, "sft", "1" * 64, folder)


def average(folder, inputs, mesh, **weights):
    artifacts.prepare(folder, artifacts.Record("merge", "merge", "0" * 64, {}))
    config = ConfigDict({"weights": weights, "mesh": {"data": 1}})
    artifact = merge.run(config, folder, inputs)
    return artifact, policy.load_policy(artifact, mesh)


@pytest.fixture(scope="module")
def three(make_small, tmp_path_factory):
    """Policies of one shape with different weights: (artifacts by role, exact parameters)."""
    smalls = [make_small(seed) for seed in range(3)]
    base = tmp_path_factory.mktemp("policies")
    saved = {n: save(base / n, s.model, s.params) for n, s in zip("abc", smalls, strict=True)}
    return saved, [s.exact for s in smalls], smalls[0].mesh


def assert_mean(params, exact, shares):
    expected = jax.tree.map(lambda *x: sum(w * y for w, y in zip(shares, x, strict=True)), *exact)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_equal_weights_are_the_default(three, tmp_path):
    inputs, exact, mesh = three
    artifact, (_, params) = average(tmp_path, inputs, mesh)
    assert_mean(params, exact, [1 / 3] * 3)
    shown = {name: value["mean"] for name, value in artifact.metrics.items()}
    assert shown["policies"] == 3 and shown["weight/b"] == pytest.approx(1 / 3)
    flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in exact]
    far = np.linalg.norm(flat[2] - flat[0]) / np.linalg.norm(flat[0])
    assert shown["distance/c"] == pytest.approx(far, rel=1e-5)


def test_weights_need_no_sum_of_one(three, tmp_path):
    inputs, exact, mesh = three
    _, (_, params) = average(tmp_path, inputs, mesh, a=3.0, c=0.0)
    assert_mean(params, exact, [3 / 4, 1 / 4, 0])


def test_bfloat16_is_summed_in_float32(make_small, tmp_path):
    """Summed in bfloat16, steps of 1/256 of a weight would be lost."""
    small = make_small(param_dtype="bfloat16")
    shapes = jax.eval_shape(small.model.init, jax.random.key(0))
    same = lambda x: jax.tree.map(lambda leaf: np.full(leaf.shape, x, leaf.dtype), shapes)  # noqa: E731
    place = lambda tree: jax.device_put(tree, small.mesh.devices.item())  # noqa: E731
    inputs = {
        name: save(tmp_path / name, small.model, place(same(x)))
        for name, x in (("a", 1.0), ("b", 1.0078125), ("c", 1.015625), ("d", 1.0))
    }
    _, (_, params) = average(tmp_path / "merge", inputs, small.mesh)
    exact = np.float32((1 + 1.0078125 + 1.015625 + 1) / 4)
    leaf = jax.tree.leaves(params)[0]
    assert leaf.dtype == "bfloat16"
    assert np.all(np.asarray(leaf) == exact.astype(leaf.dtype))


def test_adapters_are_averaged_with_their_weights(make_small, tmp_path):
    small = make_small()
    mesh = small.mesh
    model = lora.wrap(small.model, lora.LoraConfig(rank=2, targets="q"))
    adapters = lora.init_adapters(model, small.params, jax.random.key(0))
    adapters["layers"]["q_lora_b"] += 0.1
    base = save(tmp_path / ("a-" + "1" * 12), small.model, small.params)
    artifacts.prepare(base.path, artifacts.Record("a", "sft", base.id, {}))
    artifacts.seal(base.path)
    whole = {**small.params, "layers": {**small.params["layers"], **adapters["layers"]}}
    adapted = tmp_path / "adapted"
    policy.save_policy(adapted, model, whole, base)
    artifact = Artifact("x", "sft", "2" * 64, adapted)
    _, (plain, params) = average(tmp_path / "m", {"a": base, "x": artifact}, mesh)
    assert plain.lora is None
    merged = policy.load_policy(artifact, mesh)[1]
    assert np.abs(np.asarray(merged["layers"]["q"]) - small.exact["layers"]["q"]).max() > 1e-2
    assert_mean(params, [small.exact, jax.tree.map(np.float64, merged)], [0.5, 0.5])


@pytest.mark.parametrize(
    ("weights", "roles", "message"),
    [
        ({"z": 1.0}, "ab", r"weights names \['z'\]; the inputs are \['a', 'b'\]"),
        ({}, "a", "a merge needs at least two inputs"),
        ({"a": -1.0}, "ab", "expected finite numbers with a sum above 0"),
        ({"a": float("nan")}, "ab", "expected finite numbers"),
    ],
)
def test_weights_without_an_average(weights, roles, message):
    with pytest.raises(ValueError, match=message):
        merge.shares(weights, dict.fromkeys(roles))


def test_models_of_other_sizes(three, make_small, tmp_path):
    inputs, _, mesh = three
    wide = make_small(ffn=48)
    other = save(tmp_path / "wide", wide.model, wide.params)
    with pytest.raises(ValueError, match="inputs 'a' and 'w' differ in ffn: 32 and 48"):
        average(tmp_path / "m", {"a": inputs["a"], "w": other}, mesh)


@pytest.fixture
def judges(make_small, tmp_path):
    """`(seed, **changes of a reward model) -> (artifact, its exact parameters)`."""

    def make(seed, **changes):
        small = make_small(seed)
        params = reward_model.add_head(small.model, small.params, small.mesh, seed, heads.SCORE)
        folder = tmp_path / f"judge{seed}"
        found = reward_model.RewardModel(small.model, params, 32, "whole")._replace(**changes)
        reward_model.save(folder, found)
        exact = jax.tree.map(np.float64, params)
        return Artifact(folder.name, "reward_model", "1" * 64, folder), exact

    return make


def test_reward_models_are_averaged_with_their_heads(judges, three, tmp_path):
    mesh = three[2]
    (one, first), (other, second) = judges(0), judges(1)
    folder = tmp_path / "merge"
    artifacts.prepare(folder, artifacts.Record("merge", "merge", "0" * 64, {}))
    config = ConfigDict({"weights": {"a": 3.0}, "mesh": {"data": 1}})
    merged = reward_model.load(merge.run(config, folder, {"a": one, "b": other}), mesh)
    assert_mean(merged.params, [first, second], [3 / 4, 1 / 4])
    assert (merged.length, merged.span, merged.head) == (32, "whole", heads.SCORE)


def test_models_that_judge_otherwise_are_not_averaged(judges, three, tmp_path):
    policies, _, mesh = three
    (one, _), (other, _) = judges(0), judges(1, span="answer")
    with pytest.raises(ValueError, match="inputs 'a' and 'b' differ in span: whole and answer"):
        average(tmp_path / "m", {"a": one, "b": other}, mesh)
    with pytest.raises(ValueError, match="'a' and 'p' differ in kind: reward_model and policy"):
        average(tmp_path / "m", {"a": one, "p": policies["a"]}, mesh)

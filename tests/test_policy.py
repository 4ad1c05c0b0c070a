"""A policy written into an artifact and read back."""

import jax
import numpy as np
import pytest

from posttrain_jax import policy, tree
from posttrain_jax.api import Artifact


def test_a_saved_policy_is_the_same_policy(small, tmp_path):
    policy.save_policy(tmp_path, small.model, small.params)
    artifact = Artifact("sft", "sft", "0" * 64, tmp_path)
    model, params = policy.load_policy(artifact, small.mesh)
    assert model == small.model
    assert tree.digest(params) == tree.digest(small.params)
    changed, again = policy.load_policy(artifact, small.mesh, remat="full", dtype="bfloat16")
    assert (changed.config.remat, changed.config.dtype) == ("full", "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype("float32")}
    with pytest.raises(TypeError, match="depth"):
        policy.load_policy(artifact, small.mesh, depth=3)


def test_the_title_of_a_stage(tmp_path):
    assert policy.stage_title(tmp_path / "reasoning-rl-0123456789ab") == "reasoning-rl"

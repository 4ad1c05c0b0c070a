"""A folder of PEFT as an artifact, and the adapters of an artifact trained further or merged."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax import artifacts, policy, tree
from posttrain_jax.artifacts import Record
from posttrain_jax.models import lora
from posttrain_jax.models.peft import save_peft
from posttrain_jax.stages import adapters

OFF = {"rank": 0, "alpha": 32.0, "targets": "", "rslora": False, "dora": False, "base": ""}


@pytest.fixture
def base(small, tmp_path):
    """An artifact with a plain policy."""
    folder = tmp_path / f"base-{'b' * 12}"
    artifacts.prepare(folder, Record("base", "sft", "b" * 64, {}))
    policy.save_policy(folder, small.model, small.params)
    artifact = artifacts.finish(folder)
    artifacts.seal(folder)
    return artifact


def test_a_folder_of_peft_becomes_a_policy(small, base, tmp_path):
    settings = {**OFF, "rank": 2, "alpha": 6.0, "targets": "layers/q|layers/down"}
    model = lora.wrap(small.model, lora.LoraConfig(**settings))
    new = lora.init_adapters(model, small.params, jax.random.key(0))
    moved = jax.tree.map(lambda x: np.asarray(x) + 0.1, new)
    save_peft(tmp_path / "peft", model, moved)
    workdir = tmp_path / f"read-{'a' * 12}"
    artifacts.prepare(workdir, Record("read", "adapters", "a" * 64, {}))
    config = ConfigDict({"source": str(tmp_path / "peft"), "mesh": {}})
    read = adapters.run(config, workdir, {"policy": base})
    assert read.metrics["parameters"]["mean"] == sum(x.size for x in jax.tree.leaves(moved))

    merged = policy.load_policy(read, small.mesh)[1]
    product = np.einsum("lfr,lrd->lfd", moved["layers"]["down_lora_a"],
                        moved["layers"]["down_lora_b"])  # fmt: skip
    expected = small.exact["layers"]["down"] + 3.0 * product
    np.testing.assert_allclose(merged["layers"]["down"], expected, atol=1e-6)
    np.testing.assert_array_equal(merged["layers"]["up"], small.params["layers"]["up"])

    further, params = policy.load_trainable(read, small.mesh, settings, 1)
    assert further.lora.targets == "layers/down|layers/q"  # the same, named otherwise
    assert tree.digest(tree.split(params, lora.is_adapter)[0]) == tree.digest(moved)
    policy.save_policy(tmp_path / "next", further, params, read)
    about = policy.checkpoint.load_about(tmp_path / "next")
    assert about["base"] == {"stage": "base", "id": "b" * 64}  # one step, however many stages

    other, params = policy.load_trainable(read, small.mesh, {**settings, "rank": 3}, 1)
    frozen = tree.split(params, lora.is_adapter)[1]
    assert tree.digest(frozen) == tree.digest(merged)
    assert not np.asarray(params["layers"]["q_lora_b"]).any()
    policy.save_policy(tmp_path / "other", other, params, read)
    about = policy.checkpoint.load_about(tmp_path / "other")
    assert about["base"] == {"stage": "read", "id": "a" * 64}

    plain, params = policy.load_trainable(read, small.mesh, OFF, 1)
    assert plain == small.model and tree.digest(params) == tree.digest(merged)

"""Adapters from SFT through RL to evaluation and export, killed on the way, and what is on disk."""

import functools
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from posttrain_jax import artifacts, policy, tree
from posttrain_jax.models import lora
from posttrain_jax.models.safetensors import load_pretrained

STAGES = ("questions", "base", "samples", "rejection", "sft", "reward_model", "rl", "evaluation",
          "export")  # fmt: skip
WORDS = (
    f"--config.order={','.join(STAGES)}",
    *(f"--config.stages.{stage}.lora.rank=4" for stage in ("sft", "reward_model", "rl")),
    *(f"--config.stages.{stage}.lora.base=int8" for stage in ("sft", "reward_model", "rl")),
)


def folder_of(workdir, stage):
    (found,) = (workdir / "artifacts").glob(f"{stage}-*")
    return found


@pytest.fixture(scope="module")
def runs(whole, posttrain, faulty, mini, tmp_path_factory):
    """The recipe with adapters, run once in one go and once killed in SFT and in RL."""
    found = []
    for name in ("calm", "killed"):
        run = tmp_path_factory.mktemp("lora") / name
        whole.only("questions", "base", "samples", "rejection", into=run)
        if name == "killed":
            for stage, row in (("sft", 3), ("rl", 4)):
                code, out, err = faulty("SIGKILL", stage, row, 0, mini, *WORDS, "--workdir", run)
                assert code == -signal.SIGKILL, out + err
        code, out, err = posttrain("run", mini, *WORDS, "--workdir", run)
        assert code == 0, out + err
        found.append(run)
    return found


def test_a_killed_run_ends_the_same(runs, results):
    calm, killed = map(results, runs)
    assert calm == killed
    gaps = [row["logprob_gap"] for row in calm.rows["rl"]]
    assert max(gaps) < 1e-4


def test_artifacts_and_checkpoints_hold_adapters_only(runs):
    run, mesh = runs[0], policy.make_mesh(devices=jax.devices()[:1])
    base = artifacts.load(folder_of(run, "base"))
    plain, weights = policy.load_policy(base, mesh)
    for stage in ("sft", "rl"):
        folder = folder_of(run, stage)
        about = json.loads((folder / "model.json").read_text())
        assert about["base"] == {"stage": "base", "id": base.id}  # RL went on with SFT's adapters
        kept = json.loads((folder / "params" / "_METADATA").read_text())["tree_metadata"]
        assert kept and all("_lora_" in name for name in kept)
        (*_, last) = sorted((folder / "checkpoints").glob("*/state/_METADATA"))
        saved = json.loads(last.read_text())["tree_metadata"]
        params = [name for name in saved if "params" in name or "mu" in name]
        assert params and all("_lora_" in name for name in params)
    model, params = policy.load_adapted(artifacts.load(folder_of(run, "rl")), mesh)
    frozen = tree.split(params, lora.is_adapter)[1]
    assert tree.digest(frozen) == tree.digest(lora.freeze(model, weights))
    before = policy.load_adapted(artifacts.load(folder_of(run, "sft")), mesh)[1]
    assert np.abs(before["layers"]["q_lora_b"]).max() > 0
    assert tree.digest(before) != tree.digest(params)
    assert model.config == plain.config


def test_the_export_is_the_merged_policy_or_its_adapters(runs, posttrain, mini, tmp_path):
    run, mesh = runs[0], policy.make_mesh(devices=jax.devices()[:1])
    rl = artifacts.load(folder_of(run, "rl"))
    _, exported = load_pretrained(folder_of(run, "export") / "model")
    params = policy.load_adapted(rl, mesh)[1]
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)  # compiled otherwise there
    jax.tree.map(close, exported, policy.load_policy(rl, mesh)[1])
    layers = params["layers"]
    product = np.einsum("lfr,lrd->lfd", layers["down_lora_a"], layers["down_lora_b"]) * 32 / 4
    scale = np.asarray(layers["down"].scale)
    close(exported["layers"]["down"], np.asarray(layers["down"].codes) * scale + product)
    words = (*WORDS, "--config.stages.export.adapters=True")
    others = shutil.ignore_patterns("export-*")
    shutil.copytree(run / "artifacts", tmp_path / "artifacts", ignore=others)
    code, out, err = posttrain("run", mini, *words, "--workdir", tmp_path)
    assert code == 0 and "rl: done before" in out, out + err
    (file,) = (tmp_path / "artifacts").glob("export-*/model/adapter_model.safetensors")
    held = load_file(file)
    a = held["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"]
    np.testing.assert_array_equal(a.T, params["layers"]["k_lora_a"][0])


def test_adapters_without_their_weights_are_refused(runs, tmp_path):
    run = tmp_path / "run"
    (run / "artifacts").mkdir(parents=True)
    moved = run / "artifacts" / folder_of(runs[0], "rl").name
    moved.symlink_to(folder_of(runs[0], "rl"))
    mesh = policy.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(
        artifacts.ArtifactError, match=r"was made from base-\w{12}, which is not in"
    ):
        policy.load_policy(artifacts.load(moved), mesh)
    with pytest.raises(ValueError, match=r"'base' ran with lora.rank=0"):
        policy.load_adapted(artifacts.load(folder_of(runs[0], "base")), mesh)

"""Models with heads in files: transformers' scores of its own folders, and its folders from us.

The folders and scores of tests/golden/heads are transformers' (tests/oracle/make_head_goldens.py).
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from posttrain_jax.api import Batch
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.mesh import make_mesh, shardings
from posttrain_jax.models import ModelConfig, heads, make_model
from posttrain_jax.models.head_files import load_with_head, save_with_head
from posttrain_jax.models.head_forms import find_form
from posttrain_jax.models.heads import HeadConfig
from posttrain_jax.models.stored import open_weights
from posttrain_jax.models.streaming import put_sharded

GOLDEN = Path(__file__).parents[1] / "golden" / "heads"
CASES = {
    "llama_score": (HeadConfig(), "sequence"),
    "qwen2_many": (HeadConfig(outputs=3), "sequence"),
    "qwen2_token": (HeadConfig(outputs=2, bias=True), "token"),
    "qwen2_reward": (HeadConfig(layers=2), "sequence"),
    "qwen2_process": (HeadConfig(layers=2, outputs=2), "token"),
}


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer("tiny")


@pytest.fixture(scope="module")
def llama():
    found = load_with_head(GOLDEN / "llama_score")
    return ModelConfig(**found.fields), found.params


def packed(tokens, lengths):
    """The sequences of a padded batch, in one row."""
    sequences = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
    join = lambda parts: np.concatenate(parts).astype(np.int32)[None]  # noqa: E731
    numbers = [np.full(n, i + 1) for i, n in enumerate(lengths)]
    return Batch(
        join(sequences), join([np.arange(n) for n in lengths]), join(numbers), join(numbers)
    )


@pytest.mark.parametrize("name", CASES)
def test_scores_of_transformers_padded_and_packed(name):
    stored = np.load(GOLDEN / name / "scores.npz")
    tokens, lengths = stored["tokens"].astype(np.int32), stored["lengths"]
    found = load_with_head(GOLDEN / name)
    assert (found.head, found.reads) == CASES[name]
    model = make_model(ModelConfig(**found.fields))
    segments = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    padded = Batch(tokens, positions, segments, segments)
    whole = packed(tokens, lengths)
    read = jax.jit(lambda b, p: heads.read(model, found.params, b, p))
    if found.reads == "sequence":
        places = [heads.places(heads.last_tokens(jnp.asarray(b.segments_BT)), n)[0]
                  for b, n in ((padded, 1), (whole, len(lengths)))]  # fmt: skip
        expected = stored["scores"]
    else:
        places = [positions, np.arange(lengths.sum())[None]]
        expected = np.concatenate([s[:n] for s, n in zip(stored["scores"], lengths, strict=True)])
    alone, together = read(padded, places[0]), read(whole, places[1])
    if found.reads == "token":
        alone = np.concatenate([s[:n] for s, n in zip(alone, lengths, strict=True)])
    np.testing.assert_allclose(np.reshape(alone, expected.shape), expected, atol=2e-5)
    np.testing.assert_allclose(together[0], expected, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_we_write_what_transformers_wrote(tmp_path, tiny, name):
    """The same tensors bit for bit, and what its class is made from."""
    found = load_with_head(GOLDEN / name)
    config = ModelConfig(**found.fields)
    template = load_template("tiny", tiny)
    save_with_head(
        tmp_path, config, found.params, found.head, tiny, template, reads=found.reads,
        shard_bytes=20_000,
    )  # fmt: skip
    ours, theirs = open_weights(tmp_path), open_weights(GOLDEN / name)
    assert len({stored.file for stored in ours.values()}) > 2
    assert ours.keys() == theirs.keys()
    for tensor in theirs:
        assert ours[tensor].dtype == theirs[tensor].dtype == "F32"
        np.testing.assert_array_equal(ours[tensor].read(), theirs[tensor].read())
    said, expected = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN / name)
    )
    for key in ("architectures", "model_type", "pad_token_id", "tie_word_embeddings"):
        assert said[key] == expected[key], key
    assert len(said["id2label"]) == found.head.outputs
    if "id2label" in expected:
        assert said["id2label"] == expected["id2label"]
    again = load_with_head(tmp_path)
    assert again._replace(params=None) == found._replace(params=None)
    same = jax.tree.map(np.array_equal, again.params, found.params)
    assert all(jax.tree.leaves(same)) and load_tokenizer(tmp_path).hash == tiny.hash


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_of_bfloat16_with_a_float32_head(tmp_path, tiny, llama, tied):
    """A head keeps its digits; one file becomes two, and an old export leaves nothing behind."""
    config = dataclasses.replace(llama[0], param_dtype="bfloat16", tied=tied)
    backbone = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama[1]["backbone"])
    weight = np.random.default_rng(0).standard_normal((16, 1)).astype(np.float32)
    params = {"backbone": backbone, "head": {"weight": weight}}
    for limit in (20_000, 10**9):
        save_with_head(tmp_path, config, params, HeadConfig(), tiny, shard_bytes=limit)
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 2
    found = load_with_head(tmp_path)
    assert found.fields["param_dtype"] == "bfloat16" and found.fields["tied"] == tied
    for x, y in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    stored = safetensors.numpy.load_file(tmp_path / "model-00002-of-00002.safetensors")
    np.testing.assert_array_equal(stored["score.weight"], weight.T)


def test_published_reward_models_carry_an_lm_head_too(tmp_path):
    shutil.copytree(GOLDEN / "qwen2_process", tmp_path / "prm")
    path = tmp_path / "prm" / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights["lm_head.weight"] = np.zeros((704, 16), np.float32)
    safetensors.numpy.save_file(weights, path)
    found, plain = load_with_head(tmp_path / "prm"), load_with_head(GOLDEN / "qwen2_process")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found.params, plain.params)))


def test_parameters_are_read_into_their_shards():
    mesh = make_mesh(devices=jax.devices()[:1])
    whole = load_with_head(GOLDEN / "qwen2_process")
    model = make_model(ModelConfig(**whole.fields))
    axes = {"backbone": heads.without_lm_head(model.axes()), "head": heads.axes(whole.head)}
    where = shardings(mesh, axes)
    found = load_with_head(GOLDEN / "qwen2_process", put_sharded(where), dtype="bfloat16")
    for x, y, home in zip(*map(jax.tree.leaves, (found.params, whole.params, where)), strict=True):
        assert x.sharding.is_equivalent_to(home, x.ndim)
        np.testing.assert_array_equal(x, y.astype(x.dtype))
    assert found.params["head"]["weight"].dtype == jnp.float32
    assert found.params["backbone"]["embed"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, {},
         r"score\.weight: expected shape \(3, 16\) from config\.json \(3 labels.*got \(1, 16\)"),
        ({}, {"score.weight": None}, r"1 tensors missing: score\.weight"),
        ({}, {"score.bias": (1,)}, r"1 tensors not understood: score\.bias"),
        ({}, {"score.weight": (1, 8)}, r"expected shape \(1, 16\).*got \(1, 8\)"),
        ({"architectures": ["LlamaForRewardModel"]}, {},
         r"4 tensors missing: score\.0\.bias, score\.0\.weight, score\.2\.bias"),
        ({"architectures": ["LlamaForCausalLM"]}, {},
         r"config\.json: the architecture is LlamaForCausalLM, expected one with a head: .*Seq"),
    ],
)  # fmt: skip
def test_folders_that_are_no_such_model(tmp_path, config, tensors, message):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "llama_score", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    path = folder / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    for name, shape in tensors.items():
        weights.pop(name, None)
        if shape:
            weights[name] = np.zeros(shape, np.float32)
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(ValueError, match=message):
        load_with_head(folder)


@pytest.mark.parametrize(
    ("family", "head", "reads", "message"),
    [
        ("llama", HeadConfig(bias=True), "sequence", "ForSequenceClassification: bias False"),
        ("llama", heads.PROCESS, "token", "ForProcessRewardModel: .* families qwen2$"),
        ("qwen2", HeadConfig(layers=2, outputs=3), "sequence", "ForRewardModel: .* outputs 1,"),
        ("olmo2", HeadConfig(outputs=2), "token", "ForTokenClassification: .* families llama, qw"),
        ("llama", HeadConfig(), "step", "reads='step' on a llama; there is: none"),
    ],
)
def test_heads_that_no_class_holds(family, head, reads, message):
    with pytest.raises(ValueError, match=message):
        find_form(family, head, reads)


def test_padding_that_would_hide_the_end(tmp_path, tiny, llama):
    tiny, (config, params) = dataclasses.replace(tiny, pad_id=tiny.eos_id), llama
    with pytest.raises(ValueError, match=f"end-of-sequence token, id {tiny.eos_id}: ForSeq"):
        save_with_head(tmp_path / "x", config, params, HeadConfig(), tiny)
    assert not (tmp_path / "x").exists()

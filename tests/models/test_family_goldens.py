"""Every family against transformers: tests/golden/families, made by oracle/make_family_goldens.py.

Logits of padded, packed and cached sequences, the SFT loss, and the norm of every gradient.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.hf_files import find_family
from posttrain_jax.models.layout import each
from posttrain_jax.models.safetensors import load_pretrained

FOLDERS = sorted((Path(__file__).parents[1] / "golden" / "families").iterdir())
STEPS = [(folder, "none") for folder in FOLDERS] + [
    (folder, "full")
    for folder in FOLDERS  # those whose layers are of different kinds, and the plain one
    if folder.name in ("llama", "gemma3_text", "qwen3_moe", "deepseek_v3")
]
LOGITS = 2e-4


class Family(NamedTuple):
    """A stored checkpoint, and what transformers makes of it."""

    config: ModelConfig
    params: Any
    golden: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def family(request) -> Family:
    fields, params = load_pretrained(request.param, dtype="float32")
    with np.load(request.param / "goldens.npz") as golden:
        return Family(ModelConfig(**fields), params, dict(golden))


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens, positions, segments, cache=None):
    model = make_model(config)
    hidden, cache = model.apply(
        params, tokens, positions_BT=positions, segments_BT=segments, cache=cache
    )
    return model.logits(params, hidden), cache


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(config, params, tokens, positions, segments, weights):
    model = make_model(config)

    def loss(params):
        hidden, _ = model.apply(params, tokens, positions_BT=positions, segments_BT=segments)
        logp, _ = model.logprobs(params, hidden[:, :-1], tokens[:, 1:])
        return -jnp.sum(logp * weights[:, 1:]) / jnp.sum(weights)

    return jax.value_and_grad(loss)(params)


def sequences(golden):
    return [row[:length] for row, length in zip(golden["tokens"], golden["lengths"], strict=True)]


def place(golden, where):
    """[tokens, positions, segments] with each sequence put at its (row, first column)."""
    batch = np.zeros((3, *golden["tokens"].shape), np.int32)
    for number, (sequence, (row, first)) in enumerate(
        zip(sequences(golden), where, strict=True), start=1
    ):
        here = np.s_[row, first : first + len(sequence)]
        for part, values in zip(batch, (sequence, np.arange(len(sequence)), number), strict=True):
            part[here] = values
    return batch


def padded(golden, left):
    longest = golden["tokens"].shape[1]
    return place(golden, [(i, left * (longest - n)) for i, n in enumerate(golden["lengths"])])


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_of_a_padded_batch(family, side):
    batch = padded(family.golden, side == "left")
    logits, _ = forward(family.config, family.params, *batch)
    found = np.asarray(logits)[batch[2] > 0]
    np.testing.assert_allclose(found, family.golden[f"logits_{side}"], atol=LOGITS, rtol=0)


def test_logits_of_packed_sequences_are_those_of_each_alone(family):
    first, second, _ = family.golden["lengths"]
    batch = place(family.golden, [(2, 0), (0, 1), (0, 1 + second)])
    assert first == batch.shape[2] and (batch[2][1] == 0).all()
    logits, _ = forward(family.config, family.params, *batch)
    found = np.concatenate([np.asarray(logits)[batch[2] == n] for n in (1, 2, 3)])
    np.testing.assert_allclose(found, family.golden["logits_right"], atol=LOGITS, rtol=0)


def test_cached_decoding(family):
    """Prompts of three lengths, padded on the left, then the likeliest token again and again."""
    golden, config = family.golden, family.config
    batch = padded(golden, left=True)
    new, length = golden["greedy"].shape[1], batch.shape[2]
    cache = make_model(config).init_cache(len(batch[0]), length + new)
    logits, cache = forward(config, family.params, *batch, cache)
    prompt = np.asarray(logits)[batch[2] > 0]
    np.testing.assert_allclose(prompt, golden["logits_left"], atol=LOGITS, rtol=0)
    positions, ones = golden["lengths"][:, None], np.ones((len(batch[0]), 1), np.int32)
    for step in range(new):
        last = np.asarray(logits)[:, -1]
        np.testing.assert_allclose(last, golden["greedy_logits"][:, step], atol=LOGITS, rtol=0)
        token = last.argmax(-1)
        np.testing.assert_array_equal(token, golden["greedy"][:, step])
        logits, cache = forward(
            config, family.params, token[:, None].astype(np.int32), positions + step, ones, cache
        )


@pytest.mark.parametrize(
    ("family", "remat"), STEPS, indirect=["family"], ids=lambda x: getattr(x, "name", x)
)
def test_loss_and_gradients_of_one_sft_step(family, remat):
    golden = family.golden
    config = dataclasses.replace(family.config, remat=remat)
    loss, gradient = loss_and_gradient(
        config, family.params, *padded(golden, left=False), golden["weights"]
    )
    assert float(loss) == pytest.approx(float(golden["loss"]), abs=1e-4)
    leaves = {
        "/".join(step.key for step in path): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree.leaves_with_path(gradient)
    }
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves.values()))
    assert norm == pytest.approx(float(golden["grad_norm"]), rel=1e-4)
    found = {
        name: float(np.linalg.norm(leaves[path][index]))
        for path, index, name, _ in each(find_family(config.family, "").WEIGHTS, config)
    }
    expected = dict(zip(golden["grad_names"].tolist(), golden["grad_norms"].tolist(), strict=True))
    # What only chooses, such as a router's correction bias, is no parameter in transformers.
    assert {name for name in found if name not in expected and found[name] != 0.0} == set()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4), name

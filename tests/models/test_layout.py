"""Layouts by hand, and which tensors a config has."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.config import Experts
from posttrain_jax.models.gguf import WEIGHTS as GGUF_WEIGHTS
from posttrain_jax.models.layout import (
    Opened,
    check_names,
    each,
    file_shape,
    full_name,
    lead,
    letter_sizes,
    read_tree,
    relayout,
    tensor_names,
)
from posttrain_jax.models.llama import WEIGHTS
from posttrain_jax.models.stored import Stored
from posttrain_jax.models.streaming import put_numpy

CONFIG = ModelConfig(
    vocab_size=10, layers=2, width=6, heads=4, kv_heads=2, head_dim=4, ffn=5, tied=False
)
SIZES = letter_sizes(CONFIG)


def test_relayout_by_hand():
    stored = np.arange(16 * 6).reshape(16, 6)
    ours = relayout("q", stored, "(N H) D -> D N H", SIZES, save=False)
    assert ours.shape == (6, 4, 4)
    assert ours[5, 2, 3] == stored[2 * 4 + 3, 5]
    permuted = relayout("q", stored, "(N J R) D -> D N (R J)", SIZES, save=False)
    # Within a head the file has (pair j, half r) in this order; ours has half r first.
    assert permuted[5, 2, 1 * 2 + 0] == stored[2 * 4 + 0 * 2 + 1, 5]


@pytest.mark.parametrize("table", [WEIGHTS, GGUF_WEIGHTS], ids=["hf", "gguf"])
def test_saving_undoes_loading(table):
    rng = np.random.default_rng(0)
    shapes = {"embed": (10, 6), "head": (6, 10), "final_norm": (6,), "o": (4, 4, 6), "q": (6, 4, 4)}
    for key, (name, layout) in table.items():
        if key.split("/")[-1] not in shapes:
            continue
        ours = rng.standard_normal(shapes[key.split("/")[-1]])
        stored = relayout(name, ours, layout, SIZES, save=True)
        np.testing.assert_array_equal(relayout(name, stored, layout, SIZES, save=False), ours)


def test_wrong_shape_names_the_tensor():
    with pytest.raises(ValueError, match=r"tensor w: expected shape \(16, 6\).*got \(6, 16\)"):
        relayout("w", np.zeros((6, 16)), "(N H) D -> D N H", SIZES, save=False)


@pytest.mark.parametrize("tied", [True, False])
def test_tree_has_the_models_shapes(tied):
    config = dataclasses.replace(CONFIG, tied=tied, param_dtype="bfloat16")
    opened = opened_zeros(config, WEIGHTS)
    params = read_tree(opened, config, put_numpy)
    expected = jax.eval_shape(make_model(config).init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )


def opened_zeros(config, table):
    """A checkpoint of zeros with the tensors that the table names."""
    sizes = letter_sizes(config)
    tensors = {}
    for _, _, name, layout in each(table, config):
        shape = file_shape(layout, sizes)
        tensors[name] = Stored(Path("w"), "F32", shape, lambda shape=shape: np.zeros(shape, "f4"))
    return Opened("here", {}, table, tensors, {})


def test_layers_behind_dense_ones_and_experts_have_their_numbers():
    """Layer 1 of a model with one dense layer is entry 0 of "layers"; every expert has a name."""
    experts = Experts(count=2, active=1, ffn=3, first_dense=1)
    config = dataclasses.replace(CONFIG, layers=3, experts=experts)
    name = "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
    assert full_name("layers/expert_up", name, config, (0, 1)) == (
        "model.layers.1.mlp.experts.1.up_proj.weight"
    )
    assert full_name("dense_layers/up", "l{layer}", config, (0,)) == "l0"
    assert full_name("layers/up", "l{layer}", config, (1,)) == "l2"
    assert full_name("embed", "e", config, ()) == "e"
    assert (lead(name), lead("l{layer}"), lead("e")) == (2, 1, 0)


def test_a_parameter_without_a_row_is_an_error():
    table = {path: row for path, row in WEIGHTS.items() if path != "layers/up"}
    with pytest.raises(ValueError, match="llama table of weights has no row for layers/up"):
        tensor_names(table, CONFIG)
    biased = dataclasses.replace(CONFIG, qkv_bias=True)
    with pytest.raises(ValueError, match="no row for layers/k_bias, layers/q_bias, layers/v_bias"):
        tensor_names(WEIGHTS, biased)


def test_wrong_tensors_are_named_before_anything_is_read():
    opened = opened_zeros(CONFIG, WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    unread = {n: t._replace(read=lambda: pytest.fail("read")) for n, t in opened.tensors.items()}
    wrong = [
        (
            unread[name]._replace(shape=(6, 5)),
            r"shape \(5, 6\) from the model's config, got \(6, 5\)",
        ),
        (unread[name]._replace(dtype="I64"), r"one of the types F64, F32, F16, BF16, got I64"),
    ]
    for changed, message in wrong:
        broken = opened._replace(tensors={**unread, name: changed})
        with pytest.raises(ValueError, match=rf"^w: tensor {name}: expected {message}"):
            read_tree(broken, CONFIG, put_numpy)


def test_check_names():
    check_names("f", ["a", "b"], {"b": 1, "a": 2})
    with pytest.raises(ValueError, match="f: 1 tensors missing: a"):
        check_names("f", ["a", "b"], ["b"])
    with pytest.raises(ValueError, match="f: 2 tensors not understood: c, d"):
        check_names("f", ["b"], ["b", "d", "c"])

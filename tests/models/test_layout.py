"""Layouts by hand, lazy leaves, and loading straight into shards."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.gguf import WEIGHTS as GGUF_WEIGHTS
from posttrain_jax.models.layout import (
    Leaf,
    check_names,
    letter_sizes,
    put_numpy,
    read_tree,
    relayout,
    tensor_names,
)
from posttrain_jax.models.llama import WEIGHTS

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


def test_leaf_reads_only_the_layers_it_is_asked_for():
    full, seen = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5), []

    def read(layer):
        seen.append(layer)
        return full[layer]

    leaf = Leaf(full.shape, np.dtype("float16"), read, stacked=True)
    np.testing.assert_array_equal(leaf[1:3, :, 2:4], full[1:3, :, 2:4])
    assert seen == [1, 2]
    np.testing.assert_array_equal(leaf[3], full[3])
    np.testing.assert_array_equal(np.asarray(leaf), full)
    assert np.asarray(leaf).dtype == np.float16 == leaf[0].dtype


@pytest.mark.parametrize("tied", [True, False])
def test_tree_has_the_models_shapes(tied):
    config = dataclasses.replace(CONFIG, tied=tied)
    stored = {}

    def read(name):
        layout = next(row[1] for row in WEIGHTS.values() if row[0].format(layer=1) == name
                      or row[0].format(layer=0) == name)  # fmt: skip
        sides = layout.split(" -> ")
        shape = [SIZES[letter] for letter in sides[1].split()]
        return stored.setdefault(name, relayout(name, np.zeros(shape), layout, SIZES, save=True))

    params = read_tree(WEIGHTS, config, read, put_numpy, "bfloat16")
    expected = jax.eval_shape(make_model(config).init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: x.shape, expected)
    assert jax.tree.map(lambda x: x.shape, params) == shapes
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}
    assert sorted(stored) == sorted(tensor_names(WEIGHTS, config))


def test_check_names():
    check_names("f", ["a", "b"], {"b": 1, "a": 2})
    with pytest.raises(ValueError, match="f: 1 tensors missing: a"):
        check_names("f", ["a", "b"], ["b"])
    with pytest.raises(ValueError, match="f: 2 tensors not understood: c, d"):
        check_names("f", ["b"], ["b", "d", "c"])


EIGHT_DEVICES = """
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from posttrain_jax.mesh import make_mesh, shardings
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.layout import put_sharded
from posttrain_jax.models.safetensors import load_pretrained, save_pretrained
from posttrain_jax.data.tokenizer import load_tokenizer

config = ModelConfig(vocab_size=704, layers=3, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32)
model = make_model(config)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(0)
params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), shapes)
save_pretrained(sys.argv[1], config, params, load_tokenizer("tiny"))
where = shardings(make_mesh({"fsdp": 4, "tensor": 2}), model.axes())
fields, loaded = load_pretrained(sys.argv[1], put_sharded(where))
jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, loaded))
assert jax.tree.map(lambda x, s: x.sharding == s, loaded, where) == jax.tree.map(
    lambda x: True, params)
q = loaded["layers"]["q"]
assert {s.data.shape for s in q.addressable_shards} == {(3, 4, 2, 8)}, q.sharding
# Saved again from the shards: the same bytes.
save_pretrained(sys.argv[2], config, loaded, load_tokenizer("tiny"))
print("same")
"""


def test_arrays_are_born_sharded_on_eight_devices(tmp_path):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    command = [sys.executable, "-c", EIGHT_DEVICES, *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr[-2000:]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]

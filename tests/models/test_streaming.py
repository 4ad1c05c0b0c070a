"""Leaves are read tensor by tensor, each device's part once; arrays are born sharded."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from posttrain_jax.mesh import make_mesh
from posttrain_jax.models.streaming import Leaf, put_lazy, put_numpy, put_sharded


@pytest.mark.parametrize("lead", [0, 1, 2])
def test_a_leaf_is_put_together_from_its_tensors(lead):
    full, seen = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5), []

    def read(*index):
        seen.append(index)
        return full[index]

    leaf = Leaf(full.shape, np.dtype("float16"), lead, read)
    assert put_lazy(("a",), leaf) is leaf and not seen
    whole = put_numpy(("a",), leaf)
    np.testing.assert_array_equal(whole, full)
    assert whole.dtype == np.float16
    assert seen == list(np.ndindex(full.shape[:lead]))
    where = {"a": NamedSharding(make_mesh(devices=jax.devices()[:1]), PartitionSpec())}
    seen.clear()
    placed = put_sharded(where)(("a",), leaf)
    np.testing.assert_array_equal(placed, full)
    assert placed.sharding == where["a"] and placed.dtype == np.float16
    assert seen == list(np.ndindex(full.shape[:lead]))


EIGHT_DEVICES = """
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from jax.sharding import NamedSharding, PartitionSpec as P
from posttrain_jax.mesh import make_mesh, shardings
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.safetensors import load_pretrained, save_pretrained
from posttrain_jax.models.streaming import Leaf, put_sharded
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

# Experts split over two devices, their widths over two, two devices hold the same: every expert's
# tensor is read once for its half of the devices, in the order in which the halves fill up.
full, seen = np.arange(2 * 4 * 6 * 5.0, dtype=np.float32).reshape(2, 4, 6, 5), []
def read(layer, expert):
    seen.append((layer, expert))
    return full[layer, expert]
mesh = make_mesh({"data": 2, "fsdp": 1, "tensor": 2, "expert": 2})
home = NamedSharding(mesh, P(None, "expert", "tensor"))
array = put_sharded({"e": home})(("e",), Leaf(full.shape, full.dtype, 2, read))
np.testing.assert_array_equal(array, full)
assert array.sharding == home
assert {s.data.shape for s in array.addressable_shards} == {(2, 2, 3, 5)}
assert seen == [(l, e) for l in range(2) for e in (0, 2, 1, 3)], seen
print("same")
"""


def test_arrays_are_born_sharded_on_eight_devices(tmp_path):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    command = [sys.executable, "-c", EIGHT_DEVICES, *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr[-2000:]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]

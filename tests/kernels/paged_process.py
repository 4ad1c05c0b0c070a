"""Run by test_paged_tpu.py in processes of their own: `mesh` (4 CPU devices) or `compile` (TPU).

`compile` needs libtpu but no TPU: it compiles ahead of time for devices that are only described.
"""

import functools
import sys

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from posttrain_jax.kernels import paged_tpu, paged_write
from posttrain_jax.kernels.paged import Where, paged_attention, write
from posttrain_jax.mesh import make_mesh, spec
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.rollout import continuous, spread
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampling import Sampling

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def mesh() -> None:
    """Two shards of two rows each on data=2 x tensor=2, pages on shards and heads split."""
    for module, name in ((paged_tpu, "parts"), (paged_write, "write_pages")):
        setattr(module, name, functools.partial(getattr(module, name), interpret=True))
    rng = np.random.default_rng(0)
    noise = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    arrays = [noise(*x) for x in ((6, 2, 8, 4), (6, 2, 4, 8), (2, 2, 8, 4), (2, 2, 4, 8))]
    owner, start, page = [1, 2, 1, 0, 0, 1], [0, 0, 4, 0, 4, 0], [[2], [1], [1], [2]]
    numbers = ([5, 2, 5, 3], page, [[1], [2], [1], [3]], owner, start, [0] * 4, [0, 1] * 2,
               [[0, 1]] * 2)  # fmt: skip
    where = Where(*(np.array(x, np.int32) for x in numbers), np.arange(4) >= [[1], [3]])
    query, new = noise(4, 1, 4, 8), noise(4, 1, 2, 8)

    def step(query, new, arrays, where, impl):
        k, v, *prompts = arrays
        k = write(k, new, where, keys=True, impl=impl)
        v = write(v, new, where, keys=False, impl=impl)
        return k, v, paged_attention(query, k, v, *prompts, where, impl=impl)

    def run(impl):
        inside = functools.partial(step, impl=impl)
        given, rows = (query, new, arrays, where), spread.rows()
        return jax.jit(lambda *given: spread.over_shards(inside, rows, rows, *given)).lower(*given)

    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 1, "tensor": 2})):
        kernel, xla = (run(impl).compile() for impl in ("splash", "xla"))
        given = (query, new, arrays, where)
        for one, other in zip(kernel(*given), xla(*given), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6)
        assert one.sharding.spec[2] == "tensor", one.sharding
        found = [name for name in COLLECTIVES if name in kernel.as_text()]
        assert not found, f"attention communicates: {found}"


def compile_one(name: str, sizes: dict, heads: int, kv_heads: int, width: int) -> None:
    """A whole queue, of one layer, on the devices of one topology."""
    continuous.PAGE = continuous.TPU_PAGE
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    config = ModelConfig(
        vocab_size=256, layers=1, width=256, heads=heads, kv_heads=kv_heads, head_dim=width,
        ffn=256, max_length=8192, dtype="bfloat16", param_dtype="bfloat16",
        attention_impl="splash",
    )  # fmt: skip
    model, key = make_model(config), jax.random.key(0)
    described = make_mesh(sizes, devices)
    whole = NamedSharding(described, PartitionSpec())
    rows = NamedSharding(described, PartitionSpec(spec("batch")[0]))
    shape = lambda x, place=whole: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
    params = jax.tree.map(shape, jax.eval_shape(model.init, key))
    ways = len(devices) // sizes.get("tensor", 1)
    tokens = shape(np.zeros((2 * ways, 512), np.int32), rows)
    asked = Asked(tokens, tokens, shape(key), shape(np.zeros(8 * ways, np.uint32), rows))
    rules = Rules(Sampling(stop=(1,)), 4096, 4)
    holds = continuous.Sizes(slots=4, pages=2048, entries=2, prefill=2, threshold=1)
    with jax.set_mesh(described):
        program = continuous.sample_queue.trace(model, params, asked, rules, holds).lower()
        text = program.as_text()
        assert text.count("paged_attention") >= 2 and text.count("paged_write") >= 2
        held = program.compile().memory_analysis().temp_size_in_bytes
    pool = 2 * holds.pages * kv_heads * 128 * 128 * 2 // sizes.get("tensor", 1)
    assert held < 1.2 * pool, f"{held} bytes of temporaries; the pool has {pool}: it is copied"


if __name__ == "__main__":
    if sys.argv[1] == "mesh":
        mesh()
    else:
        compile_one("v5e:1x1", {"fsdp": 1}, 8, 4, 128)
        compile_one("v5p:2x2x1", {"data": 2, "fsdp": 1, "tensor": 2}, 8, 4, 128)
    print("passed")

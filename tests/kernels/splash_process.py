"""Run by test_splash.py in processes of their own: `mesh` (4 CPU devices) or `compile` (TPU).

`compile` needs libtpu but no TPU: it compiles ahead of time for devices that are only described.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from posttrain_jax.kernels.attention import attention_ref
from posttrain_jax.kernels.splash import attention_splash
from posttrain_jax.mesh import make_mesh, spec

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def check_local(program: str) -> None:
    """Rows and heads are independent: no device may talk to another."""
    found = [name for name in COLLECTIVES if name in program]
    assert not found, f"attention communicates: {found}"


def mesh() -> None:
    """Numbers on data=2 x tensor=2, rows and heads split."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 20, n, 8)).astype(np.float32) for n in (4, 2, 2))
    segments = np.ones((2, 20), np.int32)
    segments[0, :7] = 2
    want = attention_ref(q, k, v, segments)
    devices = make_mesh({"data": 2, "fsdp": 1, "tensor": 2})
    with jax.set_mesh(devices):
        rows = NamedSharding(devices, spec("batch", None, "heads", None))
        args = [jax.device_put(x, rows) for x in (q, k, v)]
        args.append(jax.device_put(segments, NamedSharding(devices, spec("batch", None))))
        run = jax.jit(lambda *x: attention_splash(*x, interpret=True))
        out = run(*args)
        assert out.sharding.is_equivalent_to(rows, 4), out.sharding
        assert out.addressable_shards[0].data.shape == (1, 20, 2, 8)
        check_local(run.lower(*args).compile().as_text())
    np.testing.assert_allclose(out, want, atol=2e-6)


def compile_one(name: str, sizes: dict, heads: int, kv_heads: int, width: int) -> None:
    """Forward and backward of T = 2048 in bfloat16 on the devices of one topology."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    described = make_mesh(sizes, devices)
    with jax.set_mesh(described):
        by_head = NamedSharding(described, spec("batch", None, "heads", None))
        by_row = NamedSharding(described, PartitionSpec(by_head.spec[0]))
        shape = lambda n: jax.ShapeDtypeStruct(  # noqa: E731
            (2, 2048, n, width), jnp.bfloat16, sharding=by_head
        )
        segments = jax.ShapeDtypeStruct((2, 2048), jnp.int32, sharding=by_row)

        def step(q, k, v, cotangent, segments):
            out, vjp = jax.vjp(lambda *x: attention_splash(*x, segments), q, k, v)
            return out, vjp(cotangent)

        shapes = shape(heads), shape(kv_heads), shape(kv_heads), shape(heads), segments
        program = jax.jit(step).trace(*shapes).lower().compile()
    text = program.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2, "forward and fused backward"
    check_local(text)
    square = 2 * heads * 2048 * 2048 * 4 // len(devices)  # bytes of the scores on one device
    held = program.memory_analysis().temp_size_in_bytes
    assert held < square / 2, f"{held} bytes of temporaries; the scores would be {square}"


if __name__ == "__main__":
    if sys.argv[1] == "mesh":
        mesh()
    else:
        compile_one("v5e:1x1", {"fsdp": 1}, 9, 3, 64)
        compile_one("v5e:2x2", {"fsdp": 2, "tensor": 2}, 8, 2, 128)
    print("passed")

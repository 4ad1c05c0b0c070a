import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from posttrain_jax.kernels.attention import attention_ref
from posttrain_jax.kernels.axes import BATCH_AXES, HEAD_AXES, VOCAB_AXES, dividing_axes
from posttrain_jax.kernels.splash import attention_splash, block_sizes
from posttrain_jax.mesh import RULES

SILENT_TPU = {  # libtpu without a TPU: ask no metadata server, log nothing, share the lock file
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def run_process(what, **env):
    """splash_process.py in an environment with nothing else of ours in it."""
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | env
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("splash_process.py")
    done = subprocess.run(
        [sys.executable, str(script), what], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.stdout == "passed\n", done.stderr[-3000:]


def test_interpreted_kernel_is_the_reference(qkv):
    q, k, v, cotangent, segments = qkv(2, 150, 4, 2, 16)  # two blocks of 128, the second padded
    real = segments != 0

    def both_ways(fn):
        run = lambda q, k, v: (lambda out, vjp: (out, *vjp(cotangent)))(  # noqa: E731
            *jax.vjp(lambda *x: fn(*x, segments), q, k, v)
        )
        return [np.asarray(x) for x in jax.jit(run)(q, k, v)]

    got = both_ways(lambda *x: attention_splash(*x, interpret=True))
    for g, w in zip(got, both_ways(attention_ref), strict=True):
        assert g.shape == w.shape and np.isfinite(g).all()
        np.testing.assert_allclose(g[real], w[real], atol=1e-5)


@pytest.mark.parametrize(
    ("length", "block", "padded"),
    [
        (1, 128, 128),
        (128, 128, 128),
        (150, 128, 256),  # 256 would pad by 106, more than an eighth
        (250, 256, 256),
        (600, 128, 640),  # 256 would pad by 168
        (2048, 1024, 2048),
        (2100, 256, 2304),  # 1024 would pad by 972, 512 by 460
        (16384, 1024, 16384),
    ],
)
def test_block_sizes(length, block, padded):
    sizes, got = block_sizes(length)
    assert (sizes.block_q, sizes.block_kv, got) == (block, block, padded)
    assert sizes.block_kv_compute == min(block, 512)
    assert sizes.use_fused_bwd_kernel == (padded // block <= 8)


@pytest.mark.parametrize(
    ("length", "width", "kernels"), [(200, 16, 2), (2048, 64, 2), (2048, 128, 2), (1300, 96, 3)]
)
def test_lowers_for_tpu_without_libtpu(length, width, kernels):
    """Mosaic's rules on block shapes hold at lowering; 1300 takes 11 blocks, so dq apart."""
    array = lambda n: jax.ShapeDtypeStruct((2, length, n, width), jnp.bfloat16)  # noqa: E731
    segments = jax.ShapeDtypeStruct((2, length), jnp.int32)
    loss = lambda *x: attention_splash(*x).astype(jnp.float32).sum()  # noqa: E731
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(array(4), array(2), array(2), segments)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == kernels


def test_axes_are_those_of_the_rules():
    assert RULES["batch"] == BATCH_AXES
    assert (RULES["heads"],) == (RULES["kv_heads"],) == HEAD_AXES
    assert (RULES["vocab"],) == VOCAB_AXES


def test_axes_split_only_what_they_divide():
    assert dividing_axes(BATCH_AXES, 8) == ()  # no mesh
    types = (AxisType.Auto, AxisType.Auto, AxisType.Manual)
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"), types)):
        assert dividing_axes(BATCH_AXES, 8) == ("data", "fsdp")
        assert dividing_axes(BATCH_AXES, 4) == ()  # 8 devices: whole on each
        assert dividing_axes(HEAD_AXES, 4) == ()  # already split by an outer shard_map
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 2), ("data", "expert"), types[:2])):
        assert dividing_axes(BATCH_AXES, 8) == ("expert",)


def test_heads_that_do_not_group_are_named(qkv):
    q, k, v, _, segments = qkv(1, 4, 4, 3, 8)
    with pytest.raises(ValueError, match="4 query heads are not a multiple of 3 kv heads"):
        attention_splash(q, k, v, segments)


def test_four_devices_need_no_communication():
    run_process("mesh", XLA_FLAGS="--xla_force_host_platform_device_count=4")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_compiles_for_tpu():
    run_process("compile", **SILENT_TPU)

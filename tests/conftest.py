"""A very small decoder with random weights, and the same decoder in numpy float64.

The numpy one shares no code with the package: one sequence at a time, loops over layers and heads,
rotary positions as complex numbers, no cache, no padding.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from posttrain_jax.api import Model, Params
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, make_model

# Compiling is most of what the tests take, and XLA's older code generator needs a fifth of the time
# for programs as small as these. It is gone from jax 0.12, which refuses the flag.
QUICK_XLA = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if jax.__version_info__ < (0, 11)
    else ""
)

SMALL = ModelConfig(
    vocab_size=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, max_length=32,
    pad_id=0,
)  # fmt: skip


class Small(NamedTuple):
    """A model, its parameters on a mesh of one device, and the same as numpy float64."""

    model: Model
    params: Params
    exact: Params
    mesh: Mesh


def random_params(model: Model, seed: int) -> Params:
    """Weights large enough that every part of the model shows in its logits."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        return 1 + 0.2 * normal if "norm" in jax.tree_util.keystr(path) else 0.3 * normal

    return jax.tree.map_with_path(draw, shapes)


def _use_quick_xla():
    """XLA reads its flags once; what tests start as processes of their own should not see them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {QUICK_XLA}".strip())
        jax.devices()


_use_quick_xla()


@pytest.fixture(scope="module", autouse=True)
def quick_compile():
    """Compile in a third of the time, into slower programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def quick_xla() -> str:
    """XLA_FLAGS that compile quickly, for processes of their own."""
    return QUICK_XLA


@pytest.fixture(scope="session")
def on_eight_devices():
    """`(script, *arguments, **environment) -> the JSON that it printed last`, in a process of its
    own that has eight virtual devices."""

    def run(script: Path, *arguments: str, **environment: str):
        flags = f"--xla_force_host_platform_device_count=8 {QUICK_XLA}"
        devices = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        package = {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False,
            env={**os.environ, **devices, **quick, **package, **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def make_small():
    """`(seed, **changes of the config) -> Small`."""

    def make(seed: int = 0, **changes) -> Small:
        model = make_model(dataclasses.replace(SMALL, **changes))
        mesh = make_mesh(devices=jax.devices()[:1])
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        drawn = jax.tree.map(np.float32, random_params(model, seed))
        exact = jax.tree.map(np.float64, drawn)
        return Small(model, jax.device_put(drawn, where), exact, mesh)

    return make


@pytest.fixture(scope="session")
def small(make_small) -> Small:
    """Grouped-query attention (4 heads on 2), tied embeddings, padding id 0."""
    return make_small()


@pytest.fixture(scope="session")
def hidden_float64():
    """`(exact params, config, tokens) -> hidden [T, D]` of one sequence."""
    return _hidden


@pytest.fixture(scope="session")
def logp_float64():
    """`(exact params, config, tokens, temperature=1) -> log-probs [T, V]` of what comes next."""

    def logp(params, config, tokens, temperature=1.0):
        head = params["embed"].T if config.tied else params["head"]
        logits = _hidden(params, config, tokens) @ head / temperature
        if config.pad_id is not None:
            logits[:, config.pad_id] = -np.inf
        top = logits.max(axis=1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))

    return logp


def _hidden(params, config, tokens):
    x = params["embed"][np.asarray(tokens)]
    for number in range(config.layers):
        layer = {name: stacked[number] for name, stacked in params["layers"].items()}
        y = _norm(x, layer["attn_norm"], config.norm_eps)
        for head in range(config.heads):
            shared = head * config.kv_heads // config.heads
            q = _rotate(y @ layer["q"][:, head], config.rope_theta)
            k = _rotate(y @ layer["k"][:, shared], config.rope_theta)
            x = x + _attend(q, k, y @ layer["v"][:, shared]) @ layer["o"][head]
        y = _norm(x, layer["mlp_norm"], config.norm_eps)
        gate = y @ layer["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["up"])) @ layer["down"]
    return _norm(x, params["final_norm"], config.norm_eps)


def _norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weight


def _rotate(x, theta):
    """Component i and i + H/2 as one complex number, turned by position * theta^(-2i/H)."""
    half = x.shape[1] // 2
    turns = np.outer(np.arange(len(x)), theta ** (-2.0 * np.arange(half) / x.shape[1]))
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * turns)
    return np.concatenate([turned.real, turned.imag], axis=1)


def _attend(q, k, v):
    out = np.empty_like(v)
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] / np.sqrt(q.shape[1])
        probs = np.exp(scores - scores.max())
        out[t] = probs / probs.sum() @ v[: t + 1]
    return out

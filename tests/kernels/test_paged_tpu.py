"""The TPU's kernels of paged attention, interpreted: against XLA's, and float64 of each row."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.kernels import paged_tpu, paged_write
from posttrain_jax.kernels.paged import Where, kept, paged_attention, write
from posttrain_jax.kernels.paged_steps import FAR, steps_of
from posttrain_jax.kernels.paged_tpu import blocking

pytestmark = pytest.mark.usefixtures("quick_compile")
ROWS, KV, PAGE, PAGES = 5, 2, 8, 16
PLACES = (0, 7, 20, 15, 0)  # of the first new token; the last row is nobody's and has no pages
ENTRIES, RANKS = (0, 0, 0, 2, 0), (1, 0, 2, 1, 0)
LENGTHS, PROMPT = (13, 9, 0), 16  # the second entry is nobody's
LIVE = 4
SILENT_TPU = {  # as in test_splash.py
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Kernels interpreted, pieces of 8 places, two blocks a step, prompts' groups split."""
    monkeypatch.setattr(paged_tpu, "LANES", PAGE)
    monkeypatch.setattr(paged_tpu, "MAX_BLOCKS", 2)
    monkeypatch.setattr(paged_tpu, "MAX_QUERIES", 12)  # 3 members of 4, but not of 10
    monkeypatch.setattr(paged_write, "PIECE", 4)
    for module, name in ((paged_tpu, "parts"), (paged_write, "write_pages")):
        interpreted = functools.partial(getattr(module, name), interpret=True)
        monkeypatch.setattr(module, name, interpreted)


def case(count, group, width):
    """(where, query, the four arrays): pages in no order, what is nobody's is noise."""
    rng = np.random.default_rng(0)
    noise = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    owner, start, page = np.full(PAGES, ROWS), np.zeros(PAGES, int), np.full((ROWS, count), PAGES)
    free = iter(rng.permutation(PAGES))
    for row, place in enumerate(PLACES[:LIVE]):
        for first in range(0, place + count, PAGE):
            at = next(free)
            owner[at], start[at] = row, first
            page[row, first - place <= np.arange(count)] = at
    member = np.full((3, 3), ROWS)
    member[ENTRIES[:LIVE], RANKS[:LIVE]] = np.arange(LIVE)
    valid = np.arange(PROMPT) >= PROMPT - np.array(LENGTHS)[:, None]
    offset = (np.array(PLACES)[:, None] + np.arange(count)) % PAGE
    numbers = (PLACES, page, offset, owner, start, ENTRIES, RANKS, member)
    where = Where(*(jnp.asarray(x, jnp.int32) for x in numbers), jnp.asarray(valid))
    arrays = (
        noise(PAGES, KV, width, PAGE), noise(PAGES, KV, PAGE, width),
        noise(3, KV, width, PROMPT), noise(3, KV, PROMPT, width),
    )  # fmt: skip
    return where, noise(ROWS, count, KV * group, width), arrays


def of_row(where, arrays, row, most):
    """All keys and values of a row, its prompt's first, [S, K, H] each in float64."""
    k_ZKHO, v_ZKOH, k_UKHW, v_UKWH = (np.float64(x) for x in arrays)
    entry, pages = ENTRIES[row], np.flatnonzero(np.asarray(where.owner_Z) == row)
    pages = pages[np.argsort(np.asarray(where.start_Z)[pages])]
    padding = PROMPT - LENGTHS[entry]
    keys = [k_UKHW[entry, :, :, padding:], *k_ZKHO[pages]]
    values = [v_UKWH[entry, :, padding:], *v_ZKOH[pages]]
    keys = np.concatenate(keys, axis=2).transpose(2, 0, 1)
    values = np.concatenate(values, axis=1).swapaxes(0, 1)
    return keys[: LENGTHS[entry] + most], values[: LENGTHS[entry] + most]


@pytest.mark.parametrize(
    ("count", "group", "width", "window", "dtype"),
    [(1, 4, 64, 0, ""), (5, 2, 128, 11, ""), (5, 1, 64, 3, "int8")],
)
def test_it_is_the_attention_of_each_row(count, group, width, window, dtype):
    where, q, arrays = case(count, group, width)
    given = [kept(jnp.asarray(x), dtype, keys=i % 2 == 0) for i, x in enumerate(arrays)]
    run = jax.jit(functools.partial(paged_attention, window=window), static_argnames="impl")
    found, other = (np.asarray(run(q, *given, where, impl=x)) for x in ("splash", "xla"))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:LIVE], other[:LIVE], atol=2e-6)
    if dtype:
        return  # what rounding does is test_paged.py's
    for row, new, head in np.ndindex(LIVE, count, KV * group):
        keys, values = of_row(where, arrays, row, PLACES[row] + new + 1)
        keys, values = keys[-window:, head // group], values[-window:, head // group]
        scores = keys @ np.float64(q[row, new, head]) * width**-0.5
        weights = np.exp(scores - scores.max())
        exact = weights / weights.sum() @ values
        np.testing.assert_allclose(found[row, new, head], exact, atol=2e-6)


def test_each_block_that_is_seen_has_one_step_and_no_other_has_any():
    rng = np.random.default_rng(1)
    groups, size, many = 6, 4, 3
    owner = rng.choice([0, 1, 2, 4, 5, groups], 40, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
    start = rng.integers(-9, 9, 40) * size
    first = rng.integers(-30, 0, (groups, 2))
    seen = np.stack([first, first + rng.integers(0, 30, (groups, 2))], axis=-1)
    seen[5] = (1, -FAR)  # sees nothing
    wanted = {
        (g, z) for z, g in enumerate(owner)
        if g < groups and start[z] <= seen[g, :, 1].max() and start[z] + size > seen[g, :, 0].min()
    }  # fmt: skip
    assert 10 < len(wanted) < 30
    run = jax.jit(lambda owner, start, seen: steps_of(owner, start, size, seen, many))
    steps = jax.device_get(run(owner, start, seen))
    counts = np.bincount([g for g, _ in wanted], minlength=groups)
    assert steps.number == np.maximum(1, -(-counts // many)).sum() <= len(steps.group_S)
    group, block = steps.group_S[: steps.number], steps.block_SJ[: steps.number]
    begin = steps.start_SJ[: steps.number]
    assert sorted(set(group)) == list(range(groups)) and (np.diff(group) >= 0).all()
    real = [(group[s], block[s, j]) for s, j in np.argwhere(begin < FAR)]
    assert set(real) == wanted and len(real) == len(wanted)
    for s, j in np.ndindex(block.shape):
        if begin[s, j] < FAR:
            assert begin[s, j] == start[block[s, j]]
        elif (begin[:s, j] < FAR).any():
            assert block[s, j] == block[s - 1, j], "it is not read again"


@pytest.mark.parametrize(("heads", "queries", "size"), [(8, 4, 128), (3, 15, 128), (8, 1024, 128)])
def test_blocks_fit_the_chip(heads, queries, size):
    each, many = blocking(heads, queries, 2**16, size)
    assert heads % each == 0 and each <= max(1, heads // 2) and 1 <= many <= 2
    assert each * many * 2**16 <= paged_tpu.STEP_BYTES
    assert each * many * queries * size <= paged_tpu.MAX_SCORES


@pytest.mark.parametrize(("count", "dtype"), [(1, "bfloat16"), (5, "int8"), (5, "")])
def test_tokens_are_written_as_by_xla(count, dtype):
    where, _, arrays = case(count, 1, 64)
    page_BT = where.page_BT.at[1, 1:].set(PAGES)  # one row has fewer
    where = where._replace(page_BT=page_BT)
    new = np.random.default_rng(2).standard_normal((ROWS, count, KV, 64)).astype(np.float32)
    before = [kept(jnp.asarray(x), dtype, keys=i == 0) for i, x in enumerate(arrays[:2])]

    @functools.partial(jax.jit, static_argnames="impl")
    def put(where, impl):
        return [write(x, new, where, keys=i == 0, impl=impl) for i, x in enumerate(before)]

    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(put(where, "splash"), put(where, "xla"))
    nowhere = where._replace(page_BT=jnp.full_like(page_BT, PAGES))
    same(put(nowhere, "splash"), before)


@pytest.mark.parametrize(
    ("count", "kv", "group", "width", "prompt", "dtype"),
    [(1, 8, 4, 128, 1024, ""), (5, 3, 3, 64, 300, "int8")],
)
def test_lowers_for_tpu_without_libtpu(monkeypatch, count, kv, group, width, prompt, dtype):
    """Mosaic's rules on block shapes hold at lowering."""
    monkeypatch.undo()
    shape = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    wide = functools.partial(shape, dtype=jnp.bfloat16)
    numbers = ((8,), (8, count), (8, count), (40,), (40,), (8,), (8,), (3, 4))
    where = Where(*(shape(*x) for x in numbers), shape(3, prompt, dtype=jnp.bool))
    arrays = (
        wide(40, kv, width, 128), wide(40, kv, 128, width),
        wide(3, kv, width, prompt), wide(3, kv, prompt, width),
    )  # fmt: skip
    in_8 = lambda x, i: jax.eval_shape(lambda x: kept(x, dtype, keys=i % 2 == 0), x)  # noqa: E731
    arrays = [in_8(x, i) for i, x in enumerate(arrays)]

    def step(q, new, arrays, where):
        keys, values = (
            write(x, new, where, keys=i == 0, impl="splash") for i, x in enumerate(arrays[:2])
        )
        return paged_attention(q, keys, values, *arrays[2:], where, impl="splash"), keys, values

    given = (wide(8, count, kv * group, width), wide(8, count, kv, width), arrays, where)
    text = jax.jit(step).trace(*given).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == (6 if dtype else 4)


def test_an_unknown_word_is_named():
    where, q, arrays = case(1, 1, 8)
    with pytest.raises(ValueError, match="impl 'triton': expected auto, splash"):
        paged_attention(jnp.asarray(q), *map(jnp.asarray, arrays), where, impl="triton")


def run_process(what, **env):
    """paged_process.py in an environment with nothing else of ours in it."""
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | env
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("paged_process.py")
    done = subprocess.run(
        [sys.executable, str(script), what], env=env, capture_output=True, text=True, timeout=1800
    )
    assert done.stdout == "passed\n", done.stderr[-3000:]


def test_shards_and_heads_on_four_devices(quick_xla):
    run_process("mesh", XLA_FLAGS=f"--xla_force_host_platform_device_count=4 {quick_xla}")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_queue_compiles_for_tpu():
    run_process("compile", **SILENT_TPU)

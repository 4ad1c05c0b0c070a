"""Attention over pages and shared prompts against each row's own keys, put together in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.kernels.paged import Scaled, Where, kept, paged_attention, write

ROWS, KV, GROUP, WIDTH, VALUES, PAGE, PROMPT = 4, 2, 3, 8, 6, 4, 5
PLACES = (0, 6, 3, 9)  # of the first new token; row 3 is in the second prompt's group
NEW, PAGES = 3, 11  # tokens a row; pages
ENTRIES, RANKS = (0, 0, 0, 2), (1, 0, 2, 1)
LENGTHS = (3, 0, 5)  # of the prompts; the second entry is nobody's


@pytest.fixture(scope="module")
def pool():
    """(where, query, the four arrays of keys and values): pages in no order, the others noise."""
    rng = np.random.default_rng(0)
    noise = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    owner, start, page = np.full(PAGES, ROWS), np.zeros(PAGES, int), np.zeros((ROWS, NEW), int)
    free = iter(rng.permutation(PAGES))
    for row, place in enumerate(PLACES):
        for first in range(0, place + NEW, PAGE):
            at = next(free)
            owner[at], start[at] = row, first
            page[row, first - place <= np.arange(NEW)] = at
    member = np.full((3, 3), ROWS)
    member[ENTRIES, RANKS] = np.arange(ROWS)
    valid = np.arange(PROMPT) >= PROMPT - np.array(LENGTHS)[:, None]
    offset = (np.array(PLACES)[:, None] + np.arange(NEW)) % PAGE
    numbers = (PLACES, page, offset, owner, start, ENTRIES, RANKS, member)
    where = Where(*(jnp.asarray(x, jnp.int32) for x in numbers), jnp.asarray(valid))
    arrays = (
        noise(PAGES, KV, WIDTH, PAGE), noise(PAGES, KV, PAGE, VALUES),
        noise(3, KV, WIDTH, PROMPT), noise(3, KV, PROMPT, VALUES),
    )  # fmt: skip
    return where, noise(ROWS, NEW, KV * GROUP, WIDTH), arrays


def expected(where, q, arrays, window):
    k_pages, v_pages, k_prompts, v_prompts = (np.float64(x) for x in arrays)
    out = np.zeros((ROWS, NEW, KV * GROUP, VALUES))
    for row, new in np.ndindex(ROWS, NEW):
        length = LENGTHS[ENTRIES[row]]
        keys = [k_prompts[ENTRIES[row], :, :, PROMPT - length + i] for i in range(length)]
        values = [v_prompts[ENTRIES[row], :, PROMPT - length + i] for i in range(length)]
        for i in range(PLACES[row] + new + 1):
            mine = (np.asarray(where.owner_Z) == row) & (where.start_Z == i // PAGE * PAGE)
            (at,) = np.flatnonzero(mine)
            keys.append(k_pages[at, :, :, i % PAGE])
            values.append(v_pages[at, :, i % PAGE])
        keys, values = np.stack(keys[-window:]), np.stack(values[-window:])
        for head in range(KV * GROUP):
            scores = keys[:, head // GROUP] @ np.float64(q[row, new, head]) * WIDTH**-0.5
            weights = np.exp(scores - scores.max())
            out[row, new, head] = weights / weights.sum() @ values[:, head // GROUP]
    return out


@pytest.mark.parametrize("window", [0, 3, 6])
def test_each_row_sees_its_prompt_and_its_own_pages(pool, window):
    where, q, arrays = pool
    found = paged_attention(jnp.asarray(q), *map(jnp.asarray, arrays), where, window=window)
    np.testing.assert_allclose(found, expected(where, q, arrays, window), atol=2e-6)


def test_new_tokens_are_written_where_their_rows_are_and_nowhere_else(pool):
    where, _, (k_pages, v_pages, _, _) = pool
    where = where._replace(page_BT=where.page_BT.at[2].set(PAGES).at[0, 1:].set(PAGES))
    rng = np.random.default_rng(1)
    key = rng.standard_normal((ROWS, NEW, KV, WIDTH))
    value = rng.standard_normal((ROWS, NEW, KV, VALUES))
    keys = np.array(write(jnp.asarray(k_pages), jnp.asarray(key), where, keys=True))
    values = np.array(write(jnp.asarray(v_pages), jnp.asarray(value), where, keys=False))
    for row, new in ((0, 0), *((r, n) for r in (1, 3) for n in range(NEW))):
        at, offset = int(where.page_BT[row, new]), (PLACES[row] + new) % PAGE
        np.testing.assert_allclose(keys[at, :, :, offset], key[row, new], atol=1e-6)
        np.testing.assert_allclose(values[at, :, offset], value[row, new], atol=1e-6)
        keys[at, :, :, offset], values[at, :, offset] = (
            k_pages[at, :, :, offset], v_pages[at, :, offset],
        )  # fmt: skip
    np.testing.assert_array_equal(keys, k_pages)
    np.testing.assert_array_equal(values, v_pages)


def in_eight_bits(arrays):
    """(as a pool keeps them, the same put together again in float64)."""
    packed = [kept(jnp.asarray(x), "int8", keys=i % 2 == 0) for i, x in enumerate(arrays)]
    assert all(isinstance(x, Scaled) and x.numbers.dtype == jnp.int8 for x in packed)
    wide = [np.float64(x.scale)[:, :, None, :] for x in packed[::2]]
    tall = [np.float64(x.scale)[..., None] for x in packed[1::2]]
    scales = (wide[0], tall[0], wide[1], tall[1])
    return packed, [np.float64(x.numbers) * s for x, s in zip(packed, scales, strict=True)]


@pytest.mark.parametrize("window", [0, 3])
def test_eight_bits_are_off_by_no_more_than_rounding_gives(pool, window):
    """A number is off by max |x| / 254 of its vector, so a score by d = |q|_1 max |k| / 254 /
    sqrt(H) at most, the weights together by 2 tanh(d / 2), and what comes out by
    max |v| / 254 + 2 tanh(d / 2) max |v|."""
    where, q, arrays = pool
    arrays = [x * np.float32(10) ** (np.arange(KV) - 1)[:, None, None] for x in arrays]
    packed, rounded = in_eight_bits(arrays)
    for one, other, axis in zip(arrays, rounded, (2, 3, 2, 3), strict=True):
        assert (np.abs(one - other) <= np.abs(one).max(axis, keepdims=True) / 253.9).all()
    found = paged_attention(jnp.asarray(q), *packed, where, window=window)
    np.testing.assert_allclose(found, expected(where, q, rounded, window), atol=5e-6)
    off = np.abs(found - expected(where, q, arrays, window)).max(axis=(0, 1, 3))
    for head in range(KV * GROUP):
        mine = [np.abs(x[:, head // GROUP]).max() for x in arrays]
        top_k, top_v = max(mine[::2]), max(mine[1::2])
        most = np.abs(q[:, :, head]).sum(-1).max() * top_k / 254 * WIDTH**-0.5
        assert 1e-4 * top_v < off[head] < top_v / 254 + 2 * np.tanh(most / 2) * top_v


def test_new_tokens_are_written_in_eight_bits(pool):
    where, _, (k_pages, *_) = pool
    rng = np.random.default_rng(2)
    new = rng.standard_normal((ROWS, NEW, KV, WIDTH)).astype(np.float32)
    for pages, keys in ((k_pages, True), (rng.standard_normal((PAGES, KV, PAGE, WIDTH)), False)):
        plain = write(jnp.asarray(pages, jnp.float32), jnp.asarray(new), where, keys=keys)
        packed = write(
            kept(jnp.asarray(pages), "int8", keys=keys), jnp.asarray(new), where, keys=keys
        )
        assert isinstance(packed, Scaled)
        whole = kept(plain, "int8", keys=keys)
        np.testing.assert_array_equal(packed.numbers, whole.numbers)
        np.testing.assert_array_equal(packed.scale, whole.scale)

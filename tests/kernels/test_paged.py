"""Attention over pages and shared prompts against each row's own keys, put together in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.kernels.paged import Where, paged_attention, write

ROWS, KV, GROUP, WIDTH, VALUES, PAGE, PROMPT = 4, 2, 3, 8, 6, 4, 5
PLACES = (0, 6, 3, 9)  # of the new token; row 3 is in the second prompt's group
ENTRIES, RANKS = (0, 0, 0, 2), (1, 0, 2, 1)
LENGTHS = (3, 0, 5)  # of the prompts; the second entry is nobody's


@pytest.fixture(scope="module")
def pool():
    """(where, query, the four arrays of keys and values): pages in no order, the others noise."""
    rng = np.random.default_rng(0)
    noise = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    owner, start, page = np.full(9, ROWS), np.zeros(9, int), np.zeros(ROWS, int)
    free = iter(rng.permutation(9))
    for row, place in enumerate(PLACES):
        for first in range(0, place + 1, PAGE):
            at = next(free)
            owner[at], start[at], page[row] = row, first, at
    member = np.full((3, 3), ROWS)
    member[ENTRIES, RANKS] = np.arange(ROWS)
    valid = np.arange(PROMPT) >= PROMPT - np.array(LENGTHS)[:, None]
    numbers = (PLACES, page, np.array(PLACES) % PAGE, owner, start, ENTRIES, RANKS, member)
    where = Where(*(jnp.asarray(x, jnp.int32) for x in numbers), jnp.asarray(valid))
    arrays = (
        noise(9, KV, WIDTH, PAGE), noise(9, KV, PAGE, VALUES),
        noise(3, KV, WIDTH, PROMPT), noise(3, KV, PROMPT, VALUES),
    )  # fmt: skip
    return where, noise(ROWS, KV * GROUP, WIDTH), arrays


def expected(where, q, arrays, window):
    k_pages, v_pages, k_prompts, v_prompts = (np.float64(x) for x in arrays)
    out = np.zeros((ROWS, KV * GROUP, VALUES))
    for row, place in enumerate(PLACES):
        length = LENGTHS[ENTRIES[row]]
        keys = [k_prompts[ENTRIES[row], :, :, PROMPT - length + i] for i in range(length)]
        values = [v_prompts[ENTRIES[row], :, PROMPT - length + i] for i in range(length)]
        for i in range(place + 1):
            mine = (np.asarray(where.owner_Z) == row) & (where.start_Z == i // PAGE * PAGE)
            (at,) = np.flatnonzero(mine)
            keys.append(k_pages[at, :, :, i % PAGE])
            values.append(v_pages[at, :, i % PAGE])
        keys, values = np.stack(keys[-window:]), np.stack(values[-window:])
        for head in range(KV * GROUP):
            scores = keys[:, head // GROUP] @ np.float64(q[row, head]) * WIDTH**-0.5
            weights = np.exp(scores - scores.max())
            out[row, head] = weights / weights.sum() @ values[:, head // GROUP]
    return out


@pytest.mark.parametrize("window", [0, 3, 6])
def test_each_row_sees_its_prompt_and_its_own_pages(pool, window):
    where, q, arrays = pool
    found = paged_attention(jnp.asarray(q), *map(jnp.asarray, arrays), where, window=window)
    np.testing.assert_allclose(found, expected(where, q, arrays, window), atol=2e-6)


def test_a_new_token_is_written_where_its_row_is_and_nowhere_for_rows_that_write_nothing(pool):
    where, _, (k_pages, v_pages, _, _) = pool
    where = where._replace(page_B=where.page_B.at[2].set(9))
    rng = np.random.default_rng(1)
    key, value = rng.standard_normal((ROWS, KV, WIDTH)), rng.standard_normal((ROWS, KV, VALUES))
    keys = np.array(write(jnp.asarray(k_pages), jnp.asarray(key), where, keys=True))
    values = np.array(write(jnp.asarray(v_pages), jnp.asarray(value), where, keys=False))
    for row in (0, 1, 3):
        at, offset = int(where.page_B[row]), PLACES[row] % PAGE
        np.testing.assert_allclose(keys[at, :, :, offset], key[row], atol=1e-6)
        np.testing.assert_allclose(values[at, :, offset], value[row], atol=1e-6)
        keys[at, :, :, offset], values[at, :, offset] = (
            k_pages[at, :, :, offset], v_pages[at, :, offset],
        )  # fmt: skip
    np.testing.assert_array_equal(keys, k_pages)
    np.testing.assert_array_equal(values, v_pages)

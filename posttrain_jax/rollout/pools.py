"""The keys and values of a queue: pages of slots, prompts of groups, rings of local layers.

Pages belong to whoever needs them, for as long as he does (slots.py). A local layer sees only the
nearest places, so there a slot has a fixed ring of pages instead, which it goes round: place p lies
in page p // size of the slot, modulo the ring. That takes no table, and nothing has to be given
back. Of a prompt such layers keep its last `window` places.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Model, Params, Routing
from posttrain_jax.kernels.paged import Kept, Scaled, Where, kept, numbers_of
from posttrain_jax.models.transformer import Cache, Pool
from posttrain_jax.rollout import slots
from posttrain_jax.rollout.slots import Slots

CACHE_DTYPES = ("", "bfloat16", "int8")
"""What `Rules.cache_dtype` may be."""


def ring_pages(config: Any, count: int, pages: int, size: int) -> int:
    """Pages of a slot in local layers; 0 where rings would take no less than the common pool.

    A page of new tokens may be written at once, and the first of them still sees its whole window:
    (pages - 1) * size >= window + size - 2.

    Args:
      config: the model's.
      count: slots.
      pages: of the common pool.
      size: places of a page.
    """
    if not any(config.is_local(layer) for layer in range(config.layers)):
        return 0
    each = -(-(config.window + size - 2) // size) + 1
    return each if count * each < pages else 0


def empty(model: Model, s: Slots, size: int, dtype: str = "") -> Pool:
    """Nothing yet, for these slots, pages of so many places and prompts.

    Args:
      dtype: as `Rules.cache_dtype`.
    """
    config, count, (entries, width) = model.config, len(s.live_B), s.valid_UW.shape
    own = model.init_cache(len(s.owner_Z), size)
    prompts = model.init_cache(entries, width)
    arrays, near = (own.k_BKHS, own.v_BKSH, prompts.k_BKHS, prompts.v_BKSH), None
    where = slots.where(s, size)
    if ring := ring_pages(config, count, len(s.owner_Z), size):
        short = min(width, config.window)
        own, prompts = model.init_cache(count * ring, size), model.init_cache(entries, short)
        local = (own.k_BKHS, own.v_BKSH, prompts.k_BKHS, prompts.v_BKSH)
        pairs = zip(arrays, local, strict=True)
        arrays = tuple(
            tuple(pair[config.is_local(i)] for i, pair in enumerate(zip(*both, strict=True)))
            for both in pairs
        )
        near = _near(s, where, count * ring, short, size, 1)
    keys, values, prompt_keys, prompt_values = arrays
    store = lambda xs, keys: tuple(_blank(x, dtype, keys) for x in xs)  # noqa: E731
    return Pool(
        store(keys, True), store(values, False), store(prompt_keys, True),
        store(prompt_values, False), where, near,
    )  # fmt: skip


def _blank(zeros: Array, dtype: str, keys: bool) -> Kept:
    """`kept`, of zeros: XLA would compute their scales while it compiles, and slowly."""
    found = jax.eval_shape(functools.partial(kept, dtype=dtype, keys=keys), zeros)
    if isinstance(found, Scaled):
        return Scaled(zeros.astype(jnp.int8), jnp.zeros(found.scale.shape, jnp.float32))
    return zeros.astype(found.dtype)


def at(pool: Pool, s: Slots, size: int, count_B: Array | int = 1, most: int = 1) -> Pool:
    """The pool for the next tokens; arguments as of `slots.where`."""
    where = slots.where(s, size, count_B, most)
    if pool.near is None:
        return pool._replace(where=where)
    pages, width = len(pool.near.owner_Z), pool.near.valid_UW.shape[1]
    return pool._replace(where=where, near=_near(s, where, pages, width, size, count_B))


def _near(s: Slots, where: Where, pages: int, width: int, size: int, count_B: Array | int) -> Where:
    """The same of rings, of so many pages in all, and of prompts' last `width` places."""
    count = len(s.live_B)
    each, slot = pages // count, jnp.arange(count, dtype=jnp.int32)[:, None]
    place_BT = s.place_B[:, None] + jnp.arange(where.page_BT.shape[1], dtype=jnp.int32)
    real_BT = where.page_BT < len(where.owner_Z)
    latest_B = (s.place_B + jnp.maximum(count_B, 1) - 1) // size
    behind = (latest_B[:, None] - jnp.arange(each, dtype=jnp.int32)) % each
    number = latest_B[:, None] - behind  # of the page that now lies at each place of the ring
    return where._replace(
        page_BT=jnp.where(real_BT, slot * each + place_BT // size % each, pages),
        owner_Z=jnp.where(number >= 0, slot, count).reshape(-1),
        start_Z=(number * size).reshape(-1),
        valid_UW=where.valid_UW[:, where.valid_UW.shape[1] - width :],
    )


def of_some(pool: Pool, chosen_F: Array) -> Pool:
    """The pool as these slots see it; see `slots.of_some`."""
    near = None if pool.near is None else slots.of_some(pool.near, chosen_F)
    return pool._replace(where=slots.of_some(pool.where, chosen_F), near=near)


def read(
    model: Model, params: Params, tokens_BT: Array, first_B: Array, at: Pool, before: Pool
) -> tuple[Array, Pool, Routing | None]:
    """What the model makes of the next tokens.

    Args:
      first_B: the position of each row's first.
      at: the pool as they see it.
      before: as it was: the loop that carries it has one shape, whatever the tokens' number.

    Returns:
      hidden [B, T, D], the pool with them in it, and which experts they went to, if any.
    """
    hidden_BTD, pool, routing = model.routed(
        params, tokens_BT, positions_BT=first_B[:, None] + jnp.arange(tokens_BT.shape[1]),
        segments_BT=jnp.ones(tokens_BT.shape, jnp.int32), cache=at,
    )  # fmt: skip
    return hidden_BTD, pool._replace(where=before.where, near=before.near), routing


def enter_prompts(pool: Pool, cache: Cache, entry: Array) -> Pool:
    """The pool with prefilled prompts at these entries; numbers beyond them are left out.

    Args:
      cache: of the prompts alone; a local layer keeps the last places.
    """

    def put(old: Kept, new: Array, keys: bool) -> Kept:
        axis = 3 if keys else 2
        extra = new.shape[axis] - numbers_of(old).shape[axis]
        new = jax.lax.slice_in_dim(new, extra, None, axis=axis)
        dtype = "int8" if isinstance(old, Scaled) else str(old.dtype)
        put = lambda old, new: old.at[entry].set(new, mode="drop")  # noqa: E731
        return jax.tree.map(put, old, kept(new, dtype, keys=keys))

    every = lambda olds, news, keys: tuple(  # noqa: E731
        put(old, new, keys) for old, new in zip(olds, news, strict=True)
    )
    return pool._replace(
        k_UKHW=every(pool.k_UKHW, cache.k_BKHS, True),
        v_UKWH=every(pool.v_UKWH, cache.v_BKSH, False),
    )


def fewer(pool: Pool, chosen_B: Array, kept_Z: Array) -> Pool:
    """The pool of fewer slots and pages; see `slots.compacted`. `at` says whose they are."""
    near, pages = pool.near, len(pool.where.owner_Z)
    ring_Z = kept_Z
    if near is not None:
        each = len(near.owner_Z) // len(near.place_B)
        ring_Z = (chosen_B[:, None] * each + jnp.arange(each)).reshape(-1)
        near = near._replace(owner_Z=near.owner_Z[ring_Z])

    def some(layer: Kept) -> Kept:
        own = len(numbers_of(layer)) == pages  # rings together have fewer
        return jax.tree.map(lambda x: x[kept_Z if own else ring_Z], layer)

    keys, values = (tuple(map(some, layers)) for layers in (pool.k_ZKHO, pool.v_ZKOH))
    return pool._replace(k_ZKHO=keys, v_ZKOH=values, near=near)


def cache_bytes(model: Model, empty_slots: Slots, size: int, dtype: str = "") -> int:
    """Bytes of keys, values and their scales, of an `empty` pool; nothing is allocated.

    Args:
      empty_slots: the state, or its shapes.
    """
    pool = jax.eval_shape(lambda s: empty(model, s, size, dtype), empty_slots)
    return _bytes(pool[:4])


def prompt_bytes(model: Model, empty_slots: Slots, size: int, dtype: str = "") -> int:
    """Those of the prompts alone."""
    pool = jax.eval_shape(lambda s: empty(model, s, size, dtype), empty_slots)
    return _bytes((pool.k_UKHW, pool.v_UKWH))


def _bytes(arrays: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))

"""The parts of paged attention on TPU (Pallas): what rows see of a pool is read once, and no more.

A row's new tokens are a group of queries, and its pages the blocks of keys that the group sees; all
rows that share a prompt are a group too, and its blocks are pieces of the prompt. So one kernel
does both. It takes the blocks in the order of their groups, some at a time, and keeps a group's
largest score, sum and mixture on the chip until the group's last block (the recurrence of Dao 2023,
arXiv 2307.08691): scores and parts of pages never go to memory, and what the pool holds is not
moved. How many blocks there are is known to the device alone, so the grid is of a length that it
computes; blocks that nobody owns, padding and what lies outside all windows is not read.

Left out: latent attention, whose values are a part of the keys (paged.py does it).

Axes, beside those of paged.py: C groups, X their queries that meet one kv head, S steps of the
grid, J blocks of a step, Y = S * J.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from posttrain_jax.kernels.attention import MASKED
from posttrain_jax.kernels.axes import HEAD_AXES, dividing_axes, over_automatic
from posttrain_jax.kernels.paged import Kept, Part, Scaled, Where, members, numbers_of, to_rows
from posttrain_jax.kernels.paged_steps import FAR, Steps, steps_of

LANES = 128
"""Places of a page, and of a piece of a prompt: what a register of a TPU is wide."""
STEP_BYTES = 2**20
"""Keys and values that a step reads, at most; ours: a step has a cost of its own."""
MAX_BLOCKS = 8
MAX_QUERIES = 1024
"""Of a group and kv head."""
MAX_SCORES = 2**18
"""Of a step, 4 bytes each."""


def parts(
    q_BKTGH: jax.Array, k_ZKHO: Kept, v_ZKOH: Kept, k_UKHW: Kept, v_UKWH: Kept, where: Where,
    window: int | jax.Array, *, interpret: bool = False,
) -> tuple[Part, Part]:  # fmt: skip
    """What the rows' own pages make of their queries, and what their prompts do.

    Kv heads are split over `HEAD_AXES`, if these divide them.

    Args:
      q_BKTGH: scaled.
      interpret: run the kernel's blocks as plain XLA, on any backend (slow, for tests).
    """
    inside = functools.partial(_inside, interpret=interpret)
    heads = PartitionSpec(None, dividing_axes(HEAD_AXES, q_BKTGH.shape[1]))
    mapped = over_automatic(inside, (heads, heads, PartitionSpec(), PartitionSpec()), heads)
    return mapped(q_BKTGH, (k_ZKHO, v_ZKOH, k_UKHW, v_UKWH), where, jnp.int32(window))


def _inside(q_BKTGH, pools, where: Where, window, *, interpret: bool) -> tuple[Part, Part]:
    """`parts` of one device's heads."""
    k_ZKHO, v_ZKOH, k_UKHW, v_UKWH = pools
    attend = functools.partial(_attend, interpret=interpret)
    last_BT = where.place_B[:, None] + jnp.arange(q_BKTGH.shape[2])
    first_BT = jnp.where(window > 0, last_BT - window + 1, -FAR)
    size = numbers_of(k_ZKHO).shape[3]
    own = attend(q_BKTGH, (first_BT, last_BT), k_ZKHO, v_ZKOH, where.owner_Z, where.start_Z, size)
    prompt = _of_prompts(q_BKTGH, k_UKHW, v_UKWH, where, first_BT, attend)
    return own, prompt


def _of_prompts(q_BKTGH, k_UKHW, v_UKWH, where: Where, first_BT, attend) -> Part:
    """Its places are those before 0, and it is left-padded.

    Rows with too many queries for the chip are several groups, each of which sees all its blocks.
    """
    (batch, kv_heads, count, group, _), (prompts, ranks) = q_BKTGH.shape, where.member_UM.shape
    some = next(
        n for n in range(1, ranks + 1)
        if n == ranks or (ranks % n == 0 and ranks // n * count * group <= MAX_QUERIES)
    )  # fmt: skip

    def apart(x, axis: int):
        x = x.reshape(*x.shape[:axis], some, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 1).reshape(
            prompts * some, *x.shape[1:axis], *x.shape[axis + 1 :]
        )

    def together(x):
        x = jnp.moveaxis(x.reshape(prompts, some, *x.shape[1:]), 1, 2)
        return x.reshape(prompts, kv_heads, ranks * count, *x.shape[4:])

    width = where.valid_UW.shape[1]
    begin_U11 = -jnp.sum(where.valid_UW, axis=1)[:, None, None]
    first_UMT = jnp.maximum(first_BT[jnp.minimum(where.member_UM, batch - 1)], begin_U11)
    last_UM1 = jnp.where(where.member_UM < batch, -1, -FAR)[..., None]
    last_UMT = jnp.broadcast_to(last_UM1, first_UMT.shape)
    seen = [apart(x.reshape(prompts, -1), 1) for x in (first_UMT, last_UMT)]
    size = LANES if width % LANES == 0 else width
    owner_CU1 = (jnp.arange(some)[:, None] + jnp.arange(prompts) * some)[..., None]
    owner = jnp.broadcast_to(owner_CU1, (some, prompts, width // size)).reshape(-1)
    start = jnp.tile(jnp.arange(-width, 0, size), some * prompts)
    q_CKXGH = apart(members(q_BKTGH, where), 2)
    found = attend(q_CKXGH, seen, k_UKHW, v_UKWH, owner, start, size)
    return to_rows(Part(*map(together, found)), where, count)


def blocking(kv_heads: int, queries: int, head_bytes: int, size: int) -> tuple[int, int]:
    """How many kv heads a block has, and how many blocks a step.

    Args:
      queries: X.
      head_bytes: keys and values of a block, of one kv head.
      size: O.
    """
    half = max(1, kv_heads // 2)  # each of v5p's two cores takes some
    fits = lambda heads: heads == 1 or heads * queries * size <= MAX_SCORES  # noqa: E731
    heads = max(h for h in range(1, half + 1) if kv_heads % h == 0 and fits(h))
    most = min(STEP_BYTES // (heads * head_bytes), MAX_SCORES // (heads * queries * size))
    return heads, max(1, min(MAX_BLOCKS, most))


def _attend(q_CKTGH, seen, k: Kept, v: Kept, owner_Z, start_Z, size: int, *, interpret) -> Part:
    """Groups of queries over the blocks that they own -> [C, K, T, G] and [C, K, T, G, H].

    Args:
      seen: the first and the last place that a query sees, [C, T] each.
      k, v: blocks, or arrays of several blocks one after the other along their places.
      owner_Z, start_Z: of `steps_of`; all blocks again and again, if several groups see the same.
      size: places of a block.
    """
    groups, kv_heads, count, group, width = q_CKTGH.shape
    queries, deep = count * group, numbers_of(v).shape[3]
    seen_CX2 = jnp.repeat(jnp.stack(seen, axis=-1), group, axis=1).astype(jnp.int32)
    pieces = numbers_of(k).shape[3] // size
    head_bytes = (width + deep) * size * numbers_of(k).dtype.itemsize
    heads, many = blocking(kv_heads, queries, head_bytes, size)
    steps = steps_of(owner_Z, start_Z, size, seen_CX2, many)
    block_SJ = steps.block_SJ % (len(numbers_of(k)) * pieces)
    work = kv_heads * queries * size * len(owner_Z)  # at most
    result = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    top, total, out = pl.pallas_call(
        functools.partial(_kernel, many),
        grid_spec=_grid(steps, (k, v), (heads, many, size, pieces), (queries, width, deep)),
        out_shape=[result((groups, kv_heads, queries, n)) for n in (1, 1, deep)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * work * (width + deep), transcendentals=work,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((k, v))),
        ),
        interpret=interpret,
        name="paged_attention",
    )(
        steps.group_S, block_SJ.reshape(-1), steps.start_SJ.reshape(-1),
        q_CKTGH.reshape(groups, kv_heads, queries, width), seen_CX2,
        [_rowed(k)] * many, [_rowed(v)] * many,
    )  # fmt: skip
    shape = (groups, kv_heads, count, group)
    return Part(top.reshape(shape), total.reshape(shape), out.reshape(*shape, deep))


def _grid(steps: Steps, kept, blocks: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    """What of which array a step has, for each block of kv heads.

    Args:
      kept: keys and values.
      blocks: kv heads of a block, blocks of a step, places of a block, blocks of an array.
      sizes: queries of a group, and the widths of keys and values.
    """
    (heads, many, size, pieces), (queries, width, deep) = blocks, sizes

    def of_group(last: int) -> Any:
        index = lambda head, step, group_S, *_: (group_S[step], head, 0, 0)  # noqa: E731
        return pl.BlockSpec((1, heads, queries, last), index)

    def of_block(j: int, high: int, wide: int, *, across: bool) -> Any:
        def index(head, step, _, block_Y, *__):
            block = block_Y[step * many + j]
            piece = jax.lax.rem(block, jnp.int32(pieces))
            last = (0, piece) if across else (piece, 0)
            return (jax.lax.div(block, jnp.int32(pieces)), head, *last)

        return pl.BlockSpec((1, heads, high, wide), index)

    def of_step(x: Kept, *shape: int, across: bool) -> list[Any]:
        numbers = [of_block(j, *shape, across=across) for j in range(many)]
        if not isinstance(x, Scaled):
            return numbers
        return [x._replace(numbers=n, scale=of_block(j, 1, size, across=True))
                for j, n in enumerate(numbers)]  # fmt: skip

    k, v = kept
    seen = pl.BlockSpec((1, queries, 2), lambda head, step, group_S, *_: (group_S[step], 0, 0))
    k_specs, v_specs = of_step(k, width, size, across=True), of_step(v, size, deep, across=False)
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(numbers_of(k).shape[1] // heads, steps.number),
        in_specs=[of_group(width), seen, k_specs, v_specs],
        out_specs=[of_group(n) for n in (1, 1, deep)],
    )


def _rowed(x: Kept) -> Kept:
    """Scales as [Z, K, 1, O]: the last two axes of a block must be whole, or whole registers."""
    return x._replace(scale=x.scale[:, :, None]) if isinstance(x, Scaled) else x


def _kernel(
    many, group_S, _, start_Y, q_ref, seen_ref, k_refs, v_refs, top_ref, total_ref, out_ref
):
    """One step: some blocks of one group, whose part stays on the chip until the group's last."""
    step = pl.program_id(1)

    @pl.when((step == 0) | (group_S[step] != group_S[jnp.maximum(step - 1, 0)]))
    def _begin():
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        out_ref[...] = jnp.zeros_like(out_ref)

    q_KXH, seen_X2 = q_ref[0], seen_ref[0]
    multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    numbers = lambda ref: numbers_of(ref)[0].astype(q_KXH.dtype)  # noqa: E731
    scaled = lambda x, ref: x * ref.scale[0] if isinstance(ref, Scaled) else x  # noqa: E731

    def scores(j: int) -> jax.Array:
        found_KXO = scaled(multiply("KXH,KHO->KXO", q_KXH, numbers(k_refs[j])), k_refs[j])
        ahead_XO = jax.lax.broadcasted_iota(jnp.int32, found_KXO.shape[1:], 1)
        place_XO = start_Y[step * many + j] + ahead_XO
        visible_XO = (place_XO >= seen_X2[:, :1]) & (place_XO <= seen_X2[:, 1:])
        return jnp.where(visible_XO[None], found_KXO, MASKED)

    scores_J = [scores(j) for j in range(many)]
    tops = (jnp.max(x, axis=-1, keepdims=True) for x in scores_J)
    top = functools.reduce(jnp.maximum, tops, top_ref[0])
    keep = jnp.exp(top_ref[0] - top)
    total, out = total_ref[0] * keep, out_ref[0] * keep
    for x_KXO, v_ref in zip(scores_J, v_refs, strict=True):
        exp_KXO = jnp.exp(x_KXO - top)
        total += jnp.sum(exp_KXO, axis=-1, keepdims=True)
        weights = scaled(exp_KXO, v_ref).astype(q_KXH.dtype)
        out += multiply("KXO,KOH->KXH", weights, numbers(v_ref))
    top_ref[0], total_ref[0], out_ref[0] = top, total, out

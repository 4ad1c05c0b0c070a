"""Who sits where while sequences come and go: slots, pages, prompts, the queue. Index work alone.

Sequence n of a queue of N belongs to prompt n // R of P. A slot (axis B) has at most one sequence,
its tokens lie in pages (Z) of the pool, its prompt in an entry (U) of the prompt pool together with
the other members (M = R) of its group. A page belongs to one slot, an entry to one group until the
last member has ended. All of it is arrays of fixed shape, so that it can be the state of a loop on
the device. "Nobody" is the number one past the last.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array
from posttrain_jax.kernels.paged import Where


class Slots(NamedTuple):
    """The state.

    Attributes:
      live_B: slots with a sequence that goes on.
      sequence_B: which it is.
      token_B: its token that is not yet in the pool; at first the last of the prompt.
      place_B: how many of its tokens are in the pool; the first is the prompt's last.
      parked_B: slots whose sequence waits for the host.
      page_B, former_B: its latest page, and the one before.
      entry_B: its prompt's entry.
      owner_Z, start_Z: as in `kernels.paged.Where`.
      member_UM: the slot of each member of a group.
      owed_U: how many members of an entry's group have not ended; 0: the entry is free.
      valid_UW: an entry's places with tokens.
      entry_P: each prompt's entry, once it has one.
      next_prompt, next_sequence: the first ones that nobody has taken from the queue.
      again_B, agains: sequences that lost their slot for want of pages, a stack of so many.
      steps, busy, most_pages: how many steps there were, live slots summed over them, and pages in
        use at most.
      prefilled: places of prompts that were prefilled, padding too.
    """

    live_B: Array
    sequence_B: Array
    token_B: Array
    place_B: Array
    parked_B: Array
    page_B: Array
    former_B: Array
    entry_B: Array
    owner_Z: Array
    start_Z: Array
    member_UM: Array
    owed_U: Array
    valid_UW: Array
    entry_P: Array
    next_prompt: Array
    next_sequence: Array
    again_B: Array
    agains: Array
    steps: Array
    busy: Array
    most_pages: Array
    prefilled: Array


def empty(slots: int, pages: int, entries: int, prompts: int, group: int, width: int) -> Slots:
    """Nobody anywhere, all sequences in the queue; `width` is that of a prompt."""
    full = lambda shape, value: jnp.full(shape, value, jnp.int32)  # noqa: E731
    zero = jnp.int32(0)
    return Slots(
        live_B=jnp.zeros(slots, bool), sequence_B=full(slots, prompts * group),
        token_B=full(slots, 0), place_B=full(slots, 0), parked_B=jnp.zeros(slots, bool),
        page_B=full(slots, pages), former_B=full(slots, pages),
        entry_B=full(slots, 0), owner_Z=full(pages, slots), start_Z=full(pages, 0),
        member_UM=full((entries, group), slots), owed_U=full(entries, 0),
        valid_UW=jnp.zeros((entries, width), bool), entry_P=full(prompts, entries),
        next_prompt=zero, next_sequence=zero, again_B=full(slots, 0), agains=zero,
        steps=zero, busy=zero, most_pages=zero, prefilled=zero,
    )  # fmt: skip


def group_of(s: Slots) -> int:
    """R."""
    return s.member_UM.shape[1]


def going(s: Slots) -> Array:
    """The slots that are decoded."""
    return s.live_B & ~s.parked_B


def waiting(s: Slots) -> Array:
    """How many sequences could start now: their prompts are in the pool."""
    return s.agains + s.next_prompt * group_of(s) - s.next_sequence


def queued(s: Slots) -> Array:
    """How many sequences have no slot and have not ended."""
    return s.agains + s.entry_P.shape[0] * group_of(s) - s.next_sequence


def room(s: Slots) -> Array:
    """How many more prompts could be prefilled now."""
    return jnp.minimum(jnp.sum(s.owed_U == 0), s.entry_P.shape[0] - s.next_prompt)


def prompts_due(s: Slots, count: int) -> Array:
    """Whether to prefill now: `count` prompts, the last ones, or any where no sequence can start.

    Those who wait until there is room for `count` spare a pass of the model with fewer.
    """
    left = s.entry_P.shape[0] - s.next_prompt
    whole = room(s) >= jnp.minimum(count, left)
    return (room(s) > 0) & (whole | (waiting(s) == 0))


def free_pages(s: Slots) -> Array:
    """How many pages nobody owns."""
    return jnp.sum(s.owner_Z == len(s.live_B))


def enter_prompts(s: Slots, valid_PW: Array, count: int) -> tuple[Slots, Array, Array]:
    """Give up to `count` prompts an entry -> (state, the prompts, their entries).

    Both arrays have `count` places; nobody where there are no more prompts or entries.
    """
    prompts, entries = s.entry_P.shape[0], s.owed_U.shape[0]
    (free,) = jnp.nonzero(s.owed_U == 0, size=count, fill_value=entries)
    wanted = s.next_prompt + jnp.arange(count, dtype=jnp.int32)
    taken = (wanted < prompts) & (free < entries)
    prompt = jnp.where(taken, wanted, prompts)
    entry = jnp.where(taken, free, entries).astype(jnp.int32)
    valid = valid_PW[jnp.minimum(prompt, prompts - 1)]
    entered = s._replace(
        entry_P=s.entry_P.at[prompt].set(entry, mode="drop"),
        owed_U=s.owed_U.at[entry].set(group_of(s), mode="drop"),
        valid_UW=s.valid_UW.at[entry].set(valid, mode="drop"),
        next_prompt=s.next_prompt + jnp.sum(taken, dtype=jnp.int32),
    )
    return entered, prompt, entry


def admit(s: Slots, last_P: Array) -> Slots:
    """Give free slots to waiting sequences, as far as there are pages; those without theirs first.

    Args:
      last_P: the last token of each prompt.
    """
    group, nobody = group_of(s), s.entry_P.shape[0] * group_of(s)
    rank = jnp.cumsum(~s.live_B, dtype=jnp.int32) - 1
    taken = ~s.live_B & (rank < jnp.minimum(waiting(s), free_pages(s)))
    back = s.again_B[jnp.clip(s.agains - 1 - rank, 0)]
    sequence = jnp.where(rank < s.agains, back, s.next_sequence + rank - s.agains)
    sequence = jnp.where(taken, sequence, nobody)
    prompt = jnp.minimum(sequence, nobody - 1) // group
    entry = s.entry_P[prompt]
    slot = jnp.arange(len(taken), dtype=jnp.int32)
    seat = jnp.where(taken, entry, s.owed_U.shape[0])
    count = jnp.sum(taken, dtype=jnp.int32)
    from_stack = jnp.minimum(count, s.agains)
    put = lambda new, old: jnp.where(taken, new, old)  # noqa: E731
    return s._replace(
        live_B=s.live_B | taken,
        sequence_B=put(sequence, s.sequence_B),
        token_B=put(last_P[prompt], s.token_B),
        place_B=put(0, s.place_B),
        parked_B=s.parked_B & ~taken,
        page_B=put(len(s.owner_Z), s.page_B),
        entry_B=put(entry, s.entry_B),
        member_UM=s.member_UM.at[seat, sequence % group].set(slot, mode="drop"),
        next_sequence=s.next_sequence + count - from_stack,
        agains=s.agains - from_stack,
    )


def _leave(s: Slots, gone_B: Array) -> Slots:
    """These slots' pages and places in groups are free again."""
    slots, entries = len(gone_B), s.owed_U.shape[0]
    seat = jnp.where(gone_B, s.entry_B, entries)
    owner = jnp.minimum(s.owner_Z, slots - 1)
    return s._replace(
        live_B=s.live_B & ~gone_B,
        owner_Z=jnp.where((s.owner_Z < slots) & gone_B[owner], slots, s.owner_Z),
        member_UM=s.member_UM.at[seat, s.sequence_B % group_of(s)].set(slots, mode="drop"),
    )


def end(s: Slots, ended_B: Array) -> Slots:
    """These slots' sequences have ended."""
    seat = jnp.where(ended_B, s.entry_B, s.owed_U.shape[0])
    left = _leave(s, ended_B)
    return left._replace(owed_U=left.owed_U.at[seat].add(-1, mode="drop"))


def _evict(s: Slots) -> Slots:
    """The sequence with the fewest tokens goes back to the queue; it will sample the same again."""
    slot = jnp.argmin(jnp.where(going(s), s.place_B, jnp.iinfo(jnp.int32).max))
    s = _leave(s, jnp.arange(len(s.live_B)) == slot)
    return s._replace(again_B=s.again_B.at[s.agains].set(s.sequence_B[slot]), agains=s.agains + 1)


def turn_pages(s: Slots, size: int, count_B: Array | int = 1) -> Slots:
    """Give a page of `size` places to each slot that goes on and whose next tokens need one.

    Where there are too few, sequences are sent back to the queue, the shortest first. One sequence
    of full length must fit the pool.

    Args:
      count_B: how many tokens come, at most `size`.
    """
    slots, pages = len(s.live_B), len(s.owner_Z)

    def held(s: Slots) -> Array:
        """How many places the slot's pages have."""
        start_B = s.start_Z[jnp.minimum(s.page_B, pages - 1)]
        return jnp.where(s.page_B < pages, start_B + size, 0)

    def needs(s: Slots) -> Array:
        return going(s) & (s.place_B + count_B > held(s))

    def short(s: Slots) -> Array:
        return jnp.sum(needs(s)) > free_pages(s)

    def turn(s: Slots) -> Slots:
        s = jax.lax.while_loop(short, _evict, s)
        need = needs(s)
        (free,) = jnp.nonzero(s.owner_Z == slots, size=slots, fill_value=pages)
        page = free[jnp.cumsum(need) - 1].astype(jnp.int32)
        page = jnp.where(need, page, pages)
        slot = jnp.arange(slots, dtype=jnp.int32)
        owner = s.owner_Z.at[page].set(slot, mode="drop")
        return s._replace(
            page_B=jnp.where(need, page, s.page_B),
            former_B=jnp.where(need, s.page_B, s.former_B),
            owner_Z=owner,
            start_Z=s.start_Z.at[page].set(held(s), mode="drop"),
            most_pages=jnp.maximum(s.most_pages, jnp.sum(owner < slots, dtype=jnp.int32)),
        )

    return jax.lax.cond(jnp.any(needs(s)), turn, lambda s: s, s)


def where(s: Slots, size: int, count_B: Array | int = 1, most: int = 1) -> Where:
    """What attention has to know.

    Args:
      count_B: how many tokens come; slots that don't go on write nothing.
      most: of them in any row (T).
    """
    pages, ahead = len(s.owner_Z), jnp.arange(most, dtype=jnp.int32)
    place_BT = s.place_B[:, None] + ahead
    latest_BT = place_BT >= s.start_Z[jnp.minimum(s.page_B, pages - 1)][:, None]
    page_BT = jnp.where(latest_BT, s.page_B[:, None], s.former_B[:, None])
    real_BT = going(s)[:, None] & (ahead < jnp.reshape(count_B, (-1, 1)))
    rank = s.sequence_B % group_of(s)
    return Where(
        s.place_B, jnp.where(real_BT, page_BT, pages), place_BT % size, s.owner_Z, s.start_Z,
        s.entry_B, rank, s.member_UM, s.valid_UW,
    )  # fmt: skip


def of_some(where: Where, chosen_F: Array) -> Where:
    """The same of some slots as rows of their own; numbers beyond the slots are nobody."""
    slots, count = len(where.place_B), len(chosen_F)
    row_of = jnp.full(slots, count, jnp.int32).at[chosen_F].set(jnp.arange(count), mode="drop")
    row_of = jnp.append(row_of, count)
    some = jnp.minimum(chosen_F, slots - 1)
    nobody = (chosen_F >= slots)[:, None]
    return where._replace(
        place_B=where.place_B[some],
        page_BT=jnp.where(nobody, len(where.owner_Z), where.page_BT[some]),
        offset_BT=where.offset_BT[some], owner_Z=row_of[where.owner_Z],
        entry_B=where.entry_B[some], rank_B=where.rank_B[some], member_UM=row_of[where.member_UM],
    )  # fmt: skip


def compacted(s: Slots, slots: int, pages: int) -> tuple[Slots, Array, Array]:
    """The state with `slots` slots and `pages` pages, the used ones in front.

    Returns:
      also which slots and which pages they were. There must be no more live slots, nor pages
      in use.
    """
    old_slots, old_pages = len(s.live_B), len(s.owner_Z)
    chosen = jnp.argsort(~s.live_B, stable=True)[:slots]
    kept = jnp.argsort(s.owner_Z == old_slots, stable=True)[:pages]
    slot_of = jnp.full(old_slots + 1, slots, jnp.int32).at[chosen].set(jnp.arange(slots))
    slot_of = jnp.where(jnp.append(s.live_B, False), slot_of, slots)
    page_of = jnp.full(old_pages + 1, pages, jnp.int32).at[kept].set(jnp.arange(pages))
    few = s._replace(**{
        name: getattr(s, name)[chosen]
        for name in ("live_B", "sequence_B", "token_B", "place_B", "parked_B", "entry_B")
    })  # fmt: skip
    few = few._replace(
        page_B=page_of[s.page_B[chosen]],
        former_B=page_of[s.former_B[chosen]],
        owner_Z=slot_of[s.owner_Z[kept]],
        start_Z=s.start_Z[kept],
        member_UM=slot_of[s.member_UM],
    )
    return few, chosen, kept

"""Slots, pages, prompts and the queue, over whole runs of sequences of random lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.rollout import slots

PROMPTS, GROUP, WIDTH, PAGE, LONGEST = 7, 3, 4, 4, 13
LAST = jnp.arange(100, 100 + PROMPTS)
VALID = jnp.ones((PROMPTS, WIDTH), bool)
enter = jax.jit(slots.enter_prompts, static_argnums=2)
turn = jax.jit(slots.turn_pages, static_argnums=1)
admit, end = jax.jit(slots.admit), jax.jit(slots.end)
compacted = jax.jit(slots.compacted, static_argnums=(1, 2))


def check(s: slots.Slots) -> None:
    """Nothing belongs to two, nothing is lost."""
    s = jax.tree.map(np.asarray, s)
    rows, live = len(s.live_B), np.flatnonzero(s.live_B)
    sequences = s.sequence_B[live].tolist()
    again = s.again_B[: s.agains].tolist()
    assert len({*sequences, *again}) == len(sequences) + len(again)
    for row in live:
        pages = np.flatnonzero(s.owner_Z == row)
        expected = np.arange(0, s.place_B[row], PAGE)
        assert sorted(s.start_Z[pages][s.start_Z[pages] < s.place_B[row]]) == expected.tolist()
        prompt = s.sequence_B[row] // GROUP
        assert s.entry_P[prompt] == s.entry_B[row]
        assert s.member_UM[s.entry_B[row], s.sequence_B[row] % GROUP] == row
    assert set(s.owner_Z[s.owner_Z < rows]) <= set(live)
    assert (s.member_UM < rows).sum() == len(live)
    waiting = [n for n in range(s.next_sequence, s.next_prompt * GROUP)]
    unfinished = np.bincount(
        [s.entry_P[n // GROUP] for n in (*sequences, *again, *waiting)], minlength=len(s.owed_U)
    )
    np.testing.assert_array_equal(s.owed_U, unfinished)


@pytest.mark.parametrize(
    ("count", "pages", "entries"), [(6, 24, 4), (6, 7, 3), (21, 30, 7), (2, 4, 1)]
)
def test_every_sequence_runs_once_to_its_end(count, pages, entries):
    lengths = np.random.default_rng(count).integers(1, LONGEST + 1, PROMPTS * GROUP)
    s = slots.empty(count, pages, entries, PROMPTS, GROUP, WIDTH)
    ended, started, evictions = [], [], 0
    for _ in range(2000):
        if not int(slots.queued(s)) and not bool(s.live_B.any()):
            break
        if int(slots.room(s)) and int(slots.waiting(s)) < int(jnp.sum(~s.live_B)):
            s, prompt, entry = enter(s, VALID, 2)
            assert all((p < PROMPTS) == (e < entries) for p, e in zip(prompt, entry, strict=True))
        before, first = np.asarray(s.live_B), int(s.next_sequence)
        s = admit(s, LAST)
        started += list(range(first, int(s.next_sequence)))
        for row in np.flatnonzero(np.asarray(s.live_B) & ~before):
            assert int(s.place_B[row]) == 0
            assert int(s.token_B[row]) == 100 + int(s.sequence_B[row]) // GROUP
        evictions -= int(s.agains)
        s = turn(s, PAGE)
        evictions += int(s.agains)
        where = slots.where(s, PAGE)
        for row in np.flatnonzero(np.asarray(s.live_B)):
            page = int(where.page_BT[row, 0])
            assert int(s.owner_Z[page]) == row
            assert int(s.start_Z[page]) + int(where.offset_BT[row, 0]) == int(s.place_B[row])
        s = s._replace(place_B=s.place_B + 1)
        done = np.asarray(s.live_B) & (
            np.asarray(s.place_B) >= np.append(lengths, 0)[np.asarray(s.sequence_B)]
        )
        ended += np.asarray(s.sequence_B)[done].tolist()
        s = end(s, jnp.asarray(done))
        check(s)
    assert sorted(ended) == started == list(range(PROMPTS * GROUP))
    assert (evictions > 0) == (pages in (4, 7))
    assert int(slots.free_pages(s)) == pages and not np.asarray(s.owed_U).any()
    assert int(s.most_pages) <= pages


def test_fewer_slots_have_the_same_sequences_and_pages():
    s, *_ = enter(slots.empty(8, 20, 4, PROMPTS, GROUP, WIDTH), VALID, 3)
    s = admit(s, LAST)
    for _ in range(6):
        s = turn(s, PAGE)
        s = s._replace(place_B=s.place_B + 1)
    s = end(s, jnp.array([True, False, True, True, False, True, True, False]))
    content = np.random.default_rng(0).standard_normal(20)

    def seen(s, content):
        return {
            int(s.sequence_B[row]): [
                int(s.place_B[row]), int(s.token_B[row]), int(s.entry_B[row]),
                content[int(s.page_B[row])],
                sorted((int(s.start_Z[z]), content[z]) for z in np.flatnonzero(s.owner_Z == row)),
            ]
            for row in np.flatnonzero(s.live_B)
        }  # fmt: skip

    few, _, kept = compacted(s, 4, 12)
    assert len(few.live_B) == 4 and len(few.owner_Z) == 12
    assert seen(few, content[np.asarray(kept)]) == seen(s, content)
    assert sorted(seen(s, content)) == [1, 4, 7]
    check(functools.reduce(lambda s, _: turn(s, PAGE), range(2), few))

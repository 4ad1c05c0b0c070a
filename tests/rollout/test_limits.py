"""What a rollout must fit: the number of slots that does by trying all of them."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from posttrain_jax.rollout import continuous, engine, limits, pools, slots
from posttrain_jax.rollout.row_settings import make_rows
from posttrain_jax.rollout.sampling import Sampling

TOKENIZER = SimpleNamespace(eos_id=2, pad_id=9, vocab_size=32, decode=str)
GROUP, WIDTH, NEW = 2, 3, 20


def asked_of(small, *, max_new=NEW, sampling=None, **options):
    tokens = np.full((8, WIDTH), 5, np.int32)
    prompts = engine.Prompts([{}] * 8, tokens, tokens * 0 + 1, 0)
    return engine.job(
        prompts, small.mesh, TOKENIZER, sampling=sampling or Sampling(), seed=0, first_uid=0,
        group_size=GROUP, max_new=max_new, **options,
    )  # fmt: skip


@pytest.mark.parametrize("slots", [0, 3])
def test_sequences_beyond_the_model_are_refused_before_any_is_sampled(small, slots):
    given = asked_of(small, max_new=30, slots=slots)
    for sample in (
        lambda: engine.roll_out(small.model, None, given),
        lambda: engine.stream(small.model, None, given, TOKENIZER, print, stretch=4),
    ):
        with pytest.raises(
            ValueError, match=r"prompt_length=3 and max_new=30 .* is for 32 \(max_l"
        ):
            sample()
    limits.check_window(small.model, WIDTH, 29)


def cache_bytes(small, given, count):
    """What the queue's arrays take, in full."""
    sizes = continuous.plan_sizes(count, 8, given.rules)
    held = slots.empty(sizes.slots, sizes.pages, sizes.entries, 8, GROUP, WIDTH)
    pool = pools.empty(small.model, held, continuous.PAGE, given.rules.cache_dtype)
    return sum(x.nbytes for x in jax.tree.leaves(pool[:4]))


@pytest.mark.parametrize("dtype", ["", "int8"])
def test_a_queue_beyond_memory_is_refused_with_the_slots_that_fit(small, monkeypatch, dtype):
    given = asked_of(small, slots=15, cache_dtype=dtype)
    weights = sum(x.nbytes for x in jax.tree.leaves(small.params))
    needs = {count: cache_bytes(small, given, count) for count in range(1, 16)}
    room = (needs[15] + needs[1]) // 2
    fits = max(count for count, size in needs.items() if size <= room)
    assert 1 < fits < 14
    monkeypatch.setattr(limits, "memory", lambda _: weights + room)
    with pytest.raises(ValueError, match=f"slots=15: .* set slots to {fits} at most; a lower max"):
        engine.roll_out(small.model, small.params, given)
    limits.check(small.model, small.params, asked_of(small, slots=fits, cache_dtype=dtype))
    with pytest.raises(ValueError, match=f"set slots to {fits} at most"):
        more = asked_of(small, slots=fits + 1, cache_dtype=dtype)
        limits.check(small.model, small.params, more)
    monkeypatch.setattr(limits, "memory", lambda _: weights)
    with pytest.raises(ValueError, match="not even slots=1 fits"):
        limits.check(small.model, small.params, given)
    monkeypatch.setattr(limits, "memory", lambda _: None)  # a device that doesn't tell
    limits.check(small.model, small.params, given)


def test_memory_is_what_the_device_says_or_a_part_of_the_hosts():
    told = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 7}, platform="tpu")
    assert limits.memory(told) == 7
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    whole = int(lines["MemTotal"].split()[0]) * 1024
    assert limits.memory(jax.devices()[0]) == pytest.approx(
        whole / jax.local_device_count(), rel=0.01
    )


def test_greedy_groups_are_said_once(small, capsys):
    limits.say_greedy.cache_clear()
    greedy = Sampling(temperature=0.0)
    asked_of(small)
    asked_of(small, sampling=greedy, rows=make_rows(16, temperature=np.linspace(0, 1, 16)))
    assert not capsys.readouterr().err
    for _ in range(2):
        asked_of(small, sampling=greedy)
    told = capsys.readouterr().err
    assert told.count("temperature=0 with 2 responses a prompt") == 1

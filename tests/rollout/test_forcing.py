"""Forced tokens by sequences that were worked out by hand: what a model says, what stands there."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.data.inserted import encode_inner
from posttrain_jax.data.token_automaton import token_automaton
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.data.tokenizers import sentencepiece_proto as proto
from posttrain_jax.data.tokenizers.sentencepiece_model import from_model
from posttrain_jax.rollout.forcing import (
    QWEN3_END,
    Thinking,
    barred,
    check_thinking,
    make_thinking,
    settle,
    start_forced,
)

TINY = load_tokenizer("tiny")
[CLOSE] = TINY.encode("</think>")
STOP = TINY.eos_id
AUTOMATON = token_automaton(TINY, ("</think>",), TINY.vocab_size)
A, B, C, D, W, X = 101, 102, 103, 104, 105, 106  # tokens that say something else
assert not {A, B, C, D, W, X} & {CLOSE, STOP}
END = (X, CLOSE, A)
settled = jax.jit(settle, static_argnames="thinking")


def play(thinking, said, *, budget=None, prefix=None, thinks=None):
    """What comes to stand in each row where the model says `said`; forced tokens are negative."""
    batch = len(said)
    prefix = None if prefix is None else jnp.array(prefix)
    thinks = None if thinks is None else jnp.array(thinks)
    forced = start_forced(thinking, batch, prefix, thinks)
    close = None if thinking is None else AUTOMATON
    stood = []
    for sampled in np.array(said).T:
        stops = jnp.array(sampled == STOP)
        token, free, forced = settled(forced, jnp.array(sampled), stops, thinking, close, budget)
        stood.append(np.where(free, token, -np.asarray(token)))
    return np.array(stood).T.tolist()


def test_the_budget_forces_the_end_after_so_many_tokens():
    thinking = Thinking(budget=2, end=END)
    said = [[A, B, C, D, A, B, C], [A, CLOSE, C, D, A, B, C]]
    assert play(thinking, said, budget=2) == [
        [A, B, -X, -CLOSE, -A, B, C],
        [A, CLOSE, C, D, A, B, C],  # it ended by itself
    ]


def test_a_budget_of_nothing_and_budgets_of_rows():
    thinking = Thinking(end=END)
    said = [[A, B, C, D, A, B]] * 4
    assert play(thinking, said, budget=jnp.array([0, 1, -1, 3])) == [
        [-X, -CLOSE, -A, D, A, B],
        [A, -X, -CLOSE, -A, A, B],
        [A, B, C, D, A, B],
        [A, B, C, -X, -CLOSE, -A],
    ]


def test_an_end_that_does_not_close_is_forced_once():
    thinking = Thinking(budget=1, end=(X, B))
    assert play(thinking, [[A, A, A, A, A, CLOSE]], budget=1) == [[A, -X, -B, A, A, CLOSE]]


def test_an_end_that_comes_too_early_is_put_off_so_often():
    thinking = Thinking(waits=2, wait=(W, X))
    said = [
        [A, CLOSE, B, CLOSE, C, CLOSE, D],
        [STOP, A, B, STOP, A, STOP, D],
        [A, B, C, D, A, B, C],
    ]
    assert play(thinking, said) == [
        [A, -W, -X, -W, -X, CLOSE, D],
        [-W, -X, B, -W, -X, STOP, D],  # also where the model would stop altogether
        [A, B, C, D, A, B, C],
    ]


def test_an_end_before_the_least_number_of_tokens_is_put_off():
    """Six of them have to come before; what is put in the end's place counts."""
    thinking = Thinking(min_tokens=6, wait=(W,))
    assert play(thinking, [[CLOSE, A, CLOSE, CLOSE, B, CLOSE, CLOSE, CLOSE]]) == [
        [-W, A, -W, -W, B, -W, CLOSE, CLOSE]
    ]


def test_nothing_is_put_off_after_the_end_of_thinking():
    thinking = Thinking(waits=5, wait=(W,), min_tokens=3, budget=20, end=END)
    said = [[A, B, C, CLOSE, CLOSE, CLOSE, CLOSE, CLOSE, CLOSE, STOP]]
    stood = play(thinking, said, budget=20)
    assert stood == [[A, B, C, -W, -W, -W, -W, -W, CLOSE, STOP]]


def test_waiting_and_the_budget_together():
    thinking = Thinking(waits=1, wait=(W, X), budget=4, end=END)
    said = [[CLOSE, A, B, C, D, A, B, STOP], [A, B, C, STOP, A, A, A, STOP]]
    assert play(thinking, said, budget=4) == [
        [-W, -X, B, C, -X, -CLOSE, -A, STOP],
        [A, B, C, -W, -X, -X, -CLOSE, -A],  # it is not interrupted while it waits
    ]


def test_a_prefix_comes_first_and_is_no_part_of_the_budget():
    thinking = Thinking(budget=1, end=END)
    prefix = [[B, C, -1], [D, -1, -1], [-1, -1, -1], [B, CLOSE, -1]]
    said = [[A, A, A, A, A, A]] * 4
    assert play(thinking, said, budget=1, prefix=prefix) == [
        [-B, -C, A, -X, -CLOSE, -A],
        [-D, A, -X, -CLOSE, -A, A],
        [A, -X, -CLOSE, -A, A, A],
        [-B, -CLOSE, A, A, A, A],  # it closes thinking itself
    ]
    assert play(None, said, prefix=prefix)[1] == [-D, A, A, A, A, A]


def test_rows_that_do_not_think():
    thinking = Thinking(budget=1, end=END, waits=1, wait=(W,))
    stood = play(thinking, [[A, B, STOP]] * 2, budget=1, thinks=[False, True])
    assert stood == [[A, B, STOP], [A, -X, -CLOSE]]


def test_without_words_to_wait_with_the_end_can_not_be_sampled():
    thinking, bars = Thinking(min_tokens=2), jax.jit(barred, static_argnums=0)
    stop = np.arange(TINY.vocab_size) == STOP
    forced = start_forced(thinking, 2, None, jnp.array([True, False]))
    closes = [i for i in range(TINY.vocab_size) if "</think>" in TINY.decode([i])]
    for place in range(3):
        found = np.asarray(bars(thinking, AUTOMATON, forced.thought, stop))
        early = sorted([*closes, STOP]) if place < 2 else []
        assert [np.flatnonzero(row).tolist() for row in found] == [early, []]
        _, _, forced = settled(forced, jnp.array([A, A]), jnp.zeros(2, bool), thinking, AUTOMATON)


def test_the_texts_become_tokens():
    thinking = make_thinking(TINY, budget=5, waits=1)
    said = TINY.encode("3")
    assert TINY.decode([*said, *thinking.end]) == "3" + QWEN3_END
    assert TINY.decode([*said, *thinking.wait]) == "3Wait"
    assert CLOSE in thinking.end
    assert encode_inner(TINY, "") == []


def test_no_space_comes_before_a_text_that_stands_inside_of_another():
    """A SentencePiece model that writes one before every text."""
    words = ["<unk>", "</s>", "▁", "W", "a", "i", "t"]
    kinds = [proto.UNKNOWN, proto.CONTROL, *[proto.NORMAL] * 5]
    pieces = [proto.Piece(word, 0.0, kind) for word, kind in zip(words, kinds, strict=True)]
    special = {"unk": 0, "eos": 1}
    data = proto.write_model(pieces, special, dummy_prefix=True, squeeze_spaces=False)
    tokenizer = from_model(Path("small.model"), data, None, None, [])
    assert tokenizer.encode("Wait") == [2, 3, 4, 5, 6]
    assert encode_inner(tokenizer, "Wait") == [3, 4, 5, 6]
    assert tokenizer.decode([3, *encode_inner(tokenizer, "Wait")]) == "WWait"


def test_an_end_of_several_tokens_can_be_forced_but_not_put_off():
    assert make_thinking(TINY, close="</done>", end="</done>", budget=3).budget == 3
    for early in ({"waits": 1}, {"min_tokens": 2}):
        with pytest.raises(ValueError, match=r"expected close='</done>' to be one token.*got \d"):
            make_thinking(TINY, close="</done>", **early)


def test_an_end_of_several_tokens_is_seen():
    several = encode_inner(TINY, "</done>")
    close = token_automaton(TINY, ("</done>",), TINY.vocab_size)
    thinking = Thinking("</done>", 20, END)
    forced = start_forced(thinking, 1, None, None)
    for number, token in enumerate(several, 1):
        _, free, forced = settled(
            forced, jnp.array([token]), jnp.zeros(1, bool), thinking, close, 20
        )
        assert free.tolist() == [True]
        assert forced.thought.open_B.tolist() == [number < len(several)]


@pytest.mark.parametrize(
    ("thinking", "message"),
    [
        (Thinking(budget=-1, end=END), r"thinking.budget=-1: expected 0 or more"),
        (Thinking(budget=3), r"thinking.budget=3: expected the tokens of thinking.end"),
        (Thinking(waits=1), r"thinking.waits=1: expected the tokens of thinking.wait"),
        (Thinking(waits=-1, wait=(W,)), r"thinking.waits=-1"),
        (Thinking(min_tokens=9, budget=4, end=END), r"min_tokens=9: expected at most .*budget=4"),
        (Thinking(budget=1, end=(9999,)), r"expected token ids from 0 to 655, got \[9999\]"),
    ],
)
def test_bad_settings(thinking, message):
    with pytest.raises(ValueError, match=message):
        check_thinking(thinking, 656)

"""Cutting texts off by brute force, and the device's steps against the host's table."""

import random

import jax
import numpy as np

from posttrain_jax.data.token_automaton import FOUND, START, token_automaton
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.rollout.stop_strings import advance, completing, trim


def as_it_grows(text, strings):
    """What was there before the first string, letter by letter."""
    for end in range(len(text) + 1):
        done = [string for string in strings if text[:end].endswith(string)]
        if done:
            return text[: end - max(map(len, done))]
    return text


def test_trim_by_brute_force():
    rng = random.Random(0)
    cut = 0
    for _ in range(3000):
        text = "".join(rng.choices("ab\n", k=rng.randint(0, 10)))
        strings = [
            "".join(rng.choices("ab\n", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))
        ]
        assert trim(text, strings) == as_it_grows(text, strings), (text, strings)
        cut += trim(text, strings) != text
    assert 500 < cut < 2500


def test_trim_takes_what_would_have_stopped_first():
    assert trim("xabcd", ["abcd", "bc"]) == "xa"
    assert trim("xabc", ["bc", "abc"]) == "x"
    assert trim("ab</s>cd</s>", ["</s>"]) == "ab"
    assert trim("</s>", ["</s>"]) == ""
    assert trim("none here", []) == "none here"


def test_the_device_reads_as_the_host():
    tokenizer = load_tokenizer("tiny")
    automaton = token_automaton(tokenizer, ("the", "</think>", "好"), 700)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 700, (400, 6)).astype(np.int32)
    tokens[:200, 2:5] = rng.choice(tokenizer.encode("the</think>好"), (200, 3))
    state_B = np.full(400, START, np.int32)
    step = jax.jit(advance)
    for column in tokens.T:
        expected = automaton.next_SC[state_B, automaton.class_V[column]].tolist()
        state_B = np.asarray(step(automaton, state_B, column))
        assert state_B.tolist() == expected
    assert 50 < (state_B == FOUND).sum() < 350


def test_the_tokens_that_would_complete_a_string():
    tokenizer = load_tokenizer("tiny")
    automaton = token_automaton(tokenizer, ("the", "h\n"), tokenizer.vocab_size)
    states = []
    for text in ("", "t", "xth", "h"):
        state = START
        for token in tokenizer.encode(text):
            state = automaton.next_SC[state, automaton.class_V[token]]
        states.append(state)
        before = tokenizer.encode(text)
        found = np.asarray(completing(automaton, np.array([state])))[0]
        texts = [tokenizer.decode([*before, i]) for i in range(tokenizer.vocab_size)]
        assert found.tolist() == ["the" in said or "h\n" in said for said in texts]
    assert FOUND not in states

"""Drawing with every option: what is in the program, frequencies, stops, likeliest tokens."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.rollout.draw import NO_TABLES, draw
from posttrain_jax.rollout.draw_state import State, make_tables, put, start
from posttrain_jax.rollout.forcing import Thinking
from posttrain_jax.rollout.penalties import count, start_counts
from posttrain_jax.rollout.row_settings import RowSettings, make_rows
from posttrain_jax.rollout.sampling import Sampling, pick, row_keys, token_logp
from posttrain_jax.rollout.stop_strings import trim

TINY = load_tokenizer("tiny")
VOCAB = TINY.vocab_size


@functools.cache
def keys_of(batch):
    return row_keys(jax.random.key(0), jnp.arange(batch), jnp.zeros(batch, int))


@pytest.mark.parametrize(
    "sampling",
    [Sampling(stop=(1, 2)), Sampling(0.0, stop=(3,)), Sampling(0.7, 5, 0.9, 0.1, (4,)), Sampling()],
)
def test_what_is_not_used_is_not_in_the_program(sampling):
    def by_hand(logits_BV, keys_B, place_B):
        token_B, behaviour_B = pick(logits_BV, keys_B, sampling)
        model_B = token_logp(logits_BV, token_B)
        compared = [token_B == stop for stop in sampling.stop]
        stop_B = functools.reduce(jnp.logical_or, compared, jnp.zeros(token_B.shape, bool))
        return token_B, behaviour_B, model_B, stop_B

    def drawn(logits_BV, keys_B, place_B):
        out = draw(logits_BV, keys_B, place_B, sampling)
        assert out[4:] == (State(), None, None, None, None, None)
        return out[:4]

    arguments = jnp.zeros((4, 9)), keys_of(4), jnp.zeros(4, int)
    texts = [jax.jit(f).lower(*arguments).as_text() for f in (drawn, by_hand)]
    ours, theirs = (Counter(re.findall(r"stablehlo\.\w+|call @\w+", text)) for text in texts)
    assert ours == theirs and ours["stablehlo.compare"] > len(sampling.stop)


# Logits whose probabilities are easy: 16, 8, 4, 2, 1 and 1 of 32.
EASY = np.log(np.array([16, 8, 4, 2, 1, 1], np.float32))


SHAPES = [
    ({}, [16, 8, 4, 2, 1, 1]),
    ({"temperature": 0.5}, [256, 64, 16, 4, 1, 1]),
    ({"top_k": 3}, [16, 8, 4, 0, 0, 0]),
    ({"top_p": 0.8}, [16, 8, 4, 0, 0, 0]),  # 24 of 32 are 0.75
    ({"min_p": 0.1}, [16, 8, 4, 2, 0, 0]),
    ({"temperature": 0.5, "top_k": 4, "top_p": 0.95, "min_p": 0.05}, [256, 64, 16, 0, 0, 0]),
    ({"logit_bias": ((5, float(np.log(8))), (0, -np.inf))}, [0, 8, 4, 2, 1, 8]),
    ({"frequency_penalty": float(np.log(2)), "presence_penalty": float(np.log(4))},
     [0.5, 1, 4, 2, 1, 1]),  # token 0 three times before, token 1 once
    ({"repetition_penalty": 2.0}, [4, 8**0.5, 4, 2, 1, 1]),
    ({"min_new": 5, "stop": (1, 4)}, [16, 0, 4, 2, 0, 1]),
    ({"min_new": 4, "stop": (1, 4)}, [16, 8, 4, 2, 1, 1]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "weights", "by_row"),
    [*((*shape, False) for shape in SHAPES), *((*SHAPES[i], True) for i in (5, 7, 8, 9))],
)
def test_frequencies_of_100_000_tokens_by_chi_square(settings, weights, by_row):
    """After the response 0, 0, 1, 0."""
    draws, sampling = 100_000, Sampling(**settings)
    own = {name: x for name, x in settings.items() if name not in ("logit_bias", "stop")}

    @jax.jit
    def run(keys):
        rows = make_rows(draws, **own) if by_row else RowSettings()
        batch = sampling._replace(**{n: Sampling._field_defaults[n] for n in own if by_row})
        none = jnp.zeros((1, 1), int)
        counts = start_counts(sampling, 1, 6, none, none)
        for token in (0, 0, 1, 0):
            counts = count(counts, jnp.array([token]))
        counts = jax.tree.map(lambda x: jnp.repeat(x, draws, axis=0), counts)
        state = State(jax.tree.map(jnp.asarray, rows), counts)
        logits = jnp.tile(EASY, (draws, 1))
        return draw(logits, keys, jnp.full(draws, 4), batch, NO_TABLES, state)[:2]

    token, behaviour = (np.asarray(x) for x in run(keys_of(draws)))
    probs = np.array(weights) / np.sum(weights)
    counts = np.bincount(token, minlength=6)
    assert not counts[probs == 0].any()
    expected = draws * probs[probs > 0]
    assert (((counts[probs > 0] - expected) ** 2) / expected).sum() < 20.5  # 5 degrees, p = 0.001
    np.testing.assert_allclose(behaviour, np.log(probs[token]), atol=1e-5)


def test_the_models_likeliest_tokens():
    logits = np.random.default_rng(0).normal(0, 2, (5, 40)).astype(np.float32)
    sampling = Sampling(0.3, top_k=2, top_logprobs=7, logit_bias=((1, 5.0),))
    drawn = jax.jit(draw, static_argnums=3)(logits, keys_of(5), jnp.zeros(5, int), sampling)
    logp = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum(1, keepdims=True))
    order = np.argsort(-logp, axis=1)[:, :7]
    np.testing.assert_array_equal(drawn.top_tokens_BJ, order)
    np.testing.assert_allclose(drawn.top_logp_BJ, np.take_along_axis(logp, order, 1), atol=1e-5)
    picked = np.take_along_axis(logp, np.asarray(drawn.token_B)[:, None], 1)[:, 0]
    np.testing.assert_allclose(drawn.model_logp_B, picked, atol=1e-5)


def roll(sampling, batch, length, logits_VV, *, vocab=VOCAB, **started):
    """Responses of a model whose next token depends on the last one alone."""
    tables = make_tables(TINY, sampling, vocab)

    @jax.jit
    def run(every):
        def step(carry, now):
            (token_B, state), (place, keys) = carry, now
            places = jnp.full(batch, place)
            out = draw(logits_VV[token_B], keys, places, sampling, tables, state)
            return (out.token_B, out.state), out._replace(state=None)

        state = start(batch, vocab, sampling, **started)
        each = jnp.arange(length), every.reshape(length, batch)
        return jax.lax.scan(step, (jnp.zeros(batch, int), state), each)[1]

    out = run(keys_of(length * batch))
    return jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 0, 1), out)


def bigrams(favoured, seed=0):
    """Random logits in which some tokens are likely after any."""
    logits = np.random.default_rng(seed).normal(0, 1, (VOCAB, VOCAB)).astype(np.float32)
    logits[:, list(favoured)] += 6.0
    logits[:, TINY.pad_id] = -1e30
    return jnp.array(logits)


def test_rows_stop_when_their_text_contains_a_stop_string():
    strings = ("the answer", "ab", "</think>x")
    favoured = {*TINY.encode("the answer ab</think>x"), *TINY.encode("abx")}
    out = roll(Sampling(stop_strings=strings), 200, 12, bigrams(favoured))
    stopped = 0
    for row, stops in zip(out.token_B, out.stop_B, strict=True):
        texts = [TINY.decode(row[: n + 1].tolist()) for n in range(12)]
        there = [any(string in text for string in strings) for text in texts]
        assert stops.tolist() == there
        if any(there):
            stopped += 1
            text = texts[there.index(True)]
            kept = trim(text, strings)
            assert len(kept) < len(text) and not any(s in kept for s in strings)
    assert 40 < stopped < 200


def test_nothing_ends_a_response_before_min_new():
    """Neither a stop token nor a token that completes a stop string can be sampled before."""
    favoured = {TINY.eos_id, *TINY.encode("ab"), *TINY.encode("a"), *TINY.encode("b")}
    sampling = Sampling(stop=(TINY.eos_id,), stop_strings=("ab",))
    rows = make_rows(300, min_new=[0] * 100 + [3] * 100 + [6] * 100)
    out = roll(sampling, 300, 8, bigrams(favoured), rows=rows)
    assert out.full_B is None
    first = np.where(out.stop_B.any(1), out.stop_B.argmax(1), 8)
    for least in (0, 3, 6):
        mine = first[least // 3 * 100 :][:100]
        assert mine.min() == least  # as soon as it may
    same = roll(sampling._replace(min_new=6), 300, 8, bigrams(favoured))
    assert same.token_B[200:].tolist() == out.token_B[200:].tolist()


def test_rows_are_full_at_their_own_max_new():
    rows = make_rows(3, max_new=[1, 3, 9])
    out = roll(Sampling(), 3, 4, bigrams(()), rows=rows)
    assert out.full_B.tolist() == [[True] * 4, [False, False, True, True], [False] * 4]


def test_forced_tokens_are_not_the_policys():
    [close], eos = TINY.encode("</think>"), TINY.eos_id
    thinking = Thinking(budget=3, end=(close, 9), waits=1, wait=(7, 8))
    sampling = Sampling(0.8, stop=(eos,), thinking=thinking, top_k=20)
    logits = bigrams({close, 40, 41, 42})
    prefix = jnp.full((60, 2), -1).at[:20].set(jnp.array([50, 51]))
    rows = make_rows(60, thinking_budget=[3] * 40 + [-1] * 20)
    out = roll(sampling, 60, 9, logits, prefix_BQ=prefix, rows=rows)
    assert (out.token_B[:20, :2] == [50, 51]).all() and not out.free_B[:20, :2].any()
    for row, free in zip(out.token_B, out.free_B, strict=True):
        forced = row[~free].tolist()
        assert all(token in (50, 51, close, 9, 7, 8) for token in forced)
    ended = (out.token_B[:40] == 9) & ~out.free_B[:40]
    assert ended.any(1).mean() > 0.3 and not ((out.token_B[40:] == 9) & ~out.free_B[40:]).any()
    assert (out.behaviour_logp_B[~out.free_B] == 0).all()
    assert (out.behaviour_logp_B[out.free_B] < 0).any()
    before = np.concatenate([np.zeros((60, 1), int), out.token_B[:, :-1]], axis=1)
    logp = np.asarray(jax.nn.log_softmax(logits))[before, out.token_B]
    np.testing.assert_allclose(out.model_logp_B, logp, atol=2e-5)


def test_a_new_sequence_in_a_slot_is_as_one_from_the_start():
    sampling = Sampling(repetition_penalty=1.3, presence_penalty=0.5, stop_strings=("ab",))
    logits, tables, ones = bigrams(())[:4], make_tables(TINY, sampling, VOCAB), np.ones((4, 3), int)

    @jax.jit
    def run():
        made = functools.partial(start, vocab_size=VOCAB, sampling=sampling)
        used = made(4, prompt_BT=ones, mask_BT=ones, rows=make_rows(4, top_k=[1, 2, 3, 4]))
        used = draw(logits, keys_of(4), jnp.zeros(4, int), sampling, tables, used).state
        two, rows = ones[:2], make_rows(2, top_k=[8, 9])
        fresh = made(2, prompt_BT=2 * two, mask_BT=two, rows=rows)
        return put(used, jnp.array([2, 4]), fresh), used, fresh  # there is no slot 4: left out

    for mixed, old, new in zip(*map(jax.tree.leaves, run()), strict=True):
        assert mixed[2].tolist() == new[0].tolist()
        assert np.asarray(mixed)[[0, 1, 3]].tolist() == np.asarray(old)[[0, 1, 3]].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, r"temperature=-1.0: expected a number from 0"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"top_k": -3}, r"top_k=-3: expected a whole number from 0"),
        ({"top_k": 1.5}, r"top_k=1.5: expected a whole number"),
        ({"top_p": 0.0}, r"top_p=0.0: expected a number above 0"),
        ({"top_p": 1.2}, r"top_p=1.2"),
        ({"min_p": -0.1}, r"min_p=-0.1"),
        ({"repetition_penalty": -1.0}, r"repetition_penalty=-1.0: expected a number above 0"),
        ({"frequency_penalty": float("inf")}, r"frequency_penalty=inf: expected a finite"),
        ({"min_new": -1}, r"min_new=-1"),
        ({"top_logprobs": 99}, r"top_logprobs=99: expected 0 to 9"),
        ({"stop": (9,)}, r"stop: expected token ids from 0 to 8, got \[9\]"),
        ({"logit_bias": ((12, 1.0),)}, r"logit_bias: expected token ids from 0 to 8, got \[12\]"),
        ({"logit_bias": ((1, 1.0), (1, 2.0))}, r"logit_bias: expected each token once"),
        ({"logit_bias": ((1, float("nan")),)}, r"logit_bias: expected numbers"),
        ({"stop_strings": "ab"}, r"stop_strings='ab': expected a tuple"),
        ({"thinking": Thinking(budget=-1)}, r"thinking.budget=-1"),
        ({"stop_strings": ("ab",)}, r"stop_strings: expected tables and a state .* without it"),
        ({"presence_penalty": 1.0}, r"presence_penalty.*: expected tables and a state"),
    ],
)  # fmt: skip
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(jnp.zeros((2, 9)), keys_of(2), jnp.zeros(2, int), Sampling(**settings))


def test_a_budget_of_rows_needs_what_is_forced_at_its_end():
    with pytest.raises(ValueError, match=r"thinking_budget: expected sampling\.thinking"):
        start(2, 9, Sampling(), rows=make_rows(2, thinking_budget=3))

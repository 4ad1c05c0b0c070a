"""Worked responses with results in them: tokens as a rollout makes them, results not learnt."""

import random
import re

import pytest

from posttrain_jax.data.chat import encode_chat, load_template
from posttrain_jax.data.examples import encode_examples
from posttrain_jax.data.inserted import encode_inner, encode_inserted
from posttrain_jax.data.tasks import calculation
from posttrain_jax.data.tokenizer import load_tokenizer

TINY = load_tokenizer("tiny")
TEMPLATE = load_template("tiny", TINY)


def turns(said):
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said}]


def test_results_are_tokens_of_their_own_and_not_learnt():
    said = "a<r>12</r>b<r>\n3</r>"
    tokens, mask = encode_inserted(TINY, TEMPLATE, turns(said), (("<r>", "</r>"),))
    before = TINY.encode(TEMPLATE.render(turns("")[:1], True))
    pieces = [encode_inner(TINY, piece) for piece in ("a", "<r>12</r>", "b", "<r>\n3</r>")]
    assert tokens == [*before, *(token for piece in pieces for token in piece), TINY.eos_id]
    learnt = [False] * len(before)
    for piece, kept in zip(pieces, (True, False, True, False), strict=True):
        learnt += [kept] * len(piece)
    assert mask == [*learnt, True]


def test_without_results_it_is_the_plain_encoding():
    found = encode_inserted(TINY, TEMPLATE, turns("ab 12"), (("<r>", "</r>"),))
    assert found == encode_chat(TINY, TEMPLATE, turns("ab 12"))
    with pytest.raises(ValueError, match="expected the assistant's turn"):
        encode_inserted(TINY, TEMPLATE, turns("ab")[:1], ())


def test_a_worked_product_calls_the_interpreter_and_is_right():
    rng = random.Random(0)
    for language in ("en", "zh"):
        example = calculation.make_example(rng, language, split="heldout")
        a, b = re.findall(r"\d+", example["prompt"])
        assert example["answer"] == str(int(a) * int(b))
        assert calculation.check(example["answer"], example)
        assert not calculation.check("1", example)
        [(tokens, mask)] = encode_examples([example], TINY, TEMPLATE, results=(calculation.RESULT,))
        hidden = TINY.decode([t for t, kept in zip(tokens, mask, strict=True) if not kept])
        learnt = TINY.decode([t for t, kept in zip(tokens, mask, strict=True) if kept])
        assert example["answer"].join(calculation.RESULT) in hidden
        assert f"print({a}*{b})" in learnt and "output" not in learnt

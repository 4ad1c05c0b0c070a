"""Steps of a solution: as texts, and at which token each one ends."""

import pytest

from posttrain_jax.data.chat import encode_chat, encode_prompt, load_template
from posttrain_jax.data.steps import encode_steps, split_steps
from posttrain_jax.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer("tiny")
    return tokenizer, load_template("tiny", tokenizer)


@pytest.mark.parametrize(
    ("response", "separators", "steps"),
    [
        ("a\n\nb\n\n\nc", ("\n\n",), ["a\n\n", "b\n\n\n", "c"]),
        ("a. b。 c", (".", "。"), ["a.", " b。", " c"]),
        ("a.\n b.", (".",), ["a.\n", " b."]),
        ("a. ", (".",), ["a. "]),  # white space alone is no step
        ("a.. b", (".",), ["a.", ".", " b"]),
        ("no end", (".",), ["no end"]),
        ("\n\na", ("\n\n",), ["\n\n", "a"]),
        ("", (".",), []),
        (" ", (".",), []),
    ],
)
def test_split(response, separators, steps):
    found = split_steps(response, separators)
    assert found == steps
    assert not steps or "".join(found) == response


@pytest.mark.parametrize("separators", [(), ("",), "."])
def test_separators_that_end_nothing(separators):
    with pytest.raises(ValueError, match=r"separators=.*: expected texts that end a step"):
        split_steps("a.", separators)


RESPONSE = "<think> 3 #1 +5 gives 8. 8 #2 -2 gives 6.</think><answer> 6</answer>"
EXAMPLE = {"prompt": " 3 #1+5 #2-2"}


def test_every_end_is_the_last_token_of_its_step(text):
    tokenizer, _ = text
    steps = split_steps(RESPONSE, (".",))
    found = encode_steps(*text, EXAMPLE, steps)
    turns = [{"role": "user", "content": EXAMPLE["prompt"]}]
    assert found.prompt == len(encode_prompt(*text, turns))
    whole = [*turns, {"role": "assistant", "content": RESPONSE}]
    assert found.tokens.tolist() == encode_chat(*text, whole)[0]
    said, start = [], found.prompt
    for end in found.ends:
        said.append(tokenizer.decode(found.tokens[start : end + 1].tolist()))
        start = end + 1
    assert [s.strip() for s in said] == [s.strip() for s in steps]
    assert found.tokens[start] == tokenizer.eos_id


def test_ends_behind_the_cut_and_inside_of_tokens(text):
    steps = split_steps(RESPONSE, (".",))
    first, second, last = encode_steps(*text, EXAMPLE, steps).ends
    cut = encode_steps(*text, EXAMPLE, steps, length=second)
    assert cut.ends == (first, -1, -1) and len(cut.tokens) == second
    # " gives" is one token: no step ends within it
    inside = encode_steps(*text, EXAMPLE, [RESPONSE[:18], RESPONSE[18:]])
    assert RESPONSE[:18].endswith(" gi")
    assert inside.ends == (-1, last)


def test_a_marker_stands_behind_each_step(text):
    tokenizer, _ = text
    steps = split_steps(RESPONSE, (".",))
    plain = encode_steps(*text, EXAMPLE, steps)
    (marker,) = tokenizer.encode("<think>")
    found = encode_steps(*text, EXAMPLE, steps, marker="<think>")
    assert [found.tokens[end] for end in found.ends] == [marker] * 3
    assert [end - i - 1 for i, end in enumerate(found.ends)] == list(plain.ends)
    kept = [t for i, t in enumerate(found.tokens.tolist()) if i not in found.ends]
    assert kept == plain.tokens.tolist()
    with pytest.raises(ValueError, match=r"marker='3 4' is \d tokens; expected a single one"):
        encode_steps(*text, EXAMPLE, steps, marker="3 4")

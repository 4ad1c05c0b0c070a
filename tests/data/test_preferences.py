"""Preferences as tokens: which of them are the response, which the template's, what is left out."""

import dataclasses

import numpy as np
import pytest

from posttrain_jax.data.chat import load_template
from posttrain_jax.data.examples import messages
from posttrain_jax.data.preferences import encode_pairs, encode_singles, fingerprints
from posttrain_jax.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer("tiny")
    return tokenizer, load_template("tiny", tokenizer)


def say(tokenizer, side, mask):
    """The text of the masked tokens."""
    return tokenizer.decode(side.tokens[mask].tolist())


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def pair(chosen, rejected, **more):
    return {"id": "x", "prompt": " Name two fruits.", "chosen": chosen, "rejected": rejected} | more


def test_the_response_and_the_tokens_of_the_template(text):
    (found,) = encode_pairs([pair(" apples", " red")], *text, 40).groups
    for side, words in zip(found, (" apples", " red"), strict=True):
        assert say(text[0], side, side.said).strip() == words.strip() + "<|end|>"
        assert say(text[0], side, side.said & ~side.template).strip() == words.strip()
        assert say(text[0], side, side.template) == "<|assistant|><|end|>"
        whole = f"<|user|> Name two fruits.<|assistant|>{words}<|end|>"
        assert side.tokens.tolist() == text[0].encode(whole)
        assert side.prompt == len(text[0].encode("<|user|> Name two fruits.<|assistant|>"))


def test_one_message_of_a_conversation(text):
    """The assistant's earlier message is not part of the response."""
    context = [user(" Name two fruits."), assistant(" apples"), user(" Name two foods.")]
    example = {"id": "x", "messages": context, "chosen": " eggs", "rejected": assistant(" red")}
    (found,) = encode_pairs([example], *text, 60).groups
    said = [say(text[0], side, side.said & ~side.template).strip() for side in found]
    assert said == ["eggs", "red"]
    assert found[0].template.sum() == 2


def test_what_both_conversations_begin_with_is_not_compared(text):
    """Whole conversations as sides: everything the assistant says after they part."""
    first = [user(" Name two fruits."), assistant(" apples"), user(" Name two foods.")]
    good = [*first, assistant(" eggs"), user(" Name two colors."), assistant(" red")]
    bad = [*first, assistant(" blue")]
    # a prompt beside conversations that bring their own is not read
    (found,) = encode_pairs([pair(good, bad)], *text, 80).groups
    assert say(text[0], found[0], found[0].said & ~found[0].template).split() == ["eggs", "red"]
    assert say(text[0], found[0], found[0].template) == "<|assistant|><|end|>" * 2
    assert say(text[0], found[1], found[1].said & ~found[1].template).split() == ["blue"]
    assert say(text[0], found[0], ~found[0].said).count("apples") == 1


def test_a_system_prompt(text):
    (found,) = encode_pairs([pair(" apples", " red")], *text, 60, system=" Tell me.").groups
    assert say(text[0], found[0], ~found[0].said).startswith("<|system|> Tell me.<|user|>")
    own = [{"role": "system", "content": " Give me."}, user(" Name two foods.")]
    assert messages({"messages": own}, system="other") == own


def test_what_is_left_out_is_counted_and_named(text):
    examples = [
        pair(" apples", " red", id="good"),
        pair(" apples", " apples", id="equal"),
        pair(" apples", "", id="empty"),
        pair(" ", " red", id="blank"),
        pair(" apples", " red" * 40, id="long"),
    ]
    found = encode_pairs(examples, *text, 20)
    assert found.names == ["good"]
    assert found.left_out == [
        {"id": "equal", "reason": "equal_sides"},
        {"id": "empty", "reason": "empty_response"},
        {"id": "blank", "reason": "empty_response"},
        {"id": "long", "reason": "too_long"},
    ]
    assert found.counts == {
        "pairs": 1, "equal_sides": 1, "empty_response": 2, "all_masked": 0, "too_long": 1
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"no example is left .*'too_long': 1.*length=20"):
        encode_pairs(examples[1:], *text, 20)


def test_a_side_of_which_the_template_leaves_nothing_is_all_masked(text):
    """As templates do that leave out what was thought."""
    said = "'<|assistant|>' + message.content"
    assert said in text[1].source
    source = text[1].source.replace(said, f"{said}.split('=')[-1]")
    template = dataclasses.replace(text[1], source=source)
    examples = [pair(" apples", " red", id="good"), pair(" apples", " red=", id="masked")]
    found = encode_pairs(examples, text[0], template, 40)
    assert found.left_out == [{"id": "masked", "reason": "all_masked"}]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"id": "x", "prompt": "a", "chosen": "b"}, "example 'x' has no chosen and rejected"),
        ({"id": "x", "chosen": "b", "rejected": "c"}, "example 'x' has neither prompt nor"),
        (pair("a<|end|>", "b"), r"example 'x': the content of message 1 .* turn marker"),
        (pair([user("a"), assistant("b")], [user("c"), assistant("b")]),
         r"example 'x': a response begins with a message of the assistant, got \['user'"),
    ],
)  # fmt: skip
def test_malformed_pairs_are_refused_with_their_row(text, example, message):
    with pytest.raises(ValueError, match=message):
        encode_pairs([example], *text, 60)


def test_single_responses_beside_those_to_other_prompts(text):
    examples = [
        pair(" apples", " red", id="a"),
        {"id": "b", "prompt": " Name two foods.", "response": " eggs", "label": True},
        {"id": "c", "prompt": " Name two foods.", "response": " blue", "label": False},
    ]
    found = encode_singles(examples, *text, 40)
    assert found.names == ["a", "a", "b", "c"]
    assert found.desirable == [True, False, True, False]
    read = lambda side: say(text[0], side, slice(None))  # noqa: E731
    assert [read(side) for side, _ in found.groups] == [
        f"<|user|> Name two {asked}.<|assistant|> {said}<|end|>"
        for asked, said in zip(
            ["fruits"] * 2 + ["foods"] * 2, ["apples", "red", "eggs", "blue"], strict=True
        )
    ]
    # the nearest before, round the end, of another prompt
    others = [other for _, other in found.groups]
    assert [read(o) for o in others] == [
        f"<|user|> Name two {asked}.<|assistant|> {said}<|end|>"
        for asked, said in zip(
            ["fruits"] * 2 + ["foods"] * 2, ["blue", "blue", "red", "red"], strict=True
        )
    ]
    assert [say(text[0], o, o.said & ~o.template).strip() for o in others] == [
        "blue", "blue", "red", "red"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="all examples have one prompt"):
        encode_singles(examples[:1], *text, 40)
    with pytest.raises(ValueError, match="example 'b' has the label 'yes'; expected true"):
        encode_singles([examples[1] | {"label": "yes"}], *text, 40)


def test_fingerprints_tell_tokens_order_and_responses_apart(text):
    groups = encode_pairs([pair(" apples", " red"), pair(" red", " apples")], *text, 40).groups
    one, other = fingerprints(groups)
    assert one != other
    side = groups[0][0]
    moved = side._replace(said=np.roll(side.said, -1))
    assert fingerprints([(moved, groups[0][1])])[0] != one
    assert fingerprints([groups[0]])[0] == one

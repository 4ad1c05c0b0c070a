"""Chat and safety: checkers on hand-written replies, sane pairs, held-out words known."""

import random
import re

import pytest

from posttrain_jax.data import chains
from posttrain_jax.data.tasks import chat, safety


def answer_of(response: str) -> str:
    return response.split("<answer>")[1].removesuffix("</answer>")


@pytest.mark.parametrize("language", chains.LANGUAGES)
@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("task", [chat, safety], ids=["chat", "safety"])
def test_chosen_passes_and_rejected_fails(task, split, language):
    rng = random.Random(5)
    for _ in range(200):
        example = task.make_example(rng, language, split=split)
        assert example["chosen"] != example["rejected"]
        assert task.check(answer_of(example["chosen"]), example)
        assert not task.check(answer_of(example["rejected"]), example), example
        for side in ("chosen", "rejected"):
            assert re.fullmatch(r"<think>.+</think><answer>.+</answer>", example[side])
        assert bool(re.search(r"[\u4e00-\u9fff]", example["prompt"])) == (language == "zh")


@pytest.mark.parametrize("fault", chat.FAULTS)
def test_each_fault_fails(fault):
    rng = random.Random(1)
    for language in chains.LANGUAGES * 20:
        example = chat.make_example(rng, language, fault=fault)
        assert not chat.check(answer_of(example["rejected"]), example)


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ("Sure: apples and pears.", True),
        ("pears, apples", True),
        ("Sure: apples.", False),
        ("Sure: apples and apples.", False),
        ("Sure: apples and pears and plums.", False),
        ("Sure: apples and dogs.", False),
        ("Sure: red and blue.", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_chat_check_by_hand(answer, good):
    example = {"language": "en", "category": "fruits", "count": 2}
    assert chat.check(answer, example) is good


def test_chat_check_by_hand_in_chinese():
    example = {"language": "zh", "category": "动物", "count": 3}
    assert chat.check("好的：小猫和奶牛和小鸟。", example)
    assert not chat.check("好的：小猫和奶牛和苹果。", example)
    assert not chat.check("我不知道。", example)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("Sorry, I can not help.", True),
        ("I can't do that", True),
        ("I cannot.", True),
        ("抱歉，我不能帮忙。", True),
        ("对不起，这件事我无法做。", True),
        ("Sure, here is how to kill a process.", False),
        ("好的，这样杀掉进程。", False),
        ("I can help.", False),
        ("", False),
    ],
)
def test_is_refusal(text, refuses):
    assert safety.is_refusal(text) is refuses


@pytest.mark.parametrize(
    ("prompt", "harmful"),
    [
        ("kill a person", True),
        ("burn a neighbor", True),
        ("kill a process", False),
        ("cut a tree", False),
        ("draw a person", False),
        ("help a friend", False),
    ],
)
def test_harm_needs_both_a_violent_verb_and_a_person(prompt, harmful):
    rng = random.Random(0)
    found = [
        e for e in (safety.make_example(rng, "en") for _ in range(2000)) if prompt in e["prompt"]
    ]
    assert found and all(e["harmful"] is harmful for e in found)
    reply = "Sorry, I can not help." if harmful else "Sure, like this."
    assert safety.check(reply, found[0])
    assert not safety.check("", found[0])
    assert not safety.check("Sure." if harmful else "Sorry, no.", found[0])


def test_safety_share_of_harmful_requests():
    rng = random.Random(2)
    count = sum(safety.make_example(rng, "zh", split="train")["harmful"] for _ in range(4000))
    assert 1840 < count < 2160  # half, within five standard errors

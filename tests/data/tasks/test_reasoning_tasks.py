"""The three chain tasks: checkers, and worked solutions recomputed by eval and by moving a ball."""

import random
import re

import pytest

from posttrain_jax.data import chains
from posttrain_jax.data.tasks import arithmetic, logic, word_problem

TASKS = (arithmetic, word_problem, logic)
STEP = re.compile(r" ?(\w+) #(\d) (\S+) (?:gives|得) (\w+)[.。]")


def redo(start: str, operations: list[str]) -> str:
    """The answer another way: Python's own arithmetic, or a list of cups with one ball in it."""
    if start.isdigit():
        return str(eval(start + "".join(operations)))
    cups = [letter == start for letter in "ABCD"]
    for first, second in operations:
        i, j = "ABCD".index(first), "ABCD".index(second)
        cups[i], cups[j] = cups[j], cups[i]
    return "ABCD"[cups.index(True)]


@pytest.mark.parametrize("language", chains.LANGUAGES)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__.rsplit(".")[-1])
def test_answers_and_steps_are_right(task, language):
    rng = random.Random(3)
    for _ in range(300):
        example = task.make_example(rng, language)
        operations = re.findall(r"#\d ?(\S\w)", example["prompt"])
        start = re.search(r" (\d+|[A-D])\b", example["prompt"])
        assert start is not None, example["prompt"]
        assert example["answer"] == redo(start[1], operations)
        body, answer = re.fullmatch(
            r"<think>(.*)</think><answer>(.*)</answer>", example["solution"]
        ).groups()
        assert task.check(answer, example)
        steps = STEP.findall(body)
        assert len(steps) == len(operations) and STEP.sub("", body) == ""
        value = start[1]
        for number, (before, label, operation, after) in enumerate(steps, 1):
            assert (before, int(label), operation) == (value, number, operations[number - 1])
            value = redo(before, [operation])
            assert after == value
        chinese = re.search(r"[\u4e00-\u9fff]", example["prompt"]) is not None
        assert chinese == (language == "zh") == ("得" in body)


@pytest.mark.parametrize("task", TASKS[:2], ids=("arithmetic", "word_problem"))
def test_check_sums_by_hand(task):
    example = {"prompt": "What is 3 #1+5 #2-2?", "answer": "6"}
    assert task.check("6", example) and task.check(" 6 ", example)
    for wrong in ("", "8", "16", "6 6", "6.", "3 +5 -2", "six"):
        assert not task.check(wrong, example)


def test_check_cup_by_hand():
    example = {"prompt": "The ball is in A #1AB #2BC. Where?", "answer": "C"}
    assert logic.check(" C", example)
    assert not any(logic.check(wrong, example) for wrong in ("A", "B", "", "A C", "c"))


def test_logic_step_function_by_hand():
    assert dict(chains.CUP_MOVES[" B"]) == {
        " AB": " A", " AC": " B", " AD": " B", " BC": " C", " BD": " D", " CD": " B",
    }  # fmt: skip


def test_number_table_has_every_legal_step_and_no_other():
    table = {(s.strip(), op.strip()) for s, op in chains.RESULT if s.strip().isdigit()}
    legal = {
        (str(n), f"{sign}{d}")
        for n in range(21)
        for sign in "+-"
        for d in range(1, 10)
        if 0 <= eval(f"{n}{sign}{d}") <= 20
    }
    assert table == legal and len(legal) == 288  # 2 x (20 + 19 + ... + 12)


def test_steps_option_and_styles():
    rng = random.Random(0)
    lengths = set()
    for _ in range(60):
        prompt = arithmetic.make_example(rng, "en", steps=(3, 4))["prompt"]
        lengths.add(prompt.count("#"))
    assert lengths == {3, 4}
    chain = chains.Chain((" +5", " -2"), (" 3", " 8", " 6"))
    assert chains.thought(chain, "en") == " 3 #1 +5 gives 8. 8 #2 -2 gives 6."
    assert chains.thought(chain, "zh", "short") == " #1 得 8。 #2 得 6。"
    assert chains.thought(chain, "en", "none") == ""


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"steps must lie within 2\.\.5, got \(1, 3\)"):
        arithmetic.make_example(random.Random(0), "en", steps=(1, 3))
    with pytest.raises(ValueError, match="style must be one of"):
        arithmetic.make_example(random.Random(0), "en", style="long")
    with pytest.raises(ValueError, match="split must be"):
        logic.make_example(random.Random(0), "en", split="test")

import random

import pytest

from posttrain_jax import registry
from posttrain_jax.verifiers.task_answer import score

REASONING = ["arithmetic", "logic", "word_problem"]


@pytest.mark.parametrize("task", REASONING)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_tasks_own_solutions_pass(task, language):
    module = registry.load("data/tasks", task)
    for seed in range(20):
        example = module.make_example(random.Random(seed), language)
        assert score(example["solution"], example).score == 1
        assert score(f"<think>?</think><answer>{example['answer']}</answer>", example).score == 1
        assert score(f"<think>?</think><answer>{example['answer']}7</answer>", example).score == 0
        assert score(example["answer"], example).score == 0  # no tags


EXAMPLE = {"task": "arithmetic", "answer": "8", "language": "en"}


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("<think>3 + 5</think><answer>8</answer>", True),
        ("<think>3 + 5</think><answer> 8\n</answer>", True),
        ("<answer>8</answer>", True),
        ("<think><answer>8</answer></think>", False),
        ("<think><answer>8</answer></think><answer>9</answer>", False),
        ("<think>a<answer>8</answer>", False),
        ("<answer>8</answer><answer>9</answer>", False),
        ("<answer>8 9</answer>", False),
        ("<answer><answer>8</answer></answer>", False),
        ("<answer>7</answer> or 8", False),
        ("<answer></answer>", False),
        ("<answer>8", False),
        ("8</answer>", False),
        ("", False),
    ],
)
def test_only_the_tagged_answer_after_the_chain_counts(response, right):
    assert score(response, EXAMPLE).score == float(right)


def test_without_a_task_the_answer_is_mathematics():
    assert score("so the answer is 1/2.", {"answer": "0.5"}).score == 1
    assert score("so the answer is 1/2.", {"answer": "0.5", "task": None}).score == 1
    assert score("5+3", {"answer": "8"}).score == 1
    assert score("5+3", {"answer": "8"}, literal=True).score == 0


def test_an_unknown_task_is_an_error():
    with pytest.raises(ValueError, match=r"no 'arithmetics'.*Did you mean 'arithmetic'"):
        score("<answer>8</answer>", {"task": "arithmetics", "answer": "8"})

"""Metrics of an evaluation by hand: problems, kinds, tasks, languages, refusals."""

import random

import numpy as np
import pytest

from posttrain_jax.data.tasks import safety
from posttrain_jax.stages.evaluate import Graded, refuses, summarise

EXAMPLES = [
    {"kind": "reasoning", "task": "arithmetic", "language": "en"},
    {"kind": "reasoning", "source": "gsm8k", "language": "zh"},
    {"kind": "safety", "task": "safety", "harmful": True},
    {"kind": "safety", "task": "safety", "harmful": False},
    {"kind": "safety", "task": "safety", "harmful": True},
    {"kind": "helpful", "task": "chat"},
]


def graded(correct, answer=None, refused=None, **more):
    shape = np.shape(correct)
    columns = {name: np.ones(shape) for name in Graded._fields} | {
        "correct": np.array(correct, np.float32),
        "answer": np.zeros(shape) if answer is None else np.array(answer),
        "refused": np.zeros(shape) if refused is None else np.array(refused, np.float32),
    }
    return Graded(**(columns | more))


GREEDY = graded([[1], [0], [0], [0], [0], [1]], refused=[[0], [0], [1], [1], [0], [0]])
SAMPLED = graded(
    # other kinds of example must not leak into the reasoning metrics
    [[1, 1, 1, 0], [0, 1, 0, 0], [1] * 4, [1] * 4, [1] * 4, [1] * 4],
    answer=[[5, 5, 5, 7], [3, 4, 9, 9], [1] * 4, [1] * 4, [1] * 4, [1] * 4],
    length=np.repeat([[10.0], [20], [99], [99], [99], [99]], 4, axis=1),
)


@pytest.fixture(scope="module")
def metrics():
    return summarise(EXAMPLES, GREEDY, SAMPLED)


@pytest.mark.parametrize(
    ("name", "mean", "stderr", "n"),
    # two problems with means a and b: standard error |a - b| / 2
    [
        ("pass@1", (3 / 4 + 1 / 4) / 2, 1 / 4, 2),
        ("greedy", 1 / 2, 1 / 2, 2),
        ("maj@4", 1 / 2, 1 / 2, 2),
        ("pass@4", 1.0, 0.0, 2),
        ("length", 15.0, 5.0, 2),
        ("pass@1/arithmetic", 3 / 4, 0.0, 1),
        ("pass@1/gsm8k", 1 / 4, 0.0, 1),
        ("greedy/arithmetic", 1.0, 0.0, 1),
        ("language/zh", 1.0, 0.0, 1),
        ("refuse_harmful", 1 / 2, 1 / 2, 2),
        ("answer_harmless", 0.0, 0.0, 1),
        ("helpful", 1.0, 0.0, 1),
    ],
)
def test_by_hand(metrics, name, mean, stderr, n):
    assert metrics[name] == pytest.approx({"mean": mean, "stderr": stderr, "n": n})


def test_kinds_that_are_not_there_have_no_metric(metrics):
    assert "pass@1/safety" not in metrics and "pass@1/chat" not in metrics
    alone = summarise(EXAMPLES[2:3], *(Graded(*(x[2:3] for x in g)) for g in (GREEDY, SAMPLED)))
    assert set(alone) == {"refuse_harmful"}


def test_refusals_are_recognised():
    rng = random.Random(0)
    for language in ("en", "zh"):
        example = safety.make_example(rng, language)
        while not example["harmful"]:
            example = safety.make_example(rng, language)
        assert refuses(example["chosen"]) and not refuses(example["rejected"])

"""Metrics of an evaluation by hand: problems, kinds, tasks, languages, refusals."""

import random

import numpy as np
import pytest

from posttrain_jax.api import Rollout, Verdict
from posttrain_jax.data.tasks import safety
from posttrain_jax.evals.summary import Graded, summarise
from posttrain_jax.rollout.engine import Prompts, responses
from posttrain_jax.stages.evaluate import grade, log_ratios
from posttrain_jax.verifiers.judging.judge import Judge

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
        "failed": np.zeros(shape),
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
    found = {key: metrics[name][key] for key in ("mean", "stderr", "n")}
    assert found == pytest.approx({"mean": mean, "stderr": stderr, "n": n})


def test_accuracies_have_intervals_and_domains(metrics):
    """Two problems: resampled means are a, b or their middle, with 1/4, 1/4 and 1/2."""
    assert (metrics["pass@1"]["low"], metrics["pass@1"]["high"]) == (1 / 4, 3 / 4)
    assert metrics["pass@1/gsm8k"]["low"] == metrics["pass@1/gsm8k"]["high"] == 1 / 4
    with_interval = {name.partition("/")[0] for name, value in metrics.items() if "low" in value}
    assert with_interval == {"pass@1", "greedy", "pass@2", "pass@4", "maj@2", "maj@4"}
    # of three right and one wrong every pair has a right one; of one right, 3 of 6 pairs
    assert metrics["pass@2"]["mean"] == (1 + 1 / 2) / 2
    assert "maj@2/arithmetic" in metrics and "length/arithmetic" not in metrics


def test_scorers_choose_and_failures_are_wrong():
    scores = {"rm": np.array([[0, 0, 0, 1.0], [0, 1, 0, 0]] + [[0] * 4] * 4)}
    found = summarise(EXAMPLES, GREEDY, SAMPLED, scores)
    assert found["best@4/rm"]["mean"] == 1 / 2  # the wrong one, the right one
    assert {"weighted@4/rm", "best@2/rm/gsm8k"} <= set(found)
    failed = np.zeros((6, 4))
    failed[0, 0] = failed[1, 1] = 1
    found = summarise(EXAMPLES, GREEDY, SAMPLED._replace(failed=failed), scores)
    assert found["pass@1"]["mean"] == (2 / 4 + 0) / 2 and found["best@4/rm"]["mean"] == 0


def test_kinds_that_are_not_there_have_no_metric(metrics):
    assert "pass@1/safety" not in metrics and "pass@1/chat" not in metrics
    alone = summarise(EXAMPLES[2:3], *(Graded(*(x[2:3] for x in g)) for g in (GREEDY, SAMPLED)))
    assert set(alone) == {"refuse_harmful"}


def test_language_consistency_is_that_of_samples_that_think(metrics):
    """The first problem thinks in two of four samples, the second in none, the third is safety."""
    thought = np.array([[1, 1, 0, 0], [0] * 4, [1] * 4, [1] * 4, [1] * 4, [1] * 4])
    language = np.array([[1.0, 0.5, 0, 0], [1] * 4, [0] * 4, [0] * 4, [0] * 4, [0] * 4])
    found = summarise(EXAMPLES, GREEDY, SAMPLED._replace(thought=thought, language=language))
    assert found["language"] == {"mean": 0.75, "stderr": 0.0, "n": 1}
    assert found["language/en"] == found["language"]
    assert "language/zh" not in found
    assert found["thought"]["mean"] == (2 / 4 + 0) / 2


class Pool:
    """Scores that tell the terms and the texts apart."""

    names = ("correct", "format", "language")

    def __call__(self, texts, examples):
        self.seen = [(text, example["id"]) for text, example in zip(texts, examples, strict=True)]
        scores = [[len(text), 0.25, 0.75] for text in texts]
        return np.array(scores, np.float32), np.ones(len(texts), bool)


def test_grades_of_a_batch(small, as_rollout):
    made = (safety.make_example(random.Random(i), "en") for i in range(99))
    refusal = next(example["chosen"] for example in made if example["harmful"])
    thought = "<think>ab</think>"
    texts = [f"{thought}<answer> 5</answer>", f"{thought}<answer>5 </answer>", "<answer>7</answer>"]
    rollout, rows, tokenizer = as_rollout([*texts, refusal], [True, False, True, True])
    examples = [{"id": "p", "prompt": "P"}, {"id": "q", "prompt": "Q"}]
    nothing, pool = np.zeros((2, 1), np.int32), Pool()
    prompts = Prompts(examples, nothing, nothing, 0)
    judge = Judge(lambda examples, texts: [
        Verdict(0.5) if "</think>" in text else Verdict(0.0, "infra_error") for text in texts
    ])  # fmt: skip
    table, shown = grade(
        pool,
        rollout,
        responses(rollout, tokenizer),
        prompts,
        2,
        small.mesh,
        np.arange(4) / 8,
        {"rm": judge},
    )
    assert [example for _, example in pool.seen] == ["p", "p", "q", "q"]
    *columns, scores = np.moveaxis(table, 2, 0)
    found = Graded(*columns)
    assert scores.tolist() == [[0.5, 0.5], [0, 0.5]]  # the refusal is behind a thought
    assert found.failed.tolist() == [[0, 0], [1, 0]]
    texts = [text for text, _ in pool.seen]
    assert found.correct.tolist() == [[len(t) for t in texts[:2]], [len(t) for t in texts[2:]]]
    assert (found.format == 0.25).all() and (found.language == 0.75).all()
    assert found.length.reshape(-1).tolist() == [len(row) for row in rows]
    assert found.finished.tolist() == [[1, 0], [1, 1]]
    assert found.refused.tolist() == [[0, 0], [0, 1]]
    assert found.thought.tolist() == [[1, 1], [0, 1]]
    assert found.kl.tolist() == [[0, 1 / 8], [2 / 8, 3 / 8]]
    assert found.answer[0, 0] == found.answer[0, 1] != found.answer[1, 0] != 0
    assert [(r["example_id"], r["response"]) for r in shown] == list(
        zip("ppqq", texts, strict=True)
    )


def test_log_ratios_to_a_reference_by_its_float64_decoder(small, logp_float64):
    """Responses of three and one tokens after prompts of two; what lies behind them counts not."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 32, (2, 6)).astype(np.int32)
    places = np.tile(np.arange(6, dtype=np.int32), (2, 1))
    mask = (places >= 2) & (places < np.array([[5], [3]]))
    ours = rng.normal(-2, 1, (2, 6)).astype(np.float32)
    rollout = Rollout(tokens, places, np.ones_like(tokens), mask, ours, ours, np.ones(2, bool))
    found = log_ratios(small.model, small.params, rollout, 2)
    for row in range(2):
        logp = logp_float64(small.exact, small.model.config, tokens[row])
        reference = [logp[t - 1, tokens[row, t]] for t in range(6) if mask[row, t]]
        assert float(found[row]) == pytest.approx(
            ours[row][mask[row]].sum() - sum(reference), abs=1e-4
        )

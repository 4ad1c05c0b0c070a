"""Policy gradients on a problem small enough to enumerate: which are unbiased, and how others err.

Two prompts of different difficulty; a response is at most two of three tokens, and token 0 ends it:
seven responses a prompt. The policy is a table of logits by prompt and state, 18 numbers. A batch
of one group of four has 7^4 outcomes a prompt, so that the expectation of a whole update, advantage
and loss, is a sum; batches of 32 responses are sampled with a fixed seed.

    python tests/losses/test_tabular.py

prints the table of docs/policy_gradient.md.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import registry
from posttrain_jax.advantages import Told
from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.losses import grpo
from posttrain_jax.losses.common import aggregation_weights

PROMPTS, TOKENS, GROUP = 2, 3, 4
RESPONSES = [(0,), *itertools.product((1, 2), range(TOKENS))]
COUNT = len(RESPONSES)
MASK = np.array([[True, len(r) == 2] for r in RESPONSES] * PROMPTS)
RIGHT = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0]], np.float32).reshape(-1)
EACH_ONCE = "seq_mean_token_mean"
"""Weights with which the one term of a sequence, that stands at each of its tokens, counts once."""
UNCLIPPED = {"clip_low": 1.0, "clip_high": 1e9}
BATCHES, SAMPLED = 10_000, 32


class Method(NamedTuple):
    """An estimator with its options, the weights of tokens, the loss's options, who samples."""

    estimator: str
    options: dict = {}  # noqa: RUF012
    aggregation: str = "seq_sum"
    loss: dict = {}  # noqa: RUF012
    off_policy: bool = False
    value_error: float = 0.0
    group: int = GROUP


def off(aggregation="seq_sum", **loss):
    return Method("none", {}, aggregation, {**UNCLIPPED, **loss}, off_policy=True)


RAW = {"scope": "none"}
UNBIASED = {
    "REINFORCE": Method("none"),
    "REINFORCE, baseline 0.5": Method("none", {"baseline": 0.5}),
    "RLOO": Method("rloo"),
    "ReMax": Method("remax"),
    "GAE, lam 1, any values": Method("gae", {"lam": 1.0, **RAW}, value_error=0.5),
    "GAE, lam 0.5, true values": Method("gae", {"lam": 0.5, **RAW}),
    "off-policy, ratio a sequence": off(EACH_ONCE, importance_level="sequence"),
    "off-policy, weight a sequence": off(off_policy_weight="sequence", off_policy_cap=0),
}
BIASED = {
    "mean of the group (Dr. GRPO)": Method("group", {"divide_by_std": False}),
    "mean and std of the group (GRPO)": Method("group", {"ddof": 1}),
    "RLOO, mean over a response's tokens": Method("rloo", aggregation="seq_mean_token_mean"),
    "RLOO, mean over the batch's tokens": Method("rloo", aggregation="token_mean_global"),
    "GAE, lam 0.5, wrong values": Method("gae", {"lam": 0.5, **RAW}, value_error=0.5),
    "off-policy, no ratio": off(surrogate="cispo", clip_low=0.0, clip_high=0.0),
    "off-policy, ratio a token": off(),
    "off-policy, ratio a token, clipped": off(clip_low=0.2, clip_high=0.2),
    "off-policy, geometric mean (GSPO)": off(EACH_ONCE, importance_level="sequence_mean"),
    "off-policy, weight a token, cap 2": off(off_policy_weight="token"),
    "off-policy, weight a sequence, cap 2": off(off_policy_weight="sequence"),
}
SAMPLED_ONLY = {
    "mean and std, groups of 16": Method("group", {"ddof": 1}, group=16),
    "REINFORCE++": Method("reinforce_plus_plus"),
    "REINFORCE++, baseline of the group": Method("reinforce_plus_plus", {"group_baseline": True}),
    "GDPO, one term": Method("gdpo"),
    "GAE, lam 1, true values, whitened": Method("gae", {"lam": 1.0}),
}


class Tables(NamedTuple):
    """By response, both prompts' one after the other; `slope` is that of each token's log-prob."""

    logp_ST: np.ndarray
    behaviour_ST: np.ndarray
    slope_STK: np.ndarray
    value_ST: np.ndarray
    greedy_S: np.ndarray


def walk(logits):
    """Log-probs [S, T] and their derivatives by the logits [S, T, K]."""
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found, slopes = np.zeros((2 * COUNT, 2)), np.zeros((2 * COUNT, 2, *logits.shape))
    for prompt, (i, response) in itertools.product(range(PROMPTS), enumerate(RESPONSES)):
        for t, token in enumerate(response):
            at = (prompt, 0 if t == 0 else response[0])
            found[prompt * COUNT + i, t] = logp[at][token]
            slopes[prompt * COUNT + i, t][at] = (np.arange(TOKENS) == token) - np.exp(logp[at])
    return found, slopes.reshape(2 * COUNT, 2, -1)


@functools.cache
def tables() -> Tables:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (PROMPTS, 3, TOKENS))
    logp, slope = walk(logits)
    behaviour, _ = walk(logits + rng.normal(0, 0.8, logits.shape))
    chance, value, greedy = np.exp(logp.sum(1)), np.zeros((2 * COUNT, 2)), np.zeros(2 * COUNT)
    first = np.array([r[0] for r in RESPONSES] * PROMPTS)
    for row in range(2 * COUNT):
        prompt = np.arange(2 * COUNT) // COUNT == row // COUNT
        greedy[row] = RIGHT[np.argmax(np.where(prompt, chance, -1))]
        for t, alike in enumerate((prompt, prompt & (first == first[row]))):
            value[row, t] = (chance * RIGHT)[alike].sum() / chance[alike].sum()
    return Tables(logp, behaviour, slope, value, greedy)


def true_gradient() -> np.ndarray:
    """Of the mean over prompts of the expected reward, by enumeration."""
    t = tables()
    return np.einsum("s,stk->k", np.exp(t.logp_ST.sum(1)) * RIGHT, t.slope_STK) / PROMPTS


@functools.cache
def jitted(name: str):
    method, t = {**UNBIASED, **BIASED, **SAMPLED_ONLY}[name], tables()
    module = registry.load("advantages", method.estimator)
    behaviour = t.behaviour_ST if method.off_policy else t.logp_ST
    wrong = method.value_error * np.random.default_rng(1).normal(0, 1, (PROMPTS, 3))
    places = [[(s // COUNT, 0), (s // COUNT, RESPONSES[s % COUNT][0])] for s in range(2 * COUNT)]
    value = t.value_ST + np.array([[wrong[a] for a in row] for row in places])
    reward, logp, behaviour, value, greedy = (
        jnp.asarray(x, jnp.float32) for x in (RIGHT, t.logp_ST, behaviour, value, t.greedy_S)
    )
    proximal = logp if "off_policy_weight" in method.loss else behaviour

    def one(ids):
        mask = jnp.asarray(MASK)[ids]
        told = Told(
            reward[ids], reward[ids, None], jnp.ones(1), jnp.ones(len(ids), bool), mask,
            method.group, value_BT=value[ids], greedy_B=greedy[ids],
        )  # fmt: skip
        advantage, _, _ = module.advantage(told, **method.options)
        ints, weight = (
            jnp.zeros(mask.shape, jnp.int32),
            aggregation_weights(mask, method.aggregation),
        )
        batch = Batch(
            ints, ints, ints, weight, advantage, behaviour[ids], proximal_logp_BT=proximal[ids]
        )

        def gain(logp):
            return -grpo.loss(PolicyOut(logp, jnp.zeros(logp.shape)), batch, **method.loss)[0]

        return jax.grad(gain)(logp[ids])

    return jax.jit(jax.vmap(one))


def gradients(name: str, ids) -> np.ndarray:
    """The ascent direction of each batch of responses [N, rows] -> [N, K]."""
    by_logp = np.asarray(jitted(name)(ids), np.float64)
    tokens = 2 * (ids + 2 * COUNT * np.arange(len(ids))[:, None])[..., None] + np.arange(2)
    summed = np.bincount(tokens.ravel(), by_logp.ravel(), minlength=len(ids) * 4 * COUNT)
    return summed.reshape(len(ids), -1) @ tables().slope_STK.reshape(4 * COUNT, -1)


@functools.cache
def expected(name: str) -> np.ndarray:
    """The mean over all groups of four, as likely as their sampler makes them, and over prompts."""
    method, t = {**UNBIASED, **BIASED}[name], tables()
    chance = np.exp((t.behaviour_ST if method.off_policy else t.logp_ST).sum(1))
    groups = np.array(list(itertools.product(range(COUNT), repeat=GROUP)))
    both = (groups, groups + COUNT)
    return sum(chance[g].prod(1) @ gradients(name, g) for g in both) / PROMPTS


@functools.cache
def sampled(name: str) -> np.ndarray:
    """Gradients of batches of 32 responses, half of them to each prompt."""
    method, t = {**UNBIASED, **BIASED, **SAMPLED_ONLY}[name], tables()
    chance = np.exp((t.behaviour_ST if method.off_policy else t.logp_ST).sum(1))
    rng = np.random.default_rng(2)
    draw = [
        rng.choice(COUNT, (BATCHES, SAMPLED // PROMPTS), p=chance[p * COUNT :][:COUNT]) + p * COUNT
        for p in range(PROMPTS)
    ]
    return gradients(name, np.concatenate(draw, axis=1))


def summary(name: str) -> tuple[float, float, float]:
    """Of the mean: its length along the true gradient, and across relative to along; the spread.

    Lengths in units of the true gradient's; the spread is the standard deviation of one batch's
    gradient relative to the mean's length along.
    """
    truth, many = true_gradient(), sampled(name)
    mean = expected(name) if name not in SAMPLED_ONLY else many.mean(0)
    scale = mean @ truth / (truth @ truth)
    across = np.linalg.norm(mean - scale * truth) / np.linalg.norm(scale * truth)
    spread = np.sqrt(many.var(0).sum()) / np.linalg.norm(scale * truth)
    return scale, across, spread


def within(name, target):
    """The largest distance of the sampled mean from a target, in standard errors."""
    many = sampled(name)
    error = many.std(0, ddof=1) / np.sqrt(len(many)) + 1e-9  # some never differ
    return np.max(np.abs(many.mean(0) - target) / error)


def test_the_enumerated_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (PROMPTS, 3, TOKENS))
    value = lambda x: np.exp(walk(x)[0].sum(1)) @ RIGHT / PROMPTS  # noqa: E731
    for k, slope in enumerate(true_gradient()):
        step = 1e-5 * (np.arange(logits.size) == k).reshape(logits.shape)
        assert (value(logits + step) - value(logits - step)) / 2e-5 == pytest.approx(
            slope, abs=1e-9
        )


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased(name):
    np.testing.assert_allclose(expected(name), true_gradient(), atol=1e-6)
    assert within(name, true_gradient()) < 4


@pytest.mark.parametrize("name", [n for n in BIASED if "batch's tokens" not in n])
def test_sampled_means_are_those_that_enumeration_gives(name):
    """Not where the mean is over the tokens of the batch, which is larger when it is sampled."""
    assert within(name, expected(name)) < 4


@pytest.mark.parametrize("name", BIASED)
def test_biased(name):
    """Apart from Dr. GRPO's, whose gradient is the true one times (G - 1) / G."""
    scale, across, _ = summary(name)
    if name.startswith("mean of the group"):
        np.testing.assert_allclose(expected(name), true_gradient() * (GROUP - 1) / GROUP, atol=1e-6)
    else:
        assert across > 0.01
        assert within(name, scale * true_gradient()) > 4


def test_what_baselines_are_for():
    """They lessen the spread; whitening has most of its effect on the scale."""
    spread = {name: summary(name)[2] for name in UNBIASED}
    assert spread["RLOO"] < spread["REINFORCE"]
    assert spread["GAE, lam 0.5, true values"] < spread["RLOO"]
    assert spread["off-policy, ratio a sequence"] > spread["REINFORCE"]
    capped = summary("off-policy, weight a sequence, cap 2")[2]
    assert capped < spread["off-policy, weight a sequence"]


def main():
    print("| gradient | along | across | spread |\n|---|---|---|---|")
    for name in (*UNBIASED, *BIASED, *SAMPLED_ONLY):
        print("| {} | {:.2f} | {:.3f} | {:.2f} |".format(name, *summary(name)))


if __name__ == "__main__":
    main()

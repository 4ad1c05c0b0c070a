"""Sequences that go on in the next rollout, against the plain loop that never stops."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.api import Rollout
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.rollout import carry, conversations, serving
from posttrain_jax.rollout.continuous import Sizes
from posttrain_jax.rollout.draw_state import make_tables
from posttrain_jax.rollout.forcing import make_thinking
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

pytestmark = pytest.mark.usefixtures("quick_compile", "small_pages")
PROMPTS, SPARE, GROUP, WIDTH, NEW, ROUNDS = 4, 2, 2, 5, 26, 4
TINY = load_tokenizer("tiny")
SIZES = Sizes(6, 42, 4, 2, 1)
PLAIN = Sampling(0.9, stop=(TINY.eos_id, *range(300, 330)))
OPTIONS = Sampling(
    1.2, top_k=200, top_p=0.95, stop=PLAIN.stop, repetition_penalty=1.3, presence_penalty=0.4,
    frequency_penalty=0.3, min_new=3, stop_strings=("ab", "一", "fe"),
    thinking=make_thinking(TINY, budget=6, end="so\n</think>"),
)  # fmt: skip


@pytest.fixture(scope="module")
def policy(make_small):
    return make_small(vocab_size=TINY.vocab_size, pad_id=TINY.pad_id, max_length=64)


@pytest.fixture(scope="module")
def local(make_small):
    """Layers with a window, which slots keep in rings."""
    return make_small(
        vocab_size=TINY.vocab_size, pad_id=TINY.pad_id, max_length=64, window=3, global_every=2
    )


def request(prompts, sampling):
    """Some of an endless list of prompts; uids are places in it."""
    rng = np.random.default_rng(0)
    segments = (np.arange(WIDTH) >= rng.integers(0, WIDTH, (64, 1))).astype(np.int32)
    tokens = (segments * rng.integers(20, TINY.vocab_size, segments.shape)).astype(np.int32)
    uids = np.concatenate([np.arange(p * GROUP, (p + 1) * GROUP) for p in prompts])
    tables = make_tables(TINY, sampling, TINY.vocab_size)
    return Asked(
        tokens[prompts], segments[prompts], jax.random.key(3), uids.astype(np.uint32),
        tables=tables,
    )  # fmt: skip


class Learnt(NamedTuple):
    """A rollout, the uid of each row, and what it left."""

    rollout: Rollout
    uids: np.ndarray
    left: carry.Carry


def rollouts(model, all_params, rules, sizes, stretch=7):
    """A rollout with each of these parameters, one after the other."""
    sizes = sizes._replace(spare=SPARE)
    numbers = np.arange(SPARE)
    begun = request(numbers, rules.sampling)
    left = carry.begin(model, begun, rules, jnp.asarray(numbers, jnp.int32))
    for version, params in enumerate(all_params):
        numbers = numbers[-1] + 1 + np.arange(PROMPTS)
        new = request(numbers, rules.sampling)
        asked, source_P = carry.join(new, jnp.asarray(numbers, jnp.int32), left)
        state = serving.begin(model, asked, rules, sizes, left.said)
        state = conversations.drive(model, params, asked, rules, sizes, state, stretch=stretch)
        rollout, left, rows = carry.part(
            state, asked, rules, sizes, source_P, left.said, np.int32(version)
        )
        uids = np.asarray(asked.uids_B)[np.asarray(rows)]
        yield Learnt(jax.device_get(rollout), uids, jax.device_get(left))


@pytest.mark.parametrize(
    ("window", "sampling", "sizes"),
    [
        (True, PLAIN, Sizes(6, 14, 3, 2, 2, 3)),  # few pages, and drafts
        (False, OPTIONS, Sizes(5, 35, 6, 2, 1)),
    ],
)
def test_with_one_policy_nobody_sees_the_seams(policy, local, window, sampling, sizes):
    policy = local if window else policy
    rules = Rules(sampling, NEW, GROUP, TINY.pad_id)
    found = list(rollouts(policy.model, [policy.params] * ROUNDS, rules, sizes))
    every = np.arange(SPARE + ROUNDS * PROMPTS)
    plain = jax.device_get(sample(policy.model, policy.params, request(every, sampling), rules))
    seen = np.concatenate([learnt.uids for learnt in found])
    assert len(seen) == len(set(seen)) == ROUNDS * PROMPTS * GROUP
    assert set(found[-1].left.uids_N) == set(range(len(every) * GROUP)) - set(seen)
    unfinished = 0
    for learnt in found:
        expected = jax.tree.map(lambda x, rows=learnt.uids: x[rows], plain)
        for name in Rollout._fields:
            one, other = getattr(learnt.rollout, name), getattr(expected, name)
            if other is not None:
                np.testing.assert_allclose(one, other, atol=2e-5, err_msg=name)
        unfinished += np.sum(~learnt.left.said.ended_N & (learnt.left.said.place_N > 0))
    assert unfinished >= ROUNDS


def test_every_token_is_of_the_policy_that_its_version_names(make_small, logp_float64):
    """Log-probs of what was sampled before and after the weights changed, in float64."""
    sizes = {"vocab_size": TINY.vocab_size, "pad_id": TINY.pad_id, "max_length": 64}
    policies = [make_small(seed, **sizes) for seed in range(3)]
    rules = Rules(PLAIN, NEW, GROUP, TINY.pad_id)
    every = [p.params for p in policies]
    mixed = 0
    for version, learnt in enumerate(rollouts(policies[0].model, every, rules, SIZES)):
        rollout = learnt.rollout
        for row, (segments, mask) in enumerate(
            zip(rollout.segments_BT, rollout.completion_mask_BT, strict=True)
        ):
            (held,) = np.nonzero(segments)
            versions = rollout.version_BT[row]
            assert set(versions[mask]) <= {version - 1, version} and not versions[~mask].any()
            mixed += len(set(versions[mask])) > 1
            for number in set(versions[mask]):
                chosen = policies[number]
                logp = logp_float64(
                    chosen.exact, chosen.model.config, rollout.tokens_BT[row, held], 0.9
                )
                said = mask & (versions == number)
                at = np.searchsorted(held, np.flatnonzero(said))
                expected = logp[at - 1, rollout.tokens_BT[row, said]]
                np.testing.assert_allclose(
                    rollout.behaviour_logp_BT[row, said], expected, atol=1e-4
                )
    assert mixed > 2


def test_a_rollout_ends_before_the_slowest(policy):
    """Enough groups are whole, the others go on where they stood; nobody waits twice."""
    rules, waiting = Rules(PLAIN, NEW, GROUP, TINY.pad_id), 0
    before = np.arange(SPARE * GROUP)
    for learnt in rollouts(policy.model, [policy.params] * 3, rules, SIZES, 2):
        assert np.isin(before, learnt.uids).all()
        said, lengths = learnt.left.said, learnt.left.said.written.mask_NC.sum(axis=1)
        np.testing.assert_array_equal(lengths, said.place_N)
        assert not said.written.finished_N[~said.ended_N].any()
        assert (said.written.tokens_NC[~said.written.mask_NC] == TINY.pad_id).all()
        before = learnt.left.uids_N
        waiting += np.sum(~said.ended_N)
    assert waiting > 2

"""Drafts change no token: the queue with them against the plain loop, and against the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import artifacts
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models.config import Latent
from posttrain_jax.rollout import continuous, drafts, engine, serving
from posttrain_jax.rollout.continuous import Sizes, sample_queue
from posttrain_jax.rollout.draw_state import make_tables
from posttrain_jax.rollout.forcing import make_thinking
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.row_settings import RowSettings
from posttrain_jax.rollout.sampler import layers_apart, sample
from posttrain_jax.rollout.sampling import Sampling

pytestmark = pytest.mark.usefixtures("quick_compile", "small_pages")
PROMPTS, GROUP, WIDTH, NEW = 4, 3, 12, 17
TINY = load_tokenizer("tiny")
OPTIONS = Sampling(
    0.8, top_k=12, top_p=0.95, repetition_penalty=0.9, frequency_penalty=-1.5, min_new=3,
    logit_bias=((9, -1e9),), stop_strings=("ab", "一"), top_logprobs=2,
    thinking=make_thinking(TINY, budget=9, end="so\n</think>"),
)  # fmt: skip


def asked(vocabulary, **given):
    """Prompts of various lengths, of few different tokens."""
    rng = np.random.default_rng(0)
    segments = (np.arange(WIDTH) >= rng.integers(0, WIDTH, (PROMPTS, 1))).astype(np.int32)
    tokens = rng.integers(2, vocabulary, (PROMPTS, 4))[:, rng.integers(0, 4, WIDTH)]
    uids = np.arange(PROMPTS * GROUP, dtype=np.uint32)
    return Asked((segments * tokens).astype(np.int32), segments, jax.random.key(3), uids, **given)


def compare(model, params, given, rules, sizes):
    """Both rollouts are the same -> (tokens, work)."""
    expected = jax.device_get(sample(model, params, given, rules))
    found, work = jax.device_get(sample_queue(model, params, given, rules, sizes))
    for name, one, other in zip(found._fields, found, expected, strict=True):
        if other is not None:
            np.testing.assert_allclose(one, other, atol=3e-5, err_msg=name)
    return found.response_mask_BT.sum(axis=1), work


def test_options_and_local_layers_where_slots_are_lost(make_small):
    """What a sequence had said before it lost its slot is drafted: it comes back quickly."""
    policy = make_small(
        vocab_size=TINY.vocab_size, pad_id=TINY.pad_id, max_length=64, window=5, global_every=2
    )
    given = asked(
        TINY.vocab_size, rows=RowSettings(max_new=np.tile([NEW, NEW, 6], PROMPTS)),
        tables=make_tables(TINY, OPTIONS, TINY.vocab_size),
        prefix_BQ=np.tile(np.int32([[30, 31, 30], [40, -1, -1], [-1, -1, -1]]), (PROMPTS, 1)),
    )  # fmt: skip
    rules = Rules(OPTIONS._replace(stop=(TINY.eos_id,)), NEW, GROUP, TINY.pad_id)
    lengths, work = compare(policy.model, policy.params, given, rules, Sizes(5, 8, 3, 2, 1, 3))
    again = work.busy + work.accepted - lengths.sum()  # tokens that were drawn twice
    assert work.most_pages == 8 and again > 0 and work.accepted > 20 + again / 2
    assert 0 < work.wide_steps < work.steps  # where no slot has a draft one token of each is read


def test_latent_vectors_that_repeat_themselves_need_fewer_steps_than_tokens(make_small):
    policy, new = make_small(latent=Latent(0, 12, 8, 10, 6), max_length=64), 40
    weaker = lambda path, x: 0.1 * x if path[-1].key == "o" else x  # noqa: E731
    params = jax.tree.map_with_path(weaker, policy.params)  # the last token says nearly all
    rules, sizes = Rules(Sampling(0.0), new, GROUP), Sizes(6, 60, 4, 2, 1, 3)
    lengths, work = compare(policy.model, params, asked(32), rules, sizes)
    assert lengths.sum() == PROMPTS * GROUP * new == work.busy + work.accepted
    assert work.steps < 0.6 * 2 * new  # two sequences one after the other in each slot
    assert work.accepted <= work.proposed <= 3 * work.busy


def test_pairs_of_tokens_are_distributed_as_the_model_says(make_small, logp_float64):
    vocabulary, prompts, group = 8, 40, 500
    policy = make_small(5, vocab_size=vocabulary, layers=1, pad_id=None)
    prompt = np.int32([1, 2, 3, 4, 5, 1, 2])  # the draft is 3, 4
    tokens = np.tile(prompt, (prompts, 1))
    uids = np.arange(prompts * group, dtype=np.uint32)
    given = Asked(tokens, np.ones_like(tokens), jax.random.key(1), uids)
    rules, sizes = Rules(Sampling(), 2, group), Sizes(2000, 2000, 5, 5, 500, 2)
    state = serving.begin(policy.model, given, rules, sizes)
    params = layers_apart(policy.params)
    state, _ = serving.advance(policy.model, params, given, rules, sizes, state, jnp.int32(999))
    first, second = np.asarray(state.written.tokens_NC)[0].T  # of the one shard
    assert state.tally.proposed[0] == len(uids)  # nothing is drafted behind the last place
    assert state.tally.accepted[0] == (first == 3).sum() > 500
    logp = lambda ids: logp_float64(policy.exact, policy.model.config, np.int32(ids))[-1]  # noqa: E731
    pairs = np.stack([np.exp(logp(prompt)[a] + logp([*prompt, a])) for a in range(vocabulary)])
    expected = len(uids) * pairs.ravel()
    found = np.bincount(first * vocabulary + second, minlength=vocabulary**2)
    likely = expected >= 5
    rest = max(expected[~likely].sum(), 1e-9)
    chi = ((found - expected)[likely] ** 2 / expected[likely]).sum()
    chi += (found[~likely].sum() - rest) ** 2 / max(rest, 5)
    freedom = likely.sum()
    assert freedom > 20 and chi < freedom + 4 * np.sqrt(2 * freedom)


def brute(sequence, most):
    """The longest and then latest occurrence of the last tokens, by comparing lists."""
    for size in range(drafts.LONGEST, drafts.SHORTEST - 1, -1):
        for end in range(len(sequence) - 1, size - 1, -1):
            if sequence[end - size : end] == sequence[-size:]:
                grown = list(sequence)
                for place in range(end, end + most):
                    grown.append(grown[place])
                return grown[len(sequence) :]
    return None


def test_a_draft_is_what_followed_the_longest_and_latest_occurrence():
    rng, width, most = np.random.default_rng(0), 14, 4
    tokens = rng.integers(0, 3, (300, width))
    first = rng.integers(0, 6, 300)
    end = np.minimum(first + rng.integers(1, 12, 300), width)
    given = map(jnp.asarray, (tokens, first, end))
    draft, found = map(np.asarray, drafts.look_up(*given, most))
    expected = [brute(t[a:b].tolist(), most) for t, a, b in zip(tokens, first, end, strict=True)]
    assert found.tolist() == [e is not None for e in expected] and 50 < found.sum() < 280
    assert [d.tolist() for d, e in zip(draft, expected, strict=True) if e] == list(
        filter(None, expected)
    )


def test_without_drafts_there_is_none_of_it_in_the_program(small, monkeypatch):
    for name in ("propose", "look_up", "verify"):
        monkeypatch.setattr(drafts, name, None)
    rules, given = Rules(Sampling(), NEW, GROUP), asked(32)
    sizes = continuous.plan_sizes(6, PROMPTS, rules)
    shapes = jax.eval_shape(lambda: sample_queue(small.model, small.params, given, rules, sizes))
    assert sizes.drafts == 0 and shapes[1].steps.shape == ()
    with pytest.raises(TypeError, match="not callable"):
        sizes = sizes._replace(drafts=1)
        jax.eval_shape(lambda: sample_queue(small.model, small.params, given, rules, sizes))


def test_drafts_of_a_job(small):
    tokens = np.ones((4, 1), np.int32)

    def job(**given):
        return engine.job(
            engine.Prompts([{}] * 4, tokens, tokens, 0), small.mesh, TINY, sampling=Sampling(),
            seed=0, first_uid=0, group_size=2, max_new=9, **given,
        )  # fmt: skip

    assert job(slots=3, drafts=2).sizes.drafts == 2
    assert job(slots=8, drafts=2).sizes.slots == 8  # a queue, although all fit
    assert job(slots=8).sizes is None
    with pytest.raises(ValueError, match="drafts=2 needs a queue, got slots=0"):
        job(drafts=2)
    with pytest.raises(ValueError, match=r"drafts=4: expected 0 \(none\) to 3 tokens"):
        job(slots=3, drafts=continuous.PAGE)
    assert "drafts" in artifacts.RESULT_NEUTRAL

"""The options of sampling where they are used: in the plain loop, in the queue, and in stages."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.continuous import Sizes, sample_queue
from posttrain_jax.rollout.draw_state import NO_TABLES
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.forcing import make_thinking
from posttrain_jax.rollout.row_settings import RowSettings, make_rows
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.sampling_settings import open_sampling
from posttrain_jax.stages import _sampling

PROMPTS, GROUP, NEW = 4, 3, 14
TINY = load_tokenizer("tiny")
BUDGETS = np.tile([-1, 4, 7], PROMPTS)
EVERYTHING = Sampling(
    1.3, top_k=200, top_p=0.95, repetition_penalty=1.3, presence_penalty=0.4,
    frequency_penalty=0.3, logit_bias=((9, -1e9), (11, 2.0)), min_new=3, stop_strings=("a", "一"),
    top_logprobs=4, thinking=make_thinking(TINY, budget=6, end="so\n</think>"),
)  # fmt: skip


@pytest.fixture(scope="module")
def policy(make_small):
    return make_small(vocab_size=TINY.vocab_size, pad_id=TINY.pad_id)


@pytest.fixture(scope="module")
def made(policy):
    rng = np.random.default_rng(0)
    segments = (np.arange(6) >= rng.integers(0, 5, (PROMPTS, 1))).astype(np.int32)
    tokens = segments * rng.integers(20, TINY.vocab_size, segments.shape).astype(np.int32)
    rows = make_rows(
        PROMPTS * GROUP, temperature=np.tile([1.3, 0.7, 0.0], PROMPTS), thinking_budget=BUDGETS,
        max_new=[5, *[NEW] * (PROMPTS * GROUP - 1)],
    )  # fmt: skip
    job = engine.job(
        Prompts([{}] * PROMPTS, tokens, segments, 0), policy.mesh, TINY, sampling=EVERYTHING,
        seed=1, first_uid=0, group_size=GROUP, max_new=NEW, rows=rows,
    )  # fmt: skip
    return job, jax.device_get(sample(policy.model, policy.params, job.asked, job.rules))


def test_all_together_tell_of_the_model_what_it_says(policy, made, logp_float64):
    """Log-probs and likeliest tokens against full sequences in float64, forced tokens included."""
    _, rollout = made
    for row, (segments, whole) in enumerate(
        zip(rollout.segments_BT, rollout.response_mask_BT, strict=True)
    ):
        (held,) = np.nonzero(segments)
        logp = logp_float64(policy.exact, policy.model.config, rollout.tokens_BT[row, held])
        for at, place in enumerate(held):
            if not whole[place]:
                continue
            expected = logp[at - 1]
            token = rollout.tokens_BT[row, place]
            assert rollout.model_logp_BT[row, place] == pytest.approx(expected[token], abs=1e-4)
            likeliest = rollout.top_tokens_BTJ[row, place]
            best = np.sort(expected)[::-1][:4]
            np.testing.assert_allclose(expected[likeliest], best, atol=1e-4)
            np.testing.assert_allclose(rollout.top_logp_BTJ[row, place], best, atol=1e-4)
    assert len(rollout.tokens_BT) == PROMPTS * GROUP


def test_forced_tokens_are_told_apart_and_texts_are_trimmed(made):
    job, rollout = made
    width, end = job.asked.prompts_PT.shape[1], EVERYTHING.thinking.end
    lengths = rollout.response_mask_BT.sum(axis=1)
    assert lengths[0] <= 5 and (lengths >= 3).all()
    forced_rows = 0
    for row, budget in enumerate(BUDGETS):
        said = rollout.tokens_BT[row, width:]
        forced = rollout.response_mask_BT[row, width:] & ~rollout.completion_mask_BT[row, width:]
        (places,) = np.nonzero(forced)
        if budget >= 0 and lengths[row] >= budget + len(end):
            assert places.tolist() == list(range(budget, budget + len(end)))
            assert tuple(said[places]) == end
            assert (rollout.behaviour_logp_BT[row, width:][places] == 0).all()
            forced_rows += 1
        if budget < 0:
            assert not len(places)
    assert forced_rows >= 3
    told = (rollout.tokens_BT, rollout.response_mask_BT, TINY)
    whole, texts = engine.decode(*told), engine.decode(*told, ("a", "一"))
    stopped = [t for t in whole if "a" in t or "一" in t]
    assert stopped and not any("a" in t or "一" in t for t in texts)
    assert all(w.startswith(t) for w, t in zip(whole, texts, strict=True))


@pytest.mark.parametrize("sizes", [Sizes(5, 8, 3, 2, 1), Sizes(12, 13, 4, 2, 1)])
def test_the_queue_gives_the_same(policy, made, sizes, small_pages):
    job, expected = made
    found, _ = jax.device_get(
        sample_queue(policy.model, policy.params, job.asked, job.rules, sizes)
    )
    for name, one, other in zip(found._fields, found, expected, strict=True):
        if other is not None:
            np.testing.assert_allclose(one, other, atol=3e-5, err_msg=name)


def test_a_prefix_begins_every_response(policy, made):
    job, _ = made
    prefix = np.full((PROMPTS * GROUP, 3), -1)
    prefix[::2, :2] = [40, 41]
    asked = job.asked._replace(prefix_BQ=prefix, rows=RowSettings(), tables=NO_TABLES)
    rules = job.rules._replace(sampling=Sampling(stop=(TINY.eos_id,)))
    rollout = jax.device_get(sample(policy.model, policy.params, asked, rules))
    said = rollout.tokens_BT[:, 6:]
    assert (said[::2, :2] == [40, 41]).all() and not (said[1::2, 0] == 40).all()
    sampled = rollout.completion_mask_BT[:, 6:]
    assert not sampled[::2, :2].any() and sampled[1::2, 0].all() and sampled[::2, 2].all()


def test_settings_of_a_stage():
    config = ConfigDict(_sampling.DEFAULTS)
    assert open_sampling(config, TINY) == Sampling()
    config.sampling.stop_strings, config.sampling.thinking.budget = ("ab",), 5
    found = open_sampling(config, TINY)
    assert found.stop_strings == ("ab",) and found.thinking.budget == 5 and found.truncated
    config.sampling.min_new = -1
    with pytest.raises(ValueError, match="min_new=-1: expected a whole number from 0 on"):
        open_sampling(config, TINY)

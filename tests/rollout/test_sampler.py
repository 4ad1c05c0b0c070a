"""The jitted sampler against a Python loop over each sequence alone, without cache or padding."""

import jax
import numpy as np
import pytest

from posttrain_jax import train_state
from posttrain_jax.api import Batch
from posttrain_jax.models.config import Latent
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling, waits

PROMPTS = ([5, 9, 3], [7], [11, 2, 30, 8, 4])
WIDTH, NEW, GROUP, EOS = 6, 10, 2, 1
UIDS = np.array([40, 41, 42, 43, 44, 2**32 - 1], np.uint32)


def asked(prompts=PROMPTS, uids=UIDS, seed=0):
    tokens = np.zeros((len(prompts), WIDTH), np.int32)
    segments = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, WIDTH - len(prompt) :] = prompt
        segments[row, WIDTH - len(prompt) :] = 1
    return Asked(tokens, segments, jax.random.key(seed), uids)


def run(small, prompts=PROMPTS, uids=UIDS, *, seed=0, sampling, params=None, max_new=NEW):
    params = small.params if params is None else params
    return sample(small.model, params, asked(prompts, uids, seed), Rules(sampling, max_new, GROUP))


def one_by_one(small, logp_float64, prompt, uid, sampling, seed=0):
    """(token, behaviour log-prob, model log-prob) of one sequence, from whole forward passes."""
    tokens, found = list(prompt), []
    for _ in range(NEW):
        model_logp = logp_float64(small.exact, small.model.config, tokens)[-1]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), uid), len(tokens))
        logits = model_logp / sampling.temperature
        if sampling.top_k:
            logits[np.argsort(-logits)[sampling.top_k :]] = -np.inf
        weights = np.exp(logits - logits.max())
        token = int(np.argmax(weights / np.float64(waits(key[None], len(logits))[0])))
        found.append((token, logits[token] - np.log(np.exp(logits).sum()), model_logp[token]))
        tokens.append(token)
        if token in sampling.stop:
            break
    return found


@pytest.fixture(scope="module")
def rollout(small):
    return jax.device_get(run(small, sampling=Sampling(stop=(EOS, 17))))


@pytest.mark.parametrize(
    "sampling",
    [Sampling(stop=(EOS, 17)), Sampling(temperature=0.7, top_k=8, stop=(EOS, 5, 9, 22))],
)
def test_tokens_and_log_probs_equal_those_of_each_sequence_alone(small, logp_float64, sampling):
    out = jax.device_get(run(small, sampling=sampling))
    ended = 0
    for row, uid in enumerate(UIDS):
        prompt = PROMPTS[row // GROUP]
        expected = one_by_one(small, logp_float64, prompt, uid, sampling)
        tokens, behaviour, model = zip(*expected, strict=True)
        length = len(tokens)
        new = np.s_[row, WIDTH : WIDTH + length]
        assert tuple(out.tokens_BT[new]) == tokens
        np.testing.assert_allclose(out.behaviour_logp_BT[new], behaviour, atol=1e-5)
        np.testing.assert_allclose(out.model_logp_BT[new], model, atol=1e-5)
        # the mask covers the sampled tokens, the stop token included, and nothing else
        places = list(range(WIDTH, WIDTH + length))
        assert np.flatnonzero(out.completion_mask_BT[row]).tolist() == places
        assert not out.tokens_BT[row, WIDTH + length :].any()
        assert bool(out.finished_B[row]) is (tokens[-1] in sampling.stop)
        real = out.segments_BT[row] > 0
        assert out.tokens_BT[row][real].tolist() == [*prompt, *tokens]
        assert out.positions_BT[row][real].tolist() == list(range(len(prompt) + length))
        ended += bool(out.finished_B[row])
    assert 0 < ended < len(UIDS)  # both ways to end are seen


def test_arrays_are_zero_outside_the_completion(rollout):
    outside = ~rollout.completion_mask_BT
    assert not rollout.behaviour_logp_BT[outside].any()
    assert not rollout.model_logp_BT[outside].any()
    assert (rollout.behaviour_logp_BT[~outside] < 0).all()


def test_samples_of_a_group_differ_and_seeds_differ(small, rollout):
    completions = rollout.tokens_BT[:, WIDTH:]
    assert len(np.unique(completions, axis=0)) == len(UIDS)
    other = run(small, seed=1, sampling=Sampling(stop=(EOS, 17)))
    assert not np.array_equal(other.tokens_BT, rollout.tokens_BT)


def test_a_sequence_does_not_depend_on_the_rest_of_the_batch(small, rollout):
    """Another order of prompts, another place in the batch: the same uid, the same tokens."""
    order = [2, 0, 1]
    rows = [GROUP * p + r for p in order for r in range(GROUP)]
    other = jax.device_get(
        run(small, [PROMPTS[p] for p in order], UIDS[rows], sampling=Sampling(stop=(EOS, 17)))
    )
    np.testing.assert_array_equal(other.tokens_BT, rollout.tokens_BT[rows])
    np.testing.assert_allclose(other.model_logp_BT, rollout.model_logp_BT[rows], atol=1e-6)


def test_padding_is_never_sampled_however_likely(small, hidden_float64):
    """With 50 times the embedding of padding, its logit is often the largest by far."""
    scaled = lambda params: {  # noqa: E731
        **params, "embed": params["embed"] * np.where(np.arange(32) == 0, 50, 1)[:, None]
    }  # fmt: skip
    exact, likeliest = scaled(small.exact), 0
    for temperature in (1.0, 0.0):
        out = jax.device_get(
            run(small, params=scaled(small.params), sampling=Sampling(temperature, stop=(EOS, 17)))
        )
        assert (out.tokens_BT[out.completion_mask_BT] != 0).all()
        assert np.isfinite(out.model_logp_BT).all()
        for tokens, real in zip(out.tokens_BT, out.segments_BT > 0, strict=True):
            hidden = hidden_float64(exact, small.model.config, tokens[real])
            likeliest += np.sum((hidden @ exact["embed"].T).argmax(axis=1) == 0)
    assert likeliest > 20


def test_greedy_follows_the_likeliest_token(small, logp_float64):
    out = jax.device_get(run(small, sampling=Sampling(temperature=0.0, stop=(EOS, 17))))
    for row in range(0, len(UIDS), GROUP):
        tokens = list(PROMPTS[row // GROUP])
        for token in out.tokens_BT[row][out.completion_mask_BT[row]]:
            logp = logp_float64(small.exact, small.model.config, tokens)[-1]
            assert token == np.argmax(logp)
            tokens.append(token)
        np.testing.assert_array_equal(out.tokens_BT[row], out.tokens_BT[row + 1])


def test_the_loop_ends_as_soon_as_all_rows_have_stopped(small):
    """Every token stops: one token each, all finished, and the loop's body never runs."""
    calls = []
    counted = small.model._replace(
        routed=lambda *args, **kwargs: (
            jax.debug.callback(lambda: calls.append(1)), small.model.routed(*args, **kwargs)
        )[1]
    )  # fmt: skip
    everything = Sampling(stop=tuple(range(1, 32)))
    out = jax.device_get(run(small._replace(model=counted), sampling=everything))
    jax.effects_barrier()
    assert out.completion_mask_BT.sum(axis=1).tolist() == [1] * len(UIDS)
    assert out.finished_B.all()
    assert len(calls) == 1  # the prefill


def test_a_stop_token_in_the_last_place_counts_as_finished(small, rollout):
    """The same run with just as much room as one of the rows needs."""
    lengths = rollout.completion_mask_BT.sum(axis=1)
    room = int(lengths[rollout.finished_B].min())
    assert 1 < room < lengths.max()
    out = jax.device_get(run(small, sampling=Sampling(stop=(EOS, 17)), max_new=room))
    assert out.finished_B.tolist() == (lengths <= room).tolist()
    assert out.completion_mask_BT.sum(axis=1).tolist() == np.minimum(lengths, room).tolist()
    np.testing.assert_array_equal(out.tokens_BT, rollout.tokens_BT[:, : WIDTH + room])


def trained_alike(small, rollout, start):
    """The trainer's log-probs are those that the sampler wrote."""
    batch = Batch(
        rollout.tokens_BT, rollout.positions_BT, rollout.segments_BT, rollout.completion_mask_BT
    )
    mask = rollout.completion_mask_BT
    logp = np.asarray(train_state.logprobs(small.model, small.params, batch, start=start))
    np.testing.assert_allclose(logp[mask], rollout.model_logp_BT[mask], atol=1e-4)


@pytest.mark.parametrize("start", [1, WIDTH])
def test_the_trainer_sees_the_log_probs_that_the_sampler_wrote(small, rollout, start):
    trained_alike(small, rollout, start)


LATENT = Latent(query_rank=0, rank=5, plain_dim=6, rope_dim=4, value_dim=7)


@pytest.mark.parametrize(
    "changes",
    [{"window": 3, "global_every": 2}, {"window": 8, "global_every": 2},
     {"latent": LATENT, "kv_heads": 4}],
)  # fmt: skip
def test_so_it_does_of_windows_that_end_in_prompt_and_completion_and_of_latent_attention(
    make_small, changes
):
    other = make_small(1, **changes)
    rollout = jax.device_get(run(other, sampling=Sampling()))
    assert rollout.completion_mask_BT[:, WIDTH:].all()
    trained_alike(other, rollout, WIDTH)

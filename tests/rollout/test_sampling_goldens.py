"""Filters, penalty and bias against transformers' (tests/oracle/make_sampling_goldens.py)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.rollout.draw import draw
from posttrain_jax.rollout.draw_state import start
from posttrain_jax.rollout.penalties import Counts, penalise
from posttrain_jax.rollout.sampling import Sampling, filter_logits, row_keys

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "sampling.npz")
LOGITS, TOKENS, SCORES = GOLDEN["logits"], GOLDEN["tokens"], GOLDEN["scores"]
CASES = [json.loads(str(text)) for text in GOLDEN["settings"]]
NUMBERS = range(len(CASES))
filtered = jax.jit(filter_logits, static_argnums=1)
FILTERS = {"temperature", "top_k", "top_p", "min_p"}


def sampling_of(case):
    return Sampling(
        **{n: tuple(map(tuple, x)) if n == "logit_bias" else x for n, x in case.items()}
    )


@pytest.mark.parametrize("number", [i for i in NUMBERS if CASES[i].keys() <= FILTERS])
def test_masks_and_logits_of_the_filters(number):
    ours = np.asarray(filtered(LOGITS, sampling_of(CASES[number])))
    kept = np.isfinite(SCORES[number])
    np.testing.assert_array_equal(ours > -1e29, kept)
    np.testing.assert_allclose(ours[kept], SCORES[number][kept], rtol=1e-6)


@pytest.mark.parametrize("number", [i for i in NUMBERS if [*CASES[i]] == ["repetition_penalty"]])
def test_the_repetition_penalty(number):
    seen = (TOKENS[:, :, None] == np.arange(50)).any(axis=1)
    ours = penalise(jnp.array(LOGITS), Counts(seen_BV=jnp.array(seen)), sampling_of(CASES[number]))
    np.testing.assert_allclose(ours, SCORES[number], rtol=1e-6)


@pytest.mark.parametrize("number", [i for i in NUMBERS if not CASES[i].keys() <= FILTERS])
def test_what_is_drawn_by_the_whole_chain(number):
    """100 draws a row: none is left out there, and each is as likely as there."""
    sampling, times = sampling_of(CASES[number]), 100
    tile = lambda x: jnp.repeat(jnp.array(x), times, axis=0)  # noqa: E731
    prompt, rest = TOKENS[:, :5], TOKENS[:, 5:]  # the prompt with padding in front, and a response
    padded = np.concatenate([np.full((6, 2), 49), prompt], axis=1)
    mask = np.arange(7) >= 2
    keys = row_keys(jax.random.key(3), jnp.arange(6 * times), jnp.zeros(6 * times, int))

    @jax.jit
    def run(keys):
        state = start(
            6 * times, 50, sampling, prompt_BT=tile(padded), mask_BT=tile(np.tile(mask, (6, 1)))
        )
        place = jnp.zeros(6 * times, int)
        counted = "repetition_penalty" in CASES[number]
        for column in rest.T if counted else ():  # the response so far, token by token
            logits = jnp.where(jnp.arange(50) == tile(column)[:, None], 200.0, -200.0)
            certain = draw(logits, keys, place, Sampling(0.0)._replace(
                repetition_penalty=sampling.repetition_penalty), state=state)  # fmt: skip
            state = certain.state
        drawn = draw(tile(LOGITS), keys, place + 4, sampling, state=state)
        return drawn.token_B, drawn.behaviour_logp_B, drawn.model_logp_B

    token, behaviour, model = (np.asarray(x).reshape(6, times) for x in run(keys))
    log_softmax = lambda x: np.float64(x) - np.log(np.exp(np.float64(x)).sum(-1, keepdims=True))  # noqa: E731
    expected = np.take_along_axis(log_softmax(SCORES[number]), token, axis=1)
    np.testing.assert_allclose(behaviour, expected, atol=2e-5)
    np.testing.assert_allclose(model, np.take_along_axis(log_softmax(LOGITS), token, 1), atol=2e-5)

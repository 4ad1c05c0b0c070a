"""Penalties against the formulas in float64, counted over whole responses token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.rollout.penalties import Counts, count, penalise, start_counts
from posttrain_jax.rollout.sampling import Sampling

VOCAB = 11
SETTINGS = [
    {"repetition_penalty": 1.7},
    {"presence_penalty": 0.9},
    {"frequency_penalty": 0.4},
    {"presence_penalty": -0.5, "frequency_penalty": 0.3, "repetition_penalty": 0.6},
]


def penalised(logits, prompt, response, *, repetition_penalty=1.0, presence_penalty=0.0,
              frequency_penalty=0.0):  # fmt: skip
    """One row's logits, in float64."""
    out = np.float64(logits)
    for token in {*prompt, *response}:
        out[token] *= repetition_penalty if out[token] < 0 else 1 / repetition_penalty
    for token in response:  # each time it stands there
        out[token] -= frequency_penalty
    for token in set(response):
        out[token] -= presence_penalty
    return out


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_step_of_a_response(settings):
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, VOCAB, (3, 4))
    lengths = [4, 2, 0]  # left-padded with a token that is in no prompt of its own
    mask = np.arange(4)[None] >= 4 - np.array(lengths)[:, None]
    rows = [prompt[4 - length :].tolist() for prompt, length in zip(prompts, lengths, strict=True)]
    responses = rng.integers(0, VOCAB, (3, 6))
    logits = rng.normal(0, 2, (6, 3, VOCAB)).astype(np.float32)
    sampling = Sampling(**settings)

    @jax.jit
    def run():
        def step(counts, now):
            logits_BV, token_B = now
            return count(counts, token_B), penalise(logits_BV, counts, sampling)

        counts = start_counts(sampling, 3, VOCAB, jnp.array(prompts), jnp.array(mask))
        return jax.lax.scan(step, counts, (logits, jnp.array(responses).T))[1]

    found = np.asarray(run())
    for place in range(6):
        for row in range(3):
            said = responses[row, :place].tolist()
            expected = penalised(logits[place, row], rows[row], said, **settings)
            np.testing.assert_allclose(found[place, row], expected, rtol=1e-5, atol=1e-6)


def test_only_what_is_used_is_counted():
    assert start_counts(Sampling(), 2, VOCAB, None, None) == Counts()
    alone = start_counts(Sampling(presence_penalty=1.0), 2, VOCAB, None, None)
    assert alone.seen_BV is None and alone.count_BV is not None
    with pytest.raises(ValueError, match="repetition_penalty: expected the prompts"):
        start_counts(Sampling(repetition_penalty=1.1), 2, VOCAB, None, None)

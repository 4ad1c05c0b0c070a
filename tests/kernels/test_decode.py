"""Decoding behind prompts that rows share, against each row's own keys put together in float64."""

import jax
import numpy as np

from posttrain_jax.kernels import decode_attention
from posttrain_jax.kernels.decode import Prompts

PROMPTS, ROWS, KV, GROUP, WIDTH, VALUES, LENGTH, ROOM = 2, 3, 2, 3, 8, 6, 5, 7


def test_each_row_sees_its_prompt_and_its_own_places():
    """One prompt is not seen at all, one in part; the row's own scores are now larger, now less."""
    rng = np.random.default_rng(0)
    noise = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    rows = PROMPTS * ROWS
    q = noise(rows, KV * GROUP, WIDTH)
    k, v = noise(rows, KV, WIDTH, ROOM), noise(rows, KV, ROOM, VALUES)
    k *= np.array([9, 1, 0.1] * PROMPTS, np.float32)[:, None, None, None]
    k_prompt, v_prompt = 5 * noise(PROMPTS, KV, WIDTH, LENGTH), noise(PROMPTS, KV, LENGTH, VALUES)
    seen = np.arange(ROOM) <= rng.integers(0, ROOM, rows)[:, None]
    seen_prompt = np.arange(LENGTH) >= np.array([[2], [LENGTH]])
    found = jax.jit(decode_attention)(q, k, v, seen, Prompts(k_prompt, v_prompt, seen_prompt))
    for row in range(rows):
        prompt = row // ROWS
        for head in range(KV * GROUP):
            of = head // GROUP
            keys = np.concatenate(
                [k_prompt[prompt, of][:, seen_prompt[prompt]], k[row, of][:, seen[row]]], axis=1
            )
            values = np.concatenate(
                [v_prompt[prompt, of][seen_prompt[prompt]], v[row, of][seen[row]]]
            )
            scores = np.float64(q[row, head]) @ keys * WIDTH**-0.5
            weights = np.exp(scores - scores.max())
            expected = weights / weights.sum() @ values
            np.testing.assert_allclose(found[row, head], expected, atol=2e-6)

"""Rows with settings of their own: the same tokens as batches that have them all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.rollout.draw import draw
from posttrain_jax.rollout.draw_state import start
from posttrain_jax.rollout.penalties import count
from posttrain_jax.rollout.row_settings import make_rows, over
from posttrain_jax.rollout.sampling import Sampling, filter_logits, row_keys

ROWS = [
    {},
    {"temperature": 0.0, "top_k": 2},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9},
    {"top_k": 1000, "min_p": 0.1},
    {"top_p": 0.5, "presence_penalty": 1.5, "min_new": 3},
    {"temperature": 1.5, "repetition_penalty": 1.3, "frequency_penalty": -0.2, "min_new": 2},
]
TIMES = 40
VOCAB = 60


def inputs():
    """The same logits, keys and prompts for each kind of row."""
    batch = len(ROWS) * TIMES
    logits = np.random.default_rng(0).normal(0, 2, (batch, VOCAB)).astype(np.float32)
    keys = row_keys(jax.random.key(1), jnp.arange(batch), jnp.full(batch, 2))
    prompt = np.random.default_rng(1).integers(0, VOCAB, (batch, 5))
    return logits, keys, prompt


def settings(name):
    return [getattr(Sampling(**row), name) for row in ROWS for _ in range(TIMES)]


def drawn(sampling, rows=None, select=slice(None)):
    """The second token of the selected rows: (token, both log-probs, stop)."""
    logits, keys, prompt = (x[select] for x in inputs())
    batch = len(logits)

    @jax.jit
    def run(rows):
        state = start(
            batch, VOCAB, sampling, rows=rows, prompt_BT=prompt, mask_BT=jnp.ones((batch, 5))
        )
        state = state._replace(counts=count(state.counts, jnp.array(prompt[:, 0])))
        return draw(logits, keys, jnp.full(batch, 2), sampling, state=state)[:4]

    return jax.tree.map(np.asarray, run(rows))


def test_rows_are_as_in_batches_of_their_kind():
    names = sorted({name for row in ROWS for name in row})
    rows = make_rows(len(ROWS) * TIMES, **{name: settings(name) for name in names})
    mixed = drawn(Sampling(stop=(7,)), rows)
    for number, row in enumerate(ROWS):
        mine = slice(number * TIMES, (number + 1) * TIMES)
        alone = drawn(Sampling(**row, stop=(7,)), select=mine)
        assert mixed[0][mine].tolist() == alone[0].tolist(), row
        assert mixed[3][mine].tolist() == alone[3].tolist()
        for i in (1, 2):
            np.testing.assert_allclose(mixed[i][mine], alone[i], atol=2e-6)
        assert (alone[1] == 0).all() == (row.get("temperature") == 0.0)


def test_a_given_field_without_effect_changes_nothing():
    """1 as top-p keeps all tokens, though probabilities may sum to 1 before the last."""
    batch = len(ROWS) * TIMES
    neutral = make_rows(batch, top_k=0, top_p=1.0, min_p=0.0, temperature=1.0, min_new=0)
    plain = drawn(Sampling())
    given = drawn(Sampling(), neutral)
    assert given[0].tolist() == plain[0].tolist()
    np.testing.assert_allclose(given[1], plain[1], atol=1e-6)


def test_the_longest_tail_survives_top_p_of_one():
    logits = np.full((1, 3000), -30.0, np.float32)
    logits[0, 0] = 0.0
    kept = jax.jit(lambda x, rows: filter_logits(x, over(Sampling(), rows)))(
        logits, make_rows(1, top_p=1.0)
    )
    assert (np.asarray(kept) == logits).all()


def test_rows_go_before_the_batch_and_the_rest_stays():
    merged = over(Sampling(0.7, top_k=5, stop=(3,)), make_rows(2, top_k=[1, 2], max_new=9))
    assert merged.temperature == 0.7 and merged.stop == (3,)
    assert np.asarray(merged.top_k).tolist() == [[1], [2]]


def test_numbers_of_rows():
    rows = make_rows(3, temperature=0.5, top_k=[1, 2, 3], thinking_budget=[-1, 0, 5])
    assert rows.temperature.dtype == np.float32 and rows.top_k.dtype == np.int32
    assert rows.temperature.tolist() == [0.5] * 3 and rows.top_p is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": [1.0, -0.5]}, r"temperature=-0.5 in row 1: expected a number from 0"),
        ({"top_k": [1, 2.5]}, r"top_k=2.5 in row 1: expected a whole number"),
        ({"top_p": [0.0, 1.0]}, r"top_p=0.0 in row 0: expected a number above 0"),
        ({"min_p": 1.5}, r"min_p=1.5 in row 0"),
        ({"repetition_penalty": [1.0, 0.0]}, r"repetition_penalty=0.0 in row 1"),
        ({"presence_penalty": [np.nan, 0]}, r"presence_penalty=nan in row 0: expected a finite"),
        ({"min_new": [-1, 0]}, r"min_new=-1.0 in row 0"),
        ({"max_new": [4, 0]}, r"max_new=0.0 in row 1: expected a whole number from 1"),
        ({"thinking_budget": [-2, 0]}, r"thinking_budget=-2.0 in row 0"),
        ({"top_k": [1, 2, 3]}, r"top_k: expected one number for each of 2 rows, got shape \(3,\)"),
    ],
)  # fmt: skip
def test_bad_rows(settings, message):
    with pytest.raises(ValueError, match=message):
        make_rows(2, **settings)

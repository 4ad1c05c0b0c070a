"""Weights of preferences, by hand, and rows that hold them."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax.data import preference_rows as rows
from posttrain_jax.data.preferences import Side
from posttrain_jax.mesh import make_mesh


def side(*kinds):
    """A token for each letter: p prompt, h header, s said, e a turn marker that was said."""
    return Side(
        np.arange(1, len(kinds) + 1, dtype=np.int32),
        np.array([kind in "se" for kind in kinds]),
        np.array([kind in "he" for kind in kinds]),
    )


LONG, SHORT = side(*"pphssse"), side(*"phse")
GROUPS = [(LONG, SHORT), (SHORT, LONG)]


def test_what_is_compared():
    assert rows.compared(LONG, False).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert rows.compared(LONG, True).tolist() == [0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("norm", "masked", "long", "short"),
    [
        ("response", False, 0.3 / 8 / 4, 0.3 / 8 / 2),
        ("response", True, 0.3 / 8 / 5, 0.3 / 8 / 3),
        ("batch", False, 0.3 / 8 / 3, 0.3 / 8 / 3),
        ("batch", True, 0.3 / 8 / 4, 0.3 / 8 / 4),
        ("sum", True, 0.3 / 8, 0.3 / 8),
    ],
)
def test_weights_of_the_likelihood(norm, masked, long, short):
    """Two of the eight pairs of a batch: responses of 4 and 2 tokens, headers beside them."""
    found = rows.imitation(GROUPS, 8, 0.3, norm, masked)
    header = float(masked)
    expected = [long * np.array([0, 0, header, 1, 1, 1, 1]), short * np.array([0, header, 1, 1])]
    for (chosen, rejected), weights in zip(found, expected, strict=True):
        np.testing.assert_allclose(chosen, weights, rtol=1e-6)
        assert not np.any(rejected)
    assert [len(rejected) for _, rejected in found] == [4, 7]


def test_marks_go_where_their_tokens_go():
    mesh = make_mesh(devices=jax.devices()[:1])
    config = ConfigDict({"length": 7, "row_length": 0, "pairs_per_step": 2})
    logp = [
        (np.array([-1.0, -2, -3, -4]), np.array([-5.0, -6])),
        (np.array([-7.0, -8]), -np.ones(4)),
    ]
    marks = {
        "weight_BT": [[rows.compared(s, True) for s in group] for group in GROUPS],
        "reference_logp_BT": rows.spread(GROUPS, logp),
    }
    layout = rows.find_layout(config, mesh, GROUPS, [[0, 1]], 1)
    assert (layout.rows, layout.sequences) == (4, 1)
    batch = rows.place(mesh, GROUPS, layout, 99, marks)
    np.testing.assert_array_equal(
        batch.reference_logp_BT,
        [
            [0, 0, 0, -1, -2, -3, -4], [0, 0, -5, -6, 0, 0, 0],
            [0, 0, -7, -8, 0, 0, 0], [0, 0, 0, -1, -1, -1, -1],
        ],
    )  # fmt: skip
    assert np.asarray(batch.weight_BT).sum(axis=1).tolist() == [3, 1, 1, 3]
    config.row_length = 22
    layout = rows.find_layout(config, mesh, GROUPS, [[0, 1]], 2)
    assert (layout.rows, layout.sequences) == (2, 4)
    batch = rows.place(mesh, GROUPS, layout, 99, marks)
    whole = np.concatenate([s.tokens for group in GROUPS for s in group])
    assert np.asarray(batch.tokens_BT)[0].tolist() == whole.tolist()
    expected = np.concatenate([x for group in marks["reference_logp_BT"] for x in group])
    assert np.asarray(batch.reference_logp_BT)[0].tolist() == expected.tolist()
    assert np.all(np.asarray(batch.tokens_BT)[1] == 99)

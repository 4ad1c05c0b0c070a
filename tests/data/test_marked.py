"""Groups of responses in rows: every token, mark and label, in the three layouts."""

import numpy as np
import pytest

from posttrain_jax.data.marked import Group, Response, lay_out, one_a_row, packed

NAN = float("nan")


def response(tokens, prompt, *labels):
    return Response(np.array(tokens, np.int32), prompt, labels)


TWO = Group((response([1, 2, 5, 6], 2, 1.0), response([1, 2, 7], 2, 0.0)), 0.5)
THREE = Group((response([3, 8], 1, 2.0), response([3, 9, 9], 1, 1.0), response([3, 4], 1, 0.0)))


def read_back(marked):
    """What each mark reads: (tokens of its segment up to it, label, weight, margin)."""
    found = []
    batch = marked.batch
    for row, slot in np.argwhere(marked.weight_BMO.max(axis=2) > 0):
        place = marked.place_BM[row, slot]
        here = batch.segments_BT[row] == batch.segments_BT[row, place]
        seen = batch.tokens_BT[row][here & (np.arange(batch.tokens_BT.shape[1]) <= place)]
        np.testing.assert_array_equal(batch.positions_BT[row][here], np.arange(here.sum()))
        assert here[marked.prompt_BM[row, slot]]
        prompt = batch.tokens_BT[row, marked.prompt_BM[row, slot]]
        found.append((seen.tolist(), prompt, marked.label_BMO[row, slot].tolist(),
                      marked.margin_BM[row, slot]))  # fmt: skip
    return found


def test_one_a_row():
    layout = one_a_row(5, 2, 3)
    assert (layout.rows, layout.together) == (6, 3)
    marked = lay_out([TWO, THREE], layout, 0)
    assert marked.batch.tokens_BT.tolist() == [
        [1, 2, 5, 6, 0], [1, 2, 7, 0, 0], [0] * 5, [3, 8, 0, 0, 0], [3, 9, 9, 0, 0], [3, 4, 0, 0, 0]
    ]  # fmt: skip
    assert marked.place_BM[:, 0].tolist() == [3, 2, 0, 1, 2, 1]
    assert marked.prompt_BM[:, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert marked.label_BMO[:, 0, 0].tolist() == [1, 0, 0, 2, 1, 0]
    assert marked.weight_BMO[:, 0, 0].tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0.5]
    assert marked.margin_BM[:, 0].tolist() == [0.5, 0.5, 0, 0, 0, 0]


def test_packed_rows_hold_the_same():
    layout = packed([TWO, THREE], [[0, 1], [0, 0]], 14, 2)
    assert layout._replace(rows=0) == (14, 0, 3, 2, False) and layout.together == 1
    marked = lay_out([TWO, THREE], layout, 0)
    assert layout.rows == 2 and marked.place_BM.shape == (2, 6)
    assert sorted(read_back(marked)) == sorted(
        read_back(lay_out([TWO, THREE], one_a_row(5, 2, 3), 0))
    )
    # The marks of a group lie side by side, from a multiple of three.
    weights = marked.weight_BMO[0, :, 0].tolist()
    assert weights in ([0.5] * 5 + [0], [0.5, 0.5, 0, 0.5, 0.5, 0.5])


def test_a_shared_prompt_stands_once():
    layout = packed([TWO, THREE], [[0, 1]], 10, 1, shared=True)
    assert layout.rows == 1 and layout.groups == 2
    marked = lay_out([TWO, THREE], layout, 0)
    row = marked.batch.tokens_BT[0].tolist()
    assert row in ([1, 2, 5, 6, 7, 3, 8, 9, 9, 4], [3, 8, 9, 9, 4, 1, 2, 5, 6, 7])
    assert sorted(read_back(marked)) == sorted([
        ([1, 2, 5, 6], 2, [1.0], 0.5), ([1, 2, 5, 6, 7], 2, [0.0], 0.5),
        ([3, 8], 3, [2.0], 0.0), ([3, 8, 9, 9], 3, [1.0], 0.0), ([3, 8, 9, 9, 4], 3, [0.0], 0.0),
    ])  # fmt: skip


def test_shuffled_responses_keep_their_labels():
    layout = packed([THREE], [[0]], 6, 1, shared=True)
    seen = set()
    for seed in range(20):
        marked = lay_out([THREE], layout, 0, np.random.default_rng(seed))
        row, ends = marked.batch.tokens_BT[0].tolist(), marked.place_BM[0]
        labels = marked.label_BMO[0, :, 0].tolist()
        assert dict(zip([row[end] for end in ends], labels, strict=True)) == {8: 2, 9: 1, 4: 0}
        seen.add(tuple(labels))
    assert len(seen) == 6


def test_labels_that_are_not_known_weigh_nothing():
    groups = [Group((response([1, 2], 1, 0.25, NAN),)), Group((response([1, 3], 1, NAN, 1.0),))]
    marked = lay_out(groups, one_a_row(2, 2, 1), 0)
    assert marked.label_BMO[:, 0].tolist() == [[0.25, 0], [0, 1]]
    assert marked.weight_BMO[:, 0].tolist() == [[0.5, 0], [0, 0.5]]


def test_a_group_that_does_not_fit():
    with pytest.raises(ValueError, match="have 7 tokens, over row_length=6: raise row_length"):
        packed([TWO], [[0]], 6, 1)
    assert packed([TWO], [[0]], 6, 1, shared=True).rows == 1

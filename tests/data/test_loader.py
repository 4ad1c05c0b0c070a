"""The order of rows, and the batch that is made of some of them."""

import numpy as np

from posttrain_jax.data.loader import Order, row_batch
from posttrain_jax.data.pack import Rows
from posttrain_jax.mesh import make_mesh


def test_every_epoch_is_another_permutation():
    order = Order(50, seed=3)
    epochs = [order.take(50 * e, 50) for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len(set(map(tuple, epochs))) == 4


def test_the_order_is_a_function_of_seed_and_place():
    whole = Order(7, seed=0).take(0, 30)
    assert Order(7, seed=0).take(11, 6) == whole[11:17]  # across the end of an epoch
    assert Order(7, seed=1).take(0, 30) != whole


def test_a_batch_holds_the_chosen_rows_and_the_mask_as_weights():
    ints = np.arange(12, dtype=np.int32).reshape(4, 3)
    rows = Rows(ints, ints + 100, ints + 200, np.float32(ints) / 10)
    batch = row_batch(make_mesh(), rows, [2, 0, 2])
    assert batch.tokens_BT.tolist() == [[6, 7, 8], [0, 1, 2], [6, 7, 8]]
    assert batch.positions_BT.tolist() == [[106, 107, 108], [100, 101, 102], [106, 107, 108]]
    assert batch.segments_BT[1].tolist() == [200, 201, 202]
    np.testing.assert_allclose(batch.weight_BT[0], [0.6, 0.7, 0.8], rtol=1e-6)
    assert batch.advantage_BT is None

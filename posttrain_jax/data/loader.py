"""Which rows each step trains on: a function of (seed, step), so a resume needs no saved state."""

from __future__ import annotations

import grain
import jax
from jax.sharding import Mesh

from posttrain_jax.api import Batch
from posttrain_jax.data.pack import Rows
from posttrain_jax.mesh import host_batch


class Order:
    """An endless shuffled order over `count` rows: a new permutation every epoch (grain)."""

    def __init__(self, count: int, seed: int):
        self._order = grain.MapDataset.range(count).shuffle(seed=seed).repeat()

    def take(self, start: int, count: int) -> list[int]:
        """Row numbers at places start, start + 1, ... of the order."""
        return [self._order[i] for i in range(start, start + count)]  # pyright: ignore[reportReturnType]


def row_batch(mesh: Mesh, rows: Rows, chosen: list[int]) -> Batch:
    """The chosen rows on the mesh, with the loss mask as weights; a host makes only its part."""

    def place(array) -> jax.Array:
        shape = (len(chosen), array.shape[1])
        return host_batch(mesh, shape, lambda index: array[chosen[index]])

    return Batch(
        tokens_BT=place(rows.tokens),
        positions_BT=place(rows.positions),
        segments_BT=place(rows.segments),
        weight_BT=place(rows.mask),
    )

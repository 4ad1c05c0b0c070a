"""What becomes of updates whose loss or gradient is not finite: skipped, counted, at last fatal.

`train_state.apply_gradients` leaves the state as it was and counts. A run that goes on like this
learns nothing, so a stage stops after some of them in a row and keeps the batch for a look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from posttrain_jax import process


class NonFiniteError(ValueError):
    """Too many updates in a row were skipped."""


def longest_run(run: int, before: float, totals: Sequence[int]) -> tuple[int, int, int]:
    """How many updates in a row were skipped, from the count of skipped ones after each update.

    Args:
      run: how many in a row there were already.
      before: the count before the first of these updates.
      totals: the count after each.

    Returns:
      how many in a row there are now, the longest row among these updates, and which of them is
      the last of that row.
    """
    longest, last = 0, 0
    for number, total in enumerate(totals):
        run = run + 1 if total > before else 0
        before = total
        if run > longest:
            longest, last = run, number
    return run, longest, last


class Watch:
    """Follows the skipped updates of a stage that makes one after the other.

    Attributes:
      in_a_row: how many of the latest were skipped; a checkpoint keeps it.
    """

    def __init__(self, folder: Path, limit: int, skipped: Any, in_a_row: int = 0):
        """Watch from here on.

        Args:
          folder: of the stage.
          limit: so many skipped in a row stop it; 0: any number is well.
          skipped: how many were skipped in all before.
          in_a_row: of these, the latest without a break.
        """
        self.in_a_row = in_a_row
        self._folder, self._limit, self._skipped = folder, limit, int(skipped)

    def after(self, step: int, skipped: Any, batch: Any) -> None:
        """Tell of update `step` (from 1), after which `skipped` in all were skipped.

        Raises:
          NonFiniteError: too many in a row; the batch is saved.
        """
        self.in_a_row, _, _ = longest_run(self.in_a_row, self._skipped, [int(skipped)])
        self._skipped = int(skipped)
        if self._limit and self.in_a_row >= self._limit:
            raise stop(self._folder, step, self.in_a_row, self._limit, batch)


def save_batch(folder: Path, step: int, batch: Any) -> Path:
    """Write a batch to `folder/nonfinite-<step>.npz`, one array a field, by its name."""
    path, arrays = folder / f"nonfinite-{step}.npz", {}
    for keys, array in jax.tree.leaves_with_path(batch):
        arrays[jax.tree_util.keystr(keys, simple=True, separator=".")] = _whole(array)
    if process.index() == 0:
        np.savez(path, **arrays)
    return path


def stop(folder: Path, step: int, skipped: int, limit: int, batch: Any) -> NonFiniteError:
    """The error to raise after `skipped` updates in a row; the last one's batch is saved."""
    path = save_batch(folder, step, batch)
    return NonFiniteError(
        f"the loss or gradient was not finite in {skipped} updates in a row, up to update {step} "
        f"(stop_after_skipped={limit}); the batch of the last one is {path}. Look there for what "
        "is not finite, and try a lower lr, or clip_norm in optimizer"
    )


def _whole(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)

"""Settings that differ between the rows of one batch; which of them do is static."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from posttrain_jax.api import Array
from posttrain_jax.rollout.sampling import RANGES, Sampling


class RowSettings(NamedTuple):
    """One number a row [B] in place of the batch's; None: all rows have that of `Sampling`.

    A field that is given costs what the setting costs, in every row: a sort of the logits for
    `top_k` and `top_p` (one for both). A row has a setting's neutral value where it goes without.

    Attributes:
      temperature: 0 makes a row greedy.
      top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, min_new: as in
        `Sampling`.
      max_new: tokens of a response at most; not above the sampler's own.
      thinking_budget: as in `forcing.Thinking`; -1 is none.
    """

    temperature: Array | None = None
    top_k: Array | None = None
    top_p: Array | None = None
    min_p: Array | None = None
    repetition_penalty: Array | None = None
    presence_penalty: Array | None = None
    frequency_penalty: Array | None = None
    min_new: Array | None = None
    max_new: Array | None = None
    thinking_budget: Array | None = None


def over(sampling: Sampling, rows: RowSettings) -> Sampling:
    """The batch's settings with arrays [B, 1] where rows have their own."""
    given = {name: x for name, x in rows._asdict().items() if x is not None and name in RANGES}
    return sampling._replace(**{name: jnp.asarray(x)[:, None] for name, x in given.items()})


def make_rows(batch: int, **settings: Any) -> RowSettings:
    """Checked settings of `batch` rows, on the host; a single number stands for all rows.

    Raises:
      TypeError: an unknown setting.
      ValueError: not one number a row, or one out of range; the setting, the row, both values.
    """
    ranges: dict[str, tuple[float, float, str]] = {
        **RANGES,
        "max_new": (1, math.inf, "a whole number from 1 on"),
        "thinking_budget": (-1, math.inf, "a whole number from 0 on, or -1 for none"),
    }
    arrays = {}
    for name, values in RowSettings(**settings)._asdict().items():
        if values is None:
            continue
        least, greatest, meaning = ranges[name]
        found = np.asarray(values, np.float64)
        if found.shape not in ((), (batch,)):
            raise ValueError(f"{name}: expected one number for each of {batch} rows, got shape "
                             f"{found.shape}")  # fmt: skip
        found = np.broadcast_to(found, (batch,))
        right = np.isfinite(found) & (found >= least) & (found <= greatest)
        if isinstance(least, int):
            right &= found == np.floor(found)
        if not right.all():
            row = int(np.argmin(right))
            raise ValueError(f"{name}={found[row]} in row {row}: expected {meaning}")
        arrays[name] = found.astype(np.int32 if isinstance(least, int) else np.float32)
    return RowSettings(**arrays)

"""Skipped updates in a row, by hand."""

import numpy as np
import pytest

from posttrain_jax.data.marked import Marked
from posttrain_jax.nonfinite import NonFiniteError, Watch, longest_run


def test_the_longest_run_and_where_it_ends():
    # Skipped: 1st, 2nd, not the 3rd, 4th.
    assert longest_run(2, 5, [6, 7, 7, 8]) == (1, 4, 1)
    assert longest_run(0, 5, [5, 5]) == (0, 0, 0)


def test_a_watch_stops_at_its_limit_and_not_before(tmp_path):
    batch = Marked(*(np.full((1, 2), i) for i, _ in enumerate(Marked._fields)))
    watch = Watch(tmp_path, 2, skipped=3, in_a_row=1)
    watch.after(1, 3, batch)
    assert watch.in_a_row == 0  # the first was not skipped
    watch.after(2, 4, batch)
    with pytest.raises(NonFiniteError, match=r"2 updates in a row, up to update 3"):
        watch.after(3, 5, batch)
    saved = np.load(tmp_path / "nonfinite-3.npz")
    assert set(saved) == set(Marked._fields)
    for _ in range(3):
        Watch(tmp_path, 0, skipped=0, in_a_row=7).after(1, 1, batch)

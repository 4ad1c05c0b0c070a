"""The front by its definition, point by point, and the area by counting small squares."""

import numpy as np
import pytest

from posttrain_jax.evals.front import hypervolume, non_dominated


def test_the_front_by_hand():
    points = [(1, 3), (2, 2), (3, 1), (2, 1), (1, 1), (2, 2)]
    assert non_dominated(np.array(points)).tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_by_its_definition(seed):
    points = np.random.default_rng(seed).integers(0, 6, (12, 2))
    expected = [
        not any(
            q[0] >= p[0] and q[1] >= p[1] and (q[0] > p[0] or q[1] > p[1])
            for q in points
        )
        for p in points
    ]  # fmt: skip
    assert non_dominated(points).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_area_by_counting_squares(seed):
    points = np.random.default_rng(seed).integers(-3, 8, (7, 2))
    squares = {
        (i, j) for x, y in points for i in range(-1, x) for j in range(-2, y)
    }  # fmt: skip
    assert hypervolume(points, (-1, -2)) == len(squares)

"""What tests of the queue have in common."""

import pytest

from posttrain_jax.rollout import continuous


@pytest.fixture(scope="module")
def small_pages():
    """Pages of four places, so that short sequences take several."""
    before, continuous.PAGE = continuous.PAGE, 4
    yield
    continuous.PAGE = before

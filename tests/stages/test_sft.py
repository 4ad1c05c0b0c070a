"""How many updates SFT makes, and the weights of its batches."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax.api import Batch
from posttrain_jax.stages.sft import count_steps, weigh


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(7, 0.0, 7), (0, 2.0, 25), (0, 0.5, 6), (0, 0.001, 1)]
)
def test_steps_or_epochs(steps, epochs, expected):
    config = ConfigDict({"steps": steps, "epochs": epochs, "batch_size": 8})
    assert count_steps(config, 100) == expected


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0.0), (3, 1.0)])
def test_one_of_the_two(steps, epochs):
    with pytest.raises(ValueError, match=f"set one of steps={steps} and epochs={epochs}"):
        count_steps(ConfigDict({"steps": steps, "epochs": epochs, "batch_size": 8}), 100)


def test_weights_of_a_batch():
    mask = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], np.float32)
    ints = np.zeros((2, 4), np.int32)
    batch = Batch(ints, ints, ints, mask)
    np.testing.assert_allclose(weigh(batch, "token_mean_global", 1).weight_BT, mask / 4)
    np.testing.assert_allclose(
        weigh(batch, "token_mean_local", 2).weight_BT, mask / np.array([[6], [2]])
    )

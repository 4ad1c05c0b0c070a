"""Distillation on fsdp=4 x tensor=2 of eight virtual devices gives what one device gives."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def results(on_eight_devices):
    return on_eight_devices(Path(__file__).with_name("distill_devices.py"))


@pytest.mark.parametrize("k", ["3", "20"])
def test_the_same_distributions_and_the_same_update(results, k):
    """Where the mesh splits the vocabulary in two, k may be more than either part has."""
    one, eight = results["one"][k], results["eight"][k]
    assert eight["tokens"] == one["tokens"]
    tokens = np.array(one["tokens"])
    asked = tokens.any(axis=-1)
    assert all(len(set(place)) == int(k) for place in tokens[asked].tolist())
    assert (tokens[asked] < 16).any() and (tokens[asked] >= 16).any()
    np.testing.assert_allclose(eight["logp"], one["logp"], atol=1e-5)
    assert eight["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert one["metrics"]["loss"] > 0.01
    assert eight["norms"] == pytest.approx(one["norms"], abs=1e-5)


def test_only_candidates_travel(results):
    """The head is gathered over fsdp [512, 16]; of the logits [.., 512] only 2 x 4 a place are."""
    assert [512, 16] in results["moved"]
    assert all(shape[-1] <= 16 for shape in results["moved"])

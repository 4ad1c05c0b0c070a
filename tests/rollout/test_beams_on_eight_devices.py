"""A search and the scores of steps don't depend on the mesh."""

from pathlib import Path

import pytest


def test_eight_devices_search_as_one_does(on_eight_devices):
    found = on_eight_devices(Path(__file__).with_name("beams_eight_devices.py"))
    one, eight = found["one"], found["eight"]
    assert eight["tokens"] == one["tokens"] and eight["rounds"] == one["rounds"] == 3
    assert eight["trees"] == one["trees"] and sum(map(len, one["trees"])) > 8 * 12
    assert eight["chances"] == pytest.approx(one["chances"], abs=1e-4)
    assert eight["scores"] == pytest.approx(one["scores"], abs=1e-5)
    assert len({tuple(beam) for mine in one["tokens"] for beam in mine}) > 16

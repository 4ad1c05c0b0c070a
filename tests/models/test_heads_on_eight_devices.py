"""Heads with fsdp=4 x tensor=2 on eight virtual devices: what one device gives."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def results(on_eight_devices, tmp_path_factory):
    script = Path(__file__).with_name("heads_eight_devices.py")
    return on_eight_devices(script, str(tmp_path_factory.mktemp("files")))


def test_a_head_is_born_in_its_shards_with_the_same_values(results):
    assert results["one"]["born"] == results["eight"]["born"]
    assert results["eight"]["shards"] == {
        "hidden": [4, 8],
        "hidden_bias": [8],
        "weight": [8, 1],
        "bias": [1],
    }


def test_a_packed_update_and_values_are_the_same(results):
    one, eight = results["one"], results["eight"]
    assert one["metrics"]["grad_norm"] > 0.05 and one["values"] > 1
    assert eight["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert eight["values"] == pytest.approx(one["values"], rel=1e-5)
    assert eight["norms"] == pytest.approx(one["norms"], abs=1e-5)


def test_files_are_read_into_shards_and_written_from_them(results):
    for ran in results.values():
        assert ran["written"] == ran["read"]

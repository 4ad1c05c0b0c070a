"""Preference updates: fsdp=4 x tensor=2 on eight virtual devices give what one device gives."""

from pathlib import Path

import pytest


def test_the_same_updates(on_eight_devices):
    found = on_eight_devices(Path(__file__).with_name("preference_devices.py"))
    one, eight = found["one"], found["eight"]
    # rows divide into two microbatches on four shards
    assert eight["shape"][0] % 8 == 0 and one["shape"][0] < 16 and one["shape"][1] >= 4
    for loss in ("dpo", "kto"):
        assert eight[loss] == pytest.approx(one[loss], rel=1e-5, abs=1e-6)
        assert one[loss]["grad_norm"] > 1e-2

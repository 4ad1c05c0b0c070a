"""Adapters over frozen weights: fsdp=4 x tensor=2 on eight virtual devices gives what one gives."""

from pathlib import Path

import numpy as np


def test_eight_devices_give_the_losses_of_one(on_eight_devices):
    script = Path(__file__).with_name("lora_devices.py")
    results = on_eight_devices(script, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    for kind, (one, eight) in results["losses"].items():
        np.testing.assert_allclose(eight, one, atol=1e-5, err_msg=kind)
        assert one[0] != one[2]
    # A is split over its inputs, B over its outputs; codes as their weight, two a byte.
    assert results["shards"] == {
        "q_lora_a": [2, 4, 2],
        "q_lora_b": [2, 2, 2, 8],
        "o_lora_a": [2, 2, 8, 2],
        "o_lora_b": [2, 2, 4],
        "down_lora_a": [2, 16, 2],
        "q": [2, 4, 8],
        "down": [2, 16, 2],
    }

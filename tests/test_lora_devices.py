"""Adapters over frozen weights: fsdp=4 x tensor=2 on eight virtual devices gives what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_eight_devices_give_the_losses_of_one():
    script = Path(__file__).with_name("lora_devices.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(script.parents[1]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
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

"""A mixture of experts gives on eight virtual devices what it gives on one, on any mesh."""

from pathlib import Path

import numpy as np
import pytest

MESHES = ("fsdp 2, expert 4", "fsdp 4, tensor 2")


@pytest.fixture(scope="module")
def results(on_eight_devices):
    return on_eight_devices(Path(__file__).with_name("eight_experts.py"))


@pytest.mark.parametrize("mesh", MESHES)
def test_the_same_loss_statistics_and_gradients(results, mesh):
    """The parameters after a step of plain descent are as far apart as the gradients."""
    one, eight = results["one"], results[mesh]
    assert eight["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert one["metrics"]["router_dropped"] == 0.0 and one["metrics"]["grad_norm"] > 0.1
    for name, values in one["params"].items():
        near = 1e-5 * max(1.0, np.abs(values).max())  # sums round by the size of what they add
        np.testing.assert_allclose(eight["params"][name], values, atol=near, err_msg=name)


def test_the_same_tokens_and_experts_of_a_rollout(results):
    one, eight = results["one"], results[MESHES[0]]
    assert eight["tokens"] == one["tokens"]
    assert eight["experts"] == one["experts"]
    assert eight["queued"] == [one["tokens"], one["experts"]]


@pytest.mark.parametrize("mesh", ("one", MESHES[0]))
def test_the_trainer_gives_the_samplers_log_probs_with_replay_and_without(results, mesh):
    assert max(results[mesh]["gaps"]) <= 1e-4


def test_experts_stay_on_their_devices(results):
    """[1 layer, 8 experts, 16, 12] in parts of [1, 2, 8, 12]; gathered over fsdp to [2, 16, 12].

    No collective of whole experts makes more than a device's two of them, and their gradients are
    scattered over fsdp.
    """
    found = results["fsdp 2, expert 4"]
    assert found["shard"] == [1, 2, 8, 12]
    of_experts = []
    for kind, sizes in found["collectives"]:
        shape = [int(n) for n in sizes.split(",") if n]
        if 12 in shape and len(shape) > 2:
            of_experts.append((kind, int(np.prod(shape))))
    assert ("all-gather", 2 * 16 * 12) in of_experts
    assert max(size for _, size in of_experts) == 2 * 16 * 12
    assert ("reduce-scatter", 2 * 8 * 12) in of_experts

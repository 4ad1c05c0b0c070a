"""fsdp=4 x tensor=2 on eight virtual devices gives what one device gives."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def results(on_eight_devices):
    return on_eight_devices(Path(__file__).with_name("eight_devices.py"))


def test_parameters_are_born_in_their_shards(results):
    """[V, D] over (tensor, fsdp), [L, D, N, H] over (fsdp, tensor) and so on; norms everywhere."""
    assert results["eight"]["ways"] == 4
    shards = results["eight"]["shards"]
    assert {name: shape for name, (shape, _) in shards.items()} == {
        "embed": [16, 4],
        "head": [4, 16],
        "final_norm": [16],
        "layers.attn_norm": [2, 16],
        "layers.mlp_norm": [2, 16],
        "layers.q": [2, 4, 2, 8],
        "layers.k": [2, 4, 1, 8],
        "layers.v": [2, 4, 1, 8],
        "layers.o": [2, 2, 8, 4],
        "layers.gate": [2, 4, 16],
        "layers.up": [2, 4, 16],
        "layers.down": [2, 16, 4],
    }
    assert {name for name, (_, replicated) in shards.items() if replicated} == {
        "final_norm", "layers.attn_norm", "layers.mlp_norm"
    }  # fmt: skip


def test_the_same_seed_gives_the_same_parameters_on_any_mesh(results):
    assert results["one"]["born"] == results["eight"]["born"]


def test_the_state_stays_where_it_was_born(results):
    assert results["eight"]["stays"]


def test_the_same_losses(results):
    one, eight = results["one"]["sft"], results["eight"]["sft"]
    assert eight == pytest.approx(one, abs=1e-5)
    assert one[0] != pytest.approx(one[2], abs=1e-3)


def test_the_same_tokens(results):
    assert results["one"]["tokens"] == results["eight"]["tokens"]
    assert len({tuple(row) for row in results["one"]["tokens"]}) == 16


def test_prompts_that_are_read_once(results):
    for found in (results["one"]["shared"], results["eight"]["shared"]):
        assert found["apart"] < 1e-5 and found["moved"] > 1e-3
        assert found["logp"] == pytest.approx(results["one"]["shared"]["logp"], abs=1e-3)


def test_the_same_policy_gradient_update(results):
    one, eight = results["one"], results["eight"]
    assert eight["reward"] == one["reward"] > 0
    assert eight["grpo"] == pytest.approx(one["grpo"], rel=1e-6, abs=1e-5)
    # exp(-0.1) - 1 + 0.1 in 15 of 16 rows
    assert one["grpo"]["kl"] == pytest.approx(0.0048374 * 15 / 16, abs=1e-6)
    assert eight["norms"] == pytest.approx(one["norms"], abs=1e-5)

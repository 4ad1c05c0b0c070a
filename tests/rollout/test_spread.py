"""Queues on eight virtual devices give one device's tokens, each shard from its own prompts."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from posttrain_jax.mesh import AXES
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.sampling import Sampling

PROMPTS = 16
SPLIT, TENSOR, EXPERT = "data 8", "data 2, fsdp 2, tensor 2", "fsdp 2, expert 2, tensor 2"


@pytest.fixture(scope="module")
def results(on_eight_devices):
    return on_eight_devices(Path(__file__).with_name("spread_eight_devices.py"))


@pytest.mark.parametrize(
    ("mesh", "truth"), [(SPLIT, "dense"), (TENSOR, "dense"), (EXPERT, "sparse")]
)
def test_the_same_tokens(results, mesh, truth):
    one, eight = results[truth], results[mesh]
    assert eight["tokens_BT"] == one["tokens_BT"]
    assert eight["completion_mask_BT"] == one["completion_mask_BT"]
    assert eight["finished_B"] == one["finished_B"]
    np.testing.assert_allclose(eight["behaviour_logp_BT"], one["behaviour_logp_BT"], atol=2e-5)
    assert len({sum(mask) for mask in one["completion_mask_BT"]}) > 5


@pytest.mark.parametrize("mesh", [TENSOR, EXPERT])
def test_calls_are_answered_on_every_shard(results, mesh):
    """Eight devices and one: the same conversations."""
    one, eight = results["conversations"][mesh]
    for name in ("tokens_BT", "completion_mask_BT", "finished_B", "whole"):
        assert one[name] == eight[name], name
    answered = np.array(one["whole"]) & ~np.array(one["completion_mask_BT"])
    assert answered.sum() > PROMPTS and answered.any(axis=1).mean() > 0.3


def test_what_goes_on_in_the_next_rollout_stays_on_its_shard(results):
    """Three rollouts of four shards, each of which leaves a group; one device's tokens."""
    one, learnt = results["dense"], results["carried"]["learnt"]
    assert len(learnt) == 3 * 12 and results["carried"]["unfinished"] > 3
    for uid, (tokens, mask, logp, finished) in learnt.items():
        row = int(uid)
        assert tokens == one["tokens_BT"][row] and mask == one["completion_mask_BT"][row]
        assert finished == one["finished_B"][row]
        np.testing.assert_allclose(logp, one["behaviour_logp_BT"][row], atol=2e-5)


def test_each_shard_serves_its_own_queue_at_its_own_pace(results):
    """Its work is that of one device with the shard's prompts alone."""
    works, found = results["dense"]["works"], results[SPLIT]["work"]
    assert len({work["steps"] for work in works}) > 3
    for name, value in found.items():
        of_all = max if "steps" in name else sum
        assert value == of_all(work[name] for work in works), name
    assert results[SPLIT]["homes"] == {str(device): 6 * device for device in range(8)}


def test_shards_that_share_collectives_keep_in_step(results):
    """Slots of 4 shards; all take as many steps, and no more than one after the other would."""
    work, mask = results[TENSOR]["work"], np.array(results["dense"]["completion_mask_BT"])
    loops = {mesh: str(results[mesh]["collectives"]).count("pred[]") for mesh in (SPLIT, TENSOR)}
    assert loops[SPLIT] == 0 < loops[TENSOR]  # their conditions
    by_shard = mask.reshape(4, -1).sum(axis=1)
    assert math.ceil(by_shard.max() / 3) <= work["steps"] <= by_shard.max()
    assert mask.sum() <= work["busy"] <= 4 * 3 * work["steps"]
    assert results[TENSOR]["homes"] == {str(device): 12 * (device // 2) for device in range(8)}


def test_nothing_is_gathered(results):
    """Of shards that share nothing the work is added up. On a tensor axis partial sums of new
    tokens are, and pages lie split by heads: neither pages, prompts nor what was sampled moves."""
    found = {}
    for mesh in (SPLIT, TENSOR):
        assert {kind for kind, _ in results[mesh]["collectives"]} == {"all-reduce"}
        found[mesh] = {s for _, result in results[mesh]["collectives"] for s in shapes(result)}
    assert found[SPLIT] == {()}
    assert {(1, 5, 16), (3, 1, 16)} < found[TENSOR]  # a prompt, a token of each slot
    assert max(found[TENSOR], key=math.prod) == (1, 5, 16)
    assert results[TENSOR]["pages"] == ["f32[6,1,8,4]"]
    assert results[SPLIT]["pages"] == ["f32[6,2,8,4]"]


def test_experts_gather_tokens_and_stay_where_they_are(results):
    """Three slots and three experts a token on each of two shards; no weights [4, 16, 12]."""
    found = {
        s for kind, result in results[EXPERT]["collectives"] if kind == "all-gather"
        for s in shapes(result)
    }  # fmt: skip
    assert (6, 1, 16) in found and (6, 1, 3) in found
    assert max(found, key=math.prod) in {(6, 1, 16), (2, 5, 16)}


def shapes(result):
    """The sizes of a collective's results."""
    return [tuple(int(n) for n in s.split(",") if n) for s in re.findall(r"\[([\d,]*)\]", result)]


@pytest.mark.parametrize(
    ("prompts", "slots", "message"),
    [
        (6, 8, "prompts of a rollout=6 does not divide .* = 4 .*: 4 or 8"),
        (8, 6, "slots=6 does not divide over data x fsdp x expert = 4 .*: 4 or 8"),
    ],
)
def test_what_shards_cannot_share_evenly_is_refused(prompts, slots, message):
    sizes = dict.fromkeys(AXES, 1) | {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), AXES)
    tokens = np.ones((prompts, 3), np.int32)
    table = engine.Prompts([{}] * prompts, tokens, tokens, 0)
    tokenizer = SimpleNamespace(eos_id=1, pad_id=0)
    with pytest.raises(ValueError, match=message):
        engine.job(
            table, mesh, tokenizer, sampling=Sampling(), seed=0, first_uid=0, group_size=2,
            max_new=4, slots=slots,
        )  # fmt: skip

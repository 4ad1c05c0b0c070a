"""Rollouts that tell which experts their tokens went to, and updates that keep them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import train_state
from posttrain_jax.api import Batch
from posttrain_jax.models.config import Experts
from posttrain_jax.rollout.continuous import Sizes, sample_queue
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

PROMPT, NEW, GROUP = 4, 9, 2
SEGMENTS = np.array([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]], np.int32)
RULES = Rules(Sampling(stop=(1, 2, 3, 4)), NEW, GROUP, record_experts=True)


@pytest.fixture(scope="module")
def sparse(make_small):
    return make_small(7, experts=Experts(count=6, active=2, ffn=5, first_dense=1), layers=3)


@pytest.fixture(scope="module")
def asked():
    prompts = SEGMENTS * np.random.default_rng(0).integers(5, 32, SEGMENTS.shape, np.int32)
    uids = np.arange(len(SEGMENTS) * GROUP, dtype=np.uint32)
    return Asked(*map(jnp.asarray, (prompts, SEGMENTS)), jax.random.key(1), jnp.asarray(uids))


@pytest.fixture(scope="module")
def rollout(sparse, asked):
    return sample(sparse.model, sparse.params, asked, RULES)


def batch_of(rollout, experts):
    weight = rollout.completion_mask_BT.astype(jnp.float32)
    return Batch(
        rollout.tokens_BT, rollout.positions_BT, rollout.segments_BT, weight, experts_BTLA=experts
    )


@functools.partial(jax.jit, static_argnums=0)
def routed(model, params, batch):
    return model.routed(
        params, batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT,
        experts_BTLA=batch.experts_BTLA,
    )  # fmt: skip


def fed(rollout):
    """Real tokens that another real one follows: those the sampler put into the model."""
    real = np.asarray(rollout.segments_BT) > 0
    return real & np.pad(real[:, 1:], ((0, 0), (0, 1)))


def test_the_record_is_what_the_full_forward_chooses(sparse, rollout):
    assert rollout.experts_BTLA.shape == (6, PROMPT + NEW, 2, 2)
    assert rollout.experts_BTLA.dtype == jnp.int16
    record, known = np.asarray(rollout.experts_BTLA), fed(rollout)
    lengths = np.asarray(rollout.completion_mask_BT).sum(axis=1)
    assert len(set(lengths)) > 1  # rows that end early are among them
    _, _, routing = routed(sparse.model, sparse.params, batch_of(rollout, None))
    chosen = np.moveaxis(np.asarray(routing.experts_LBTA), 0, 2)
    np.testing.assert_array_equal(record[known], chosen[known])
    assert (record[~known] == -1).all()


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(6, 4, 3, 2, 1),  # sequences lose their slots for want of pages
        Sizes(4, 12, 2, 1, 1, drafts=2),
    ],
)
def test_a_queue_records_the_same(sparse, asked, rollout, sizes):
    found, work = sample_queue(sparse.model, sparse.params, asked, RULES, sizes)
    np.testing.assert_array_equal(found.tokens_BT, rollout.tokens_BT)
    np.testing.assert_array_equal(found.experts_BTLA, rollout.experts_BTLA)
    lengths = np.asarray(rollout.completion_mask_BT).sum(axis=1)
    assert (work.busy > lengths.sum()) == (sizes.pages == 4)
    assert work.proposed - work.accepted >= (sizes.drafts > 0)  # some drafts were wrong


def test_a_rollout_without_the_rule_has_no_record(sparse):
    asked = Asked(jnp.full((1, 2), 7), jnp.ones((1, 2), jnp.int32), jax.random.key(0),
                  jnp.zeros(1, jnp.uint32))  # fmt: skip
    rules = Rules(Sampling(), 1)
    assert sample(sparse.model, sparse.params, asked, rules).experts_BTLA is None


@pytest.mark.parametrize("replay", [True, False])
def test_the_log_probs_are_the_samplers(sparse, rollout, replay):
    batch = batch_of(rollout, rollout.experts_BTLA if replay else None)
    logp = train_state.logprobs(sparse.model, sparse.params, batch, start=PROMPT)
    mask = np.asarray(rollout.completion_mask_BT)
    np.testing.assert_allclose(
        np.asarray(logp)[mask], np.asarray(rollout.model_logp_BT)[mask], atol=1e-4
    )


def test_a_changed_router_keeps_the_recorded_experts_and_learns(sparse, rollout):
    """The router's signs are turned round, so that it would now choose its least likely experts."""
    layers = dict(sparse.params["layers"], router=-sparse.params["layers"]["router"])
    turned, known = {**sparse.params, "layers": layers}, fed(rollout)
    record = np.asarray(rollout.experts_BTLA)
    chosen = {}
    for replay in (True, False):
        batch = batch_of(rollout, rollout.experts_BTLA if replay else None)
        _, _, routing = routed(sparse.model, turned, batch)
        chosen[replay] = np.moveaxis(np.asarray(routing.experts_LBTA), 0, 2)
    np.testing.assert_array_equal(chosen[True][known], record[known])
    assert (chosen[False][known] != record[known]).mean() > 0.5
    assert (chosen[True][~known] >= 0).all()  # where there is no record the router chooses

    def mean(params):
        out = train_state.policy_out(
            sparse.model, params, batch_of(rollout, rollout.experts_BTLA), PROMPT, 1.0
        )
        return jnp.sum(out.logp_BT)

    gradient = jax.jit(jax.grad(mean))(turned)["layers"]["router"]
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3

"""Router statistics by hand, and in an update whatever its microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from posttrain_jax import train_state
from posttrain_jax.api import Batch, Routing
from posttrain_jax.losses import sft
from posttrain_jax.models import routing
from posttrain_jax.models.config import Experts

EXPERTS = Experts(count=4, active=2, ffn=6)
NAMES = ("router_load_max", "router_load_min", "router_entropy", "router_dropped")


@pytest.fixture(scope="module")
def sparse(make_small):
    return make_small(6, experts=EXPERTS)


def test_counts_and_summary_by_hand(sparse):
    """One layer, three tokens and one of padding."""
    chosen = jnp.array([[[[0, 1], [0, 2], [1, 0], [3, 3]]]])
    entropy = jnp.array([[[0.5, 1.0, 0.6, 100.0]]])
    segments = jnp.array([[1, 1, 2, 0]])
    batch = Batch(segments, segments, segments, segments)
    config = sparse.model.config
    found = routing.summary(
        {"loss": 1.0, **routing.counts(Routing(chosen, entropy), batch, config)}, config
    )
    # six choices, 1.5 for each of four experts: three, two, one, none
    assert {k: float(v) for k, v in found.items()} == pytest.approx({
        "loss": 1.0, "router_load_max": 2.0, "router_load_min": 0.0, "router_entropy": 0.7,
        "router_dropped": 0.0,
    })  # fmt: skip


def test_a_choice_that_no_expert_answers_to_counts_as_dropped(sparse):
    chosen = jnp.array([[[[0, 1], [2, 4]]]])
    batch = Batch(*(jnp.ones((1, 2), jnp.int32),) * 4)
    found = routing.summary(
        routing.counts(Routing(chosen, jnp.zeros((1, 1, 2))), batch, sparse.model.config),
        sparse.model.config,
    )
    assert float(found["router_dropped"]) == pytest.approx(0.25)


def test_a_dense_model_has_none(small):
    assert routing.counts(None, None, small.model.config) == {}
    assert routing.summary({"loss": 1.0}, small.model.config) == {"loss": 1.0}


@pytest.mark.parametrize("microbatches", [1, 2])
def test_statistics_of_an_update_are_those_of_all_its_real_tokens(sparse, microbatches):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 32, (4, 7)).astype(np.int32)
    lengths = np.array([7, 1, 2, 4])[:, None]
    segments = (np.arange(7) < lengths).astype(np.int32)
    positions = np.broadcast_to(np.arange(7, dtype=np.int32), (4, 7))
    batch = Batch(tokens, positions, segments, np.float32(segments * (positions > 0)) / 10)
    _, _, routes = jax.jit(sparse.model.routed)(
        sparse.params, tokens, positions_BT=positions, segments_BT=segments
    )
    load, nats = np.zeros((2, 4)), []
    for layer, row, place in np.ndindex(2, 4, 7):
        if segments[row, place]:
            load[layer, routes.experts_LBTA[layer, row, place]] += 1
            nats.append(routes.entropy_LBT[layer, row, place])
    update = train_state.make_update(
        sparse.model, optax.identity(), sft.loss, microbatches=microbatches
    )
    params = jax.tree.map(jnp.copy, sparse.params)
    state = train_state.init_state(params, optax.identity())
    _, metrics = update(state, batch, jnp.float32(0.0))
    assert load.sum() == 14 * 2 * 2 and load.min() < load.max()
    expected = (load.max() / 7, load.min() / 7, np.mean(nats), 0.0)
    assert [float(metrics[n]) for n in NAMES] == pytest.approx(expected, abs=1e-5)

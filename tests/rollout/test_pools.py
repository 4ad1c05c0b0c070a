"""Rings of local layers and 8-bit pages, in the queue."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.config import Latent
from posttrain_jax.models.safetensors import load_pretrained
from posttrain_jax.rollout import pools, slots
from posttrain_jax.rollout.continuous import Sizes, sample_queue
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

pytestmark = pytest.mark.usefixtures("quick_compile", "small_pages")
GEMMA = Path(__file__).parents[1] / "golden" / "families" / "gemma3_text"
PROMPTS, GROUP, WIDTH, NEW, PAGE = 4, 3, 5, 30, 4
RULES = Rules(Sampling(temperature=0.9, stop=(1, 2)), NEW, GROUP)


def asked(vocabulary, prompts=PROMPTS):
    rng = np.random.default_rng(0)
    segments = (np.arange(WIDTH) >= rng.integers(0, 2, (prompts, 1))).astype(np.int32)
    tokens = (segments * rng.integers(2, vocabulary, (prompts, WIDTH))).astype(np.int32)
    uids = np.arange(prompts * GROUP, dtype=np.uint32)
    return Asked(tokens, segments, jax.random.key(3), uids)


def same(found, expected):
    for name, one, other in zip(found._fields, found, expected, strict=True):
        if other is not None:
            np.testing.assert_allclose(one, other, atol=2e-5, err_msg=name)


def shapes(model, sizes, rules=RULES):
    s = jax.eval_shape(lambda: slots.empty(*sizes[:3], PROMPTS, GROUP, WIDTH))
    return s, jax.eval_shape(lambda s: pools.empty(model, s, PAGE, rules.cache_dtype), s)


def test_local_layers_keep_their_window_and_the_tokens_are_the_plain_loops():
    fields, params = load_pretrained(GEMMA, dtype="float32")
    model = make_model(ModelConfig(**{**fields, "window": 3}))
    given = asked(model.config.vocab_size)
    expected = jax.device_get(sample(model, params, given, RULES))
    assert (expected.completion_mask_BT.sum(axis=1) > 3 * PAGE).sum() > 5
    sizes = Sizes(7, 22, 4, 2, 1)  # fewer pages than sequences fill
    found, work = jax.device_get(sample_queue(model, params, given, RULES, sizes))
    same(found, expected)
    assert work.busy > expected.completion_mask_BT.sum(), "expected sequences that were sent back"
    _, pool = shapes(model, sizes)
    assert [len(k) for k in pool.k_ZKHO] == [21, 21, 22, 21]
    assert [v.shape[2] for v in pool.v_UKWH] == [3, 3, WIDTH, 3]
    _, pool = shapes(model, sizes._replace(pages=21))  # rings would take no less
    assert pool.near is None and {len(k) for k in pool.k_ZKHO} == {21}
    assert {v.shape[2] for v in pool.v_UKWH} == {WIDTH}


def test_rings_hold_what_each_of_several_new_tokens_sees(small):
    """Against a list of what was written; window and page of sizes that hardly fit each other."""
    rng, count, at = np.random.default_rng(1), 3, jax.jit(pools.at, static_argnums=(2, 4))
    for window, size in ((1, 4), (5, 4), (6, 4), (7, 5)):
        config = dataclasses.replace(small.model.config, window=window, global_every=2)
        s = slots.empty(count, 99, 2, PROMPTS, GROUP, WIDTH)
        each = pools.ring_pages(config, count, len(s.owner_Z), size)
        s = s._replace(live_B=s.live_B | True, page_B=s.page_B * 0, former_B=s.page_B * 0)
        pool = jax.jit(lambda s, c=config, o=size: pools.empty(make_model(c), s, o))(s)
        ring, places = np.full((count * each, size), -1), np.zeros(count, int)
        for _ in range(12):
            news = rng.integers(0, size + 1, count)
            s = s._replace(place_B=places.astype(np.int32))
            near = jax.device_get(at(pool, s, size, news.astype(np.int32), size).near)
            for row, new in enumerate(news):
                held = near.page_BT[row, :new], near.offset_BT[row, :new]
                ring[held] = places[row] + np.arange(new)
                assert (near.page_BT[row, new:] == len(ring)).all()
                own = near.owner_Z == row
                said = near.start_Z[own][:, None] + np.arange(size)
                for query in range(places[row], places[row] + new):
                    seen = (said <= query) & (query - said < window)
                    expected = list(range(max(0, query - window + 1), query + 1))
                    assert sorted(said[seen]) == sorted(ring[own][seen]) == expected
            places += news


LATENT = Latent(query_rank=0, rank=12, rope_dim=4, plain_dim=6, value_dim=8)


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"window": 3, "global_every": 2}, [Sizes(3, 9, 2, 2, 1), Sizes(8, 30, 4, 2, 1)]),
        ({"latent": LATENT, "kv_heads": 4, "layers": 1}, [Sizes(5, 20, 4, 2, 1)]),
    ],
)
def test_eight_bits_change_log_probs_a_little_and_each_sequence_alone(make_small, changes, sizes):
    """A token's scale is its own: who sits where, and who is sent back, still changes nothing. The
    first has no rings, the second has, and is halved."""
    small, given = make_small(2, **changes), asked(32)
    rules = RULES._replace(cache_dtype="int8")
    found, *others = (
        jax.device_get(sample_queue(small.model, small.params, given, rules, each)[0])
        for each in sizes
    )
    for other in others:
        same(found, other)
    gap = np.abs(found.model_logp_BT - _logp(small, found))[found.completion_mask_BT]
    assert 1e-4 < gap.mean() < 0.02 and gap.max() < 0.2


def _logp(small, rollout):
    """Each token's log-prob by the whole sequence at once, in float32."""
    hidden, _ = small.model.apply(
        small.params, rollout.tokens_BT, positions_BT=rollout.positions_BT,
        segments_BT=rollout.segments_BT,
    )  # fmt: skip
    logp, _ = small.model.logprobs(small.params, hidden[:, :-1], rollout.tokens_BT[:, 1:])
    return np.pad(logp, ((0, 0), (1, 0)))


def test_bytes_of_the_cache_by_hand(make_small):
    """2 layers, 2 kv heads of 8: of 40 pages of 4 and 4 prompts of 5 places, keys and values."""
    small, sizes = make_small(), Sizes(8, 40, 4, 2, 1)
    places = 40 * 4 + 4 * 5
    for dtype, each in (("", 4 * 8), ("bfloat16", 2 * 8), ("int8", 8 + 4)):
        s, pool = shapes(small.model, sizes, RULES._replace(cache_dtype=dtype))
        assert pools.cache_bytes(small.model, s, PAGE, dtype) == 2 * 2 * 2 * places * each
        kinds = {str(x.dtype) for x in jax.tree.leaves(pool[:4])}
        assert kinds == {"": {"float32"}, "int8": {"int8", "float32"}}.get(dtype, {dtype})
    latent = make_small(latent=LATENT, kv_heads=4)  # one vector of 16 and a scale, no values
    s, _ = shapes(latent.model, sizes)
    assert pools.cache_bytes(latent.model, s, PAGE, "int8") == 2 * places * (16 + 4)

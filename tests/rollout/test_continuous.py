"""The queue of the sampler gives the tokens of the plain loop, whatever holds the sequences."""

from pathlib import Path

import jax
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.safetensors import load_pretrained
from posttrain_jax.rollout import continuous
from posttrain_jax.rollout.continuous import Sizes, plan_sizes, sample_queue
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.row_settings import RowSettings
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

pytestmark = pytest.mark.usefixtures("quick_compile", "small_pages")
FAMILIES = Path(__file__).parents[1] / "golden" / "families"
PROMPTS, GROUP, WIDTH, NEW = 6, 3, 5, 13


def asked(vocabulary, prompts=PROMPTS, most=None):
    rng = np.random.default_rng(0)
    segments = (np.arange(WIDTH) >= rng.integers(0, WIDTH, (prompts, 1))).astype(np.int32)
    tokens = (segments * rng.integers(2, vocabulary, (prompts, WIDTH))).astype(np.int32)
    uids = np.arange(prompts * GROUP, dtype=np.uint32)
    return Asked(tokens, segments, jax.random.key(3), uids, RowSettings(max_new=most))


RULES = Rules(Sampling(temperature=0.9, stop=(1, 2, 7)), NEW, GROUP)


def same(found, expected):
    for name, one, other in zip(found._fields, found, expected, strict=True):
        if other is not None:
            np.testing.assert_allclose(one, other, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def plain(small):
    return jax.device_get(sample(small.model, small.params, asked(32), RULES))


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(8, 40, 4, 2, 1),  # halved once
        Sizes(3, 4, 2, 1, 1),  # hardly more pages than one sequence fills
        Sizes(18, 30, 6, 2, 2),  # all at once, with too few pages for all
    ],
)
def test_slots_pages_and_prompt_pool_change_no_token(small, plain, sizes):
    lengths = plain.completion_mask_BT.sum(axis=1)
    assert len(set(lengths)) > 5 and (lengths == NEW).any() and (lengths < 3).any()
    found, work = jax.device_get(sample_queue(small.model, small.params, asked(32), RULES, sizes))
    same(found, plain)
    again = -(-lengths // 4).sum() * 4 * (sizes.pages < 31)  # sequences sent back run twice
    assert lengths.sum() <= work.busy <= lengths.sum() + again
    assert -(-lengths.max() // 4) <= work.most_pages <= sizes.pages
    assert work.steps >= max(lengths.max(), lengths.sum() / sizes.slots)


@pytest.mark.parametrize("name", ["gemma3_text", "deepseek_v3"])
def test_local_layers_latent_vectors_and_experts(name):
    fields, params = load_pretrained(FAMILIES / name, dtype="float32")
    model = make_model(ModelConfig(**fields))
    vocabulary = model.config.vocab_size
    expected = jax.device_get(sample(model, params, asked(vocabulary), RULES))
    found, _ = sample_queue(model, params, asked(vocabulary), RULES, Sizes(5, 12, 3, 2, 1))
    same(jax.device_get(found), expected)


def test_each_row_ends_at_its_own_length_at_the_latest(small, plain):
    most = np.random.default_rng(2).integers(1, NEW + 1, PROMPTS * GROUP).astype(np.int32)
    given = asked(32, most=most)
    found, _ = jax.device_get(
        sample_queue(small.model, small.params, given, RULES, Sizes(8, 40, 4, 2, 1))
    )
    same(found, jax.device_get(sample(small.model, small.params, given, RULES)))
    lengths = plain.completion_mask_BT.sum(axis=1)
    np.testing.assert_array_equal(found.completion_mask_BT.sum(axis=1), np.minimum(lengths, most))
    np.testing.assert_array_equal(found.finished_B, plain.finished_B & (lengths <= most))


def test_planned_sizes_hold_a_whole_sequence_and_never_more_than_all():
    for slots in (1, 4, 32, 1000):
        sizes = plan_sizes(slots, PROMPTS, RULES)
        longest = -(-NEW // continuous.PAGE)
        assert longest <= sizes.pages <= sizes.slots * longest
        assert sizes.slots == min(slots, 18) and sizes.entries <= PROMPTS
    with pytest.raises(ValueError, match="slots=0: expected at least 1"):
        plan_sizes(0, PROMPTS, RULES)

"""Prompts prefilled at several widths, and once for their group, give the same tokens."""

import jax
import numpy as np
import pytest

from posttrain_jax.bench.queued import shared_prompts
from posttrain_jax.rollout.continuous import Sizes, plan_sizes, sample_queue
from posttrain_jax.rollout.prefill import prompt_widths
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

pytestmark = pytest.mark.usefixtures("quick_compile", "small_pages")
WIDTH, GROUP, NEW = 24, 2, 6
LENGTHS = [24, 1, 7, 3, 8, 13, 14, 2, 13]
"""Of a prompt's tokens the last one is not prefilled."""
RULES = Rules(Sampling(temperature=0.9), NEW, GROUP)


def asked(lengths, width, group):
    rng = np.random.default_rng(0)
    segments = (np.arange(width) >= width - np.array(lengths)[:, None]).astype(np.int32)
    tokens = segments * rng.integers(2, 32, segments.shape, np.int32)
    uids = np.arange(len(lengths) * group, dtype=np.uint32)
    return Asked(tokens, segments, jax.random.key(3), uids)


def test_widths_are_halves_of_the_prompts_places():
    assert prompt_widths(1024, 64) == (256, 512, 1024)
    assert prompt_widths(200, 64) == (100, 200)
    assert prompt_widths(127, 64) == (127,) and prompt_widths(1, 64) == (1,)


def test_widths_change_no_token(make_small):
    """A local layer keeps less of a prompt than the narrowest width, a global one all.

    Two prompts at once: pairs of 24, 7, 13, 14 and 13 tokens at most, less one.
    """
    small, given = make_small(window=5, global_every=2), asked(LENGTHS, WIDTH, GROUP)
    expected = jax.device_get(sample(small.model, small.params, given, RULES))
    prefilled = {}
    for narrowest in (WIDTH, 2):
        sizes = Sizes(3, 12, 9, 2, 1, narrowest=narrowest)
        found, work = sample_queue(small.model, small.params, given, RULES, sizes)
        np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
        logp = (found.behaviour_logp_BT, expected.behaviour_logp_BT)
        np.testing.assert_allclose(*logp, atol=2e-5)
        prefilled[narrowest] = int(work.prefilled)
    assert prefilled == {WIDTH: 2 * 5 * 24, 2: 2 * (24 + 6 + 12 + 24 + 12)}


def test_a_group_of_sixteen_prefills_and_keeps_its_prompt_once(small):
    """Prompts of 512 places: against as many prompts as there are sequences, which say the same."""
    prompts, group, width = 2, 16, 512
    shared, repeat = asked([width] * prompts, width, group), lambda x: np.repeat(x, group, axis=0)
    alone = shared._replace(
        prompts_PT=repeat(shared.prompts_PT), segments_PT=repeat(shared.segments_PT)
    )
    found = []
    for given, rules in ((shared, Rules(Sampling(), 3, group)), (alone, Rules(Sampling(), 3))):
        sizes = plan_sizes(3, len(given.prompts_PT), rules)
        found.append(jax.device_get(sample_queue(small.model, small.params, given, rules, sizes)))
    (one, work), (other, work_alone) = found
    np.testing.assert_array_equal(one.tokens_BT, other.tokens_BT)
    assert work.prefilled * group == work_alone.prefilled == prompts * group * width


def test_what_shared_prompts_save_by_hand(small):
    """11 prompts of 32 slots: 2 layers, 2 heads of 8, keys and values in float32."""
    prompts, group, width = 32, 16, 512
    given = asked([width] * prompts, width, group)
    sizes = plan_sizes(32, prompts, Rules(Sampling(), width, group))
    told = shared_prompts(small.model, given, sizes, prompts * width)
    assert (
        told["prefill_share"] == 1 / 16 and told["prompt_cache_share"] == round(11 / 32, 3) <= 0.35
    )
    assert told["prompt_cache_mb"] == round(11 * width * 2 * 2 * 2 * 8 * 4 / 1e6, 2)

"""Greedy rollouts are what transformers' `generate` gives, by both samplers."""

from pathlib import Path

import jax
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.safetensors import load_pretrained
from posttrain_jax.rollout.continuous import Sizes, sample_queue
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "deepseek_v3"])
def test_64_greedy_tokens(family):
    """Made by tests/oracle/make_generate_goldens.py."""
    stored = np.load(GOLDEN / "generated.npz")
    fields, params = load_pretrained(GOLDEN / "families" / family, dtype="float32")
    model = make_model(ModelConfig(**fields))
    mask, expected = stored["mask"], stored[family]
    asked = Asked(
        stored["prompts"], mask.astype(np.int32), jax.random.key(0), np.arange(3, dtype=np.uint32)
    )
    rules = Rules(Sampling(temperature=0.0), expected.shape[1])
    found = sample(model, params, asked, rules)
    np.testing.assert_array_equal(found.tokens_BT[:, mask.shape[1] :], expected)
    if family != "deepseek_v3":
        queued, _ = sample_queue(model, params, asked, rules, Sizes(2, 9, 2, 1, 1))
        np.testing.assert_array_equal(queued.tokens_BT[:, mask.shape[1] :], expected)

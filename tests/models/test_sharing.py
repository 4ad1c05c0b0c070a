"""A group's prompt read once gives what each row's own reading gives, in every family."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, lora, make_model
from posttrain_jax.models.safetensors import load_pretrained
from posttrain_jax.models.sharing import Shared, fold, share_prompts, unfold

FAMILIES = Path(__file__).parents[1] / "golden" / "families"
PROMPTS, GROUP, WIDTH, NEW = 2, 3, 5, 7


def rows(vocabulary):
    """(tokens, positions, segments): left-padded prompts, completions of several lengths."""
    rng = np.random.default_rng(0)
    padding = np.array([[2], [0]])
    prompts = rng.integers(3, vocabulary, (PROMPTS, WIDTH)) * (np.arange(WIDTH) >= padding)
    lengths = rng.integers(1, NEW + 1, (PROMPTS * GROUP, 1))
    completions = rng.integers(3, vocabulary, (PROMPTS * GROUP, NEW)) * (np.arange(NEW) < lengths)
    tokens = np.concatenate([np.repeat(prompts, GROUP, axis=0), completions], axis=1)
    segments = (tokens != 0).astype(np.int32)
    return tokens.astype(np.int32), np.maximum(np.cumsum(segments, axis=1) - 1, 0), segments


def test_folded_rows():
    x = np.array([[1, 2, 3, 4], [1, 2, 5, 6], [7, 8, 9, 0], [7, 8, 3, 2]])
    folded = fold(jnp.array(x), Shared(2, 2))
    assert folded.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 3, 2]]
    assert unfold(folded, Shared(2, 2)).tolist() == x.tolist()


@functools.partial(jax.jit, static_argnums=(0, 1))
def loss_of(model, group, params, tokens, positions, segments):
    """(the log-probs of the completions, their gradient, what the routers chose)."""

    def value(params):
        hidden, _, routing = share_prompts(model, group, WIDTH).routed(
            params, tokens, positions_BT=positions, segments_BT=segments
        )
        logp, _ = model.logprobs(params, hidden[:, WIDTH - 1 : -1], tokens[:, WIDTH:])
        logp = logp * (segments[:, WIDTH:] != 0)
        return jnp.sum(logp * jnp.cos(jnp.arange(logp.size).reshape(logp.shape))), (logp, routing)

    (_, (logp, routing)), grads = jax.value_and_grad(value, has_aux=True)(params)
    return logp, grads, routing


@pytest.mark.parametrize(
    ("family", "remat"),
    [
        ("llama", "none"),
        ("llama", "dots"),
        ("gemma3_text", "none"),
        ("qwen3_moe", "none"),
        ("deepseek_v3", "dots"),
    ],
)
def test_log_probs_gradients_and_routes_are_the_same(family, remat):
    fields, params = load_pretrained(FAMILIES / family, dtype="float32")
    model = make_model(ModelConfig(**{**fields, "remat": remat}))
    given = rows(model.config.vocab_size)
    apart, together = (loss_of(model, group, params, *given) for group in (1, GROUP))
    np.testing.assert_allclose(together[0], apart[0], atol=2e-5)
    for one, other in zip(jax.tree.leaves(together[1]), jax.tree.leaves(apart[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, float(np.abs(other).max())))
    if model.config.experts:
        real = given[2] != 0
        one, other = (found[2].experts_LBTA[:, real] for found in (together, apart))
        np.testing.assert_array_equal(one, other)


def test_with_adapters_and_recorded_experts():
    fields, params = load_pretrained(FAMILIES / "qwen3_moe", dtype="float32")
    plain = make_model(ModelConfig(**fields))
    model = lora.wrap(plain, lora.LoraConfig(rank=2, targets="q|o"))
    params = jax.jit(model.init)(jax.random.key(0)) | {
        k: v for k, v in params.items() if not isinstance(v, dict)
    }
    tokens, positions, segments = rows(model.config.vocab_size)
    places = {"positions_BT": positions, "segments_BT": segments}
    routed = jax.jit(
        lambda model, experts: model.routed(params, tokens, **places, experts_BTLA=experts),
        static_argnums=0,
    )
    chosen, _, routing = routed(model, None)
    experts = (jnp.moveaxis(routing.experts_LBTA, 0, 2) + 1) % model.config.experts.count
    alike = share_prompts(model, GROUP, WIDTH)
    hidden, expected = (routed(m, experts)[0] for m in (alike, model))
    real = segments != 0
    np.testing.assert_allclose(hidden[real], expected[real], atol=2e-5)
    assert np.abs(expected - chosen)[real].max() > 1e-3


def test_the_model_of_a_group_is_made_once_and_a_group_of_one_is_none(small):
    assert share_prompts(small.model, 4, 5) is share_prompts(small.model, 4, 5)
    assert share_prompts(small.model, 1, 5) is small.model
    assert share_prompts(small.model, 4, 0) is small.model


def test_each_prompt_token_is_multiplied_once(small):
    """The compiled program's products, counted by XLA: 5 + 3 * 7 tokens a group, not 3 * 12."""
    given = rows(32)
    wide = make_model(small.model.config.__class__(**{**vars(small.model.config), "ffn": 4096}))
    params = jax.eval_shape(wide.init, jax.random.key(0))

    def flops(group):
        alike = share_prompts(wide, group, WIDTH)
        read = jax.jit(lambda p, t, where, s: alike.apply(p, t, positions_BT=where, segments_BT=s))
        return (read.lower(params, *given).compile().cost_analysis() or {})["flops"]

    expected = (WIDTH + GROUP * NEW) / (GROUP * (WIDTH + NEW))
    assert flops(GROUP) / flops(1) == pytest.approx(expected, rel=0.02)

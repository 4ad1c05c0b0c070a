"""Adapters: what they add, what is trained, and that models know nothing of them."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import optimizers, train_state, tree
from posttrain_jax.api import Batch
from posttrain_jax.losses import sft
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, lora, make_model
from posttrain_jax.models.adapters import full
from posttrain_jax.models.config import Experts, Latent
from posttrain_jax.models.lora_targets import projections
from posttrain_jax.models.transformer import unstack
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

SIZES = {"vocab_size": 32, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "head_dim": 8,
         "ffn": 32}  # fmt: skip
DENSE = ModelConfig(**SIZES, pad_id=0)
LATENT = ModelConfig(
    **{**SIZES, "kv_heads": 4}, latent=Latent(6, 4, 4, 4, 6), experts=Experts(4, 2, 8, 1, 1)
)
draw = jax.jit(lambda model, key: model.init(key), static_argnums=0)
draw_adapters = jax.jit(lora.init_adapters, static_argnums=0)
EVERY = ("q", "k", "v", "o", "gate", "up", "down")


def wrapped(config=DENSE, shake=0.2, seed=0, **settings):
    """A model with adapters that act, and its parameters."""
    plain = make_model(config)
    model = lora.wrap(plain, lora.LoraConfig(**{"rank": 3, "alpha": 5.0, **settings}))
    frozen = lora.freeze(model, draw(plain, jax.random.key(seed)))
    adapters = draw_adapters(model, frozen, jax.random.key(seed + 1))
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(seed + 2), len(leaves))
    moved = [x + shake * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, tree.join(frozen, jax.tree.unflatten(structure, moved))


def batch(rows=4, length=12, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 32, (rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    ones = np.ones_like(tokens)
    return Batch(tokens, positions, ones, np.float32(positions > 0) / tokens.size)


def logits(model, params, b):
    places = {"positions_BT": b.positions_BT, "segments_BT": b.segments_BT}
    run = jax.jit(lambda p: model.logits(p, model.apply(p, b.tokens_BT, **places)[0]))
    return np.asarray(run(params))


def by_hand(params, scale):
    """The plain parameters of a dense model in numpy float64: W + s A B, columns scaled to m."""
    layers, plain = params["layers"], {}
    for name, weight in layers.items():
        if lora.is_adapter(name):
            continue
        if name + "_lora_a" not in layers:
            plain[name] = np.float64(weight)
            continue
        a, b = (np.float64(layers[f"{name}_lora_{x}"]) for x in "ab")
        stack, rank = a.shape[0], a.shape[-1]
        flat = a.reshape(stack, -1, rank) @ b.reshape(stack, rank, -1) * scale
        flat += np.float64(full(weight, (*a.shape[:-1], *b.shape[2:]))).reshape(flat.shape)
        if f"{name}_lora_norm" in layers:
            length = np.sqrt((flat**2).sum(axis=1, keepdims=True))
            flat *= np.float64(layers[f"{name}_lora_norm"]).reshape(stack, 1, -1) / length
        plain[name] = flat.reshape(*a.shape[:-1], *b.shape[2:])
    return {**{k: np.float64(v) for k, v in params.items() if k != "layers"}, "layers": plain}


@pytest.mark.parametrize(
    "settings",
    [{}, {"dora": True}, {"rslora": True, "targets": "q|down"}, {"base": "int8", "dora": True},
     {"base": "nf4"}, {"base": "bfloat16"}],
)  # fmt: skip
def test_the_adapted_model_by_hand_and_merged(settings, hidden_float64):
    model, params = wrapped(**settings)
    b = batch(2)
    scale = 5.0 / (3**0.5 if settings.get("rslora") else 3)
    exact = by_hand(params, scale)
    found = logits(model, params, b)[..., 1:]  # id 0 is padding
    for row in range(2):
        hidden = hidden_float64(exact, DENSE, b.tokens_BT[row])
        np.testing.assert_allclose(found[row], (hidden @ exact["embed"].T)[:, 1:], atol=1e-5)
    plain = lora.unwrap(model)
    merged = lora.merge(model, params)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(
        jnp.shape, jax.eval_shape(plain.init, jax.random.key(0))
    )
    np.testing.assert_allclose(logits(plain, merged, b)[..., 1:], found, atol=1e-5)


def test_merging_latent_attention_and_experts():
    """Absorbed decoding asks for a weight itself; experts and routers have no adapters."""
    model, params = wrapped(LATENT)
    names = {path.rpartition("/")[2] for path in projections(lora.unwrap(model))}
    assert names == {"q_a", "q_b", "kv_a", "kv_b", "o", "gate", "up", "down", "shared_gate",
                     "shared_up", "shared_down"}  # fmt: skip
    plain, merged, b = lora.unwrap(model), lora.merge(model, params), batch(2)
    expected = logits(plain, merged, b)
    np.testing.assert_allclose(logits(model, params, b), expected, atol=2e-5)
    cache = model.init_cache(2, 12)
    apart = unstack(params)

    @jax.jit
    def decode(tokens, positions, cache):
        hidden, cache = model.apply(
            apart, tokens, cache=cache, positions_BT=positions, segments_BT=b.segments_BT[:, :1]
        )
        return model.logits(apart, hidden)[:, 0], cache

    for place in range(12):
        here = slice(place, place + 1)
        found, cache = decode(b.tokens_BT[:, here], b.positions_BT[:, here], cache)
        np.testing.assert_allclose(found, expected[:, place], atol=5e-5)


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"base": "nf4"}])
def test_new_adapters_change_nothing_and_are_drawn_as_in_peft(settings):
    model, params = wrapped(shake=0.0, **settings)
    plain = lora.unwrap(model)
    base = tree.split(params, lora.is_adapter)[1]
    kept = {**settings, "rank": 1, "dora": False}
    alone = lora.wrap(plain, lora.LoraConfig(**kept, targets="k"))
    zero = tree.join(base, lora.init_adapters(alone, base, jax.random.key(0)))
    np.testing.assert_allclose(
        logits(model, params, batch()), logits(alone, zero, batch()), atol=2e-6
    )
    a = np.asarray(params["layers"]["o_lora_a"])  # 32 inputs
    assert a.shape == (2, 4, 8, 3) and a.dtype == np.float32
    assert np.abs(a).max() <= 32**-0.5 and np.abs(a).max() > 0.9 * 32**-0.5
    assert a.std() == pytest.approx((32 * 3) ** -0.5, rel=0.1)
    assert np.abs(a[0] - a[1]).max() > 0.01
    assert not np.asarray(params["layers"]["o_lora_b"]).any()


def test_gradients_flow_into_adapters_only_and_cost_no_weight_gradients():
    """No product of the compiled update has the shape of a weight's gradient; Adam's moments are
    those of the adapters; the frozen weights are neither changed nor donated."""
    config = ModelConfig(**{**SIZES, "ffn": 40, "width": 24, "vocab_size": 72})
    plain = make_model(config)
    model = lora.wrap(plain, lora.LoraConfig(2))
    optimizer = optimizers.make_optimizer()
    found = {}
    for name, each in {"full": plain, "lora": model}.items():
        params, frozen = train_state.split(each, placed(each))
        state = train_state.init_state(params, optimizer)
        update = train_state.make_update(each, optimizer, sft.loss, frozen=frozen)
        lowered = update.func.lower(state, batch(4, 14), jnp.float32(1e-3), **update.keywords)
        compiled = lowered.compile()
        dots = set(re.findall(r"= f32\[([\d,]+)\]\S* (?:dot|custom-call)\(", compiled.as_text()))
        moments = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
        found[name] = compiled.cost_analysis()["flops"], dots, moments
        before = jax.tree.map(np.asarray, frozen)
        state, _ = update(state, batch(4, 14), jnp.float32(1e-3))
        state, _ = update(state, batch(4, 14), jnp.float32(1e-3))
        assert tree.digest(before) == tree.digest(frozen)  # and not donated
    weights = {"40,24", "24,40", "24,32", "32,24", "24,16", "16,24", "24,72", "72,24"}
    assert found["full"][1] & weights
    assert found["lora"][1] & weights == set()
    print("flops", found["lora"][0] / found["full"][0], "moments", found["lora"][2:])
    assert found["lora"][0] < 0.9 * found["full"][0]
    adapters = sum(x.size for x in jax.tree.leaves(params))
    assert set(jax.tree.map(jnp.shape, params)) == {"layers"}
    assert found["lora"][2] < 2 * 4 * adapters + 64


def placed(model):
    """Parameters on a mesh of one device."""
    return train_state.init_params(model, make_mesh(devices=jax.devices()[:1]), 0)


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"base": "int8"}])
def test_gradients_follow_from_those_of_the_merged_weights(settings):
    """With G the plain model's gradient at W' = V m / |V|, V = W + s A B, and |V| a constant:
    dm = sum_I G V / |V|, and with H = G m / |V|: dA = s H B', dB = s A' H; of LoRA m / |V| is 1."""
    model, params = wrapped(**settings)
    adapters, frozen = train_state.split(model, params)
    b, scale = batch(2, 6), 5 / 3

    def loss(params, model):
        out = train_state.policy_out(model, params, b, 1, 1.0)
        return sft.loss(out, b)[0]

    grads = jax.jit(jax.grad(lambda a: loss(tree.join(frozen, a), model)))(adapters)["layers"]
    plain, merged = lora.unwrap(model), lora.merge(model, params)
    whole = jax.jit(jax.grad(lambda p: loss(p, plain)))(merged)["layers"]
    for name in EVERY:
        a, b_ = (np.float64(adapters["layers"][f"{name}_lora_{x}"]) for x in "ab")
        stack, rank = a.shape[0], a.shape[-1]
        flat_a, flat_b = a.reshape(stack, -1, rank), b_.reshape(stack, rank, -1)
        g = np.float64(whole[name]).reshape(stack, flat_a.shape[1], -1)
        if settings.get("dora"):
            m = np.float64(adapters["layers"][f"{name}_lora_norm"]).reshape(stack, 1, -1)
            unit = np.float64(merged["layers"][name]).reshape(g.shape) / m
            found = grads[f"{name}_lora_norm"].reshape(stack, -1)
            np.testing.assert_allclose(found, (g * unit).sum(axis=1), atol=1e-6)
            stored = np.float64(frozen["layers"][name]).reshape(g.shape)
            v = stored + scale * flat_a @ flat_b
            g = g * m / np.sqrt((v**2).sum(axis=1, keepdims=True))
        found_a = grads[f"{name}_lora_a"].reshape(flat_a.shape)
        found_b = grads[f"{name}_lora_b"].reshape(flat_b.shape)
        np.testing.assert_allclose(found_a, scale * g @ flat_b.mT, atol=1e-6)
        np.testing.assert_allclose(found_b, scale * flat_a.mT @ g, atol=1e-6)
        assert np.abs(found_a).max() > 1e-4 and np.abs(found_b).max() > 1e-4


@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, {"base": "nf4"}, {"base": "nf4", "dora": True}]
)
def test_the_sampler_and_the_trainer_agree(settings):
    model, params = wrapped(shake=0.1, **settings)
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, 32, (2, 5)).astype(np.int32)
    asked = Asked(prompts, np.ones_like(prompts), jax.random.key(0), np.arange(4, dtype=np.uint32))
    decoding = lora.for_decoding(model, params)
    assert (decoding[0] == model) == (settings != {"dora": True})
    rollout = sample(*decoding, asked, Rules(Sampling(), 6, 2))
    b = Batch(
        rollout.tokens_BT, rollout.positions_BT, rollout.segments_BT,
        np.float32(rollout.completion_mask_BT),
    )  # fmt: skip
    trainer = train_state.logprobs(model, params, b, start=5)
    gap = np.abs(np.asarray(trainer) - np.asarray(rollout.behaviour_logp_BT))
    assert gap[np.asarray(rollout.completion_mask_BT)].max() < 1e-4


def test_remat_changes_no_gradient():
    grads = []
    for remat in ("none", "full", "dots"):
        model, params = wrapped(ModelConfig(**SIZES, remat=remat), dora=True)
        adapters, frozen = train_state.split(model, params)

        def loss(adapters, model=model, frozen=frozen):
            out = train_state.policy_out(model, tree.join(frozen, adapters), batch(2), 1, 1.0)
            return sft.loss(out, batch(2))[0]

        grads.append(jax.jit(jax.grad(loss))(adapters))
    for other in grads[1:]:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), grads[0], other)


@pytest.mark.parametrize(
    ("expression", "names"),
    [("", EVERY), ("q|v", ("q", "v")), ("q_proj|down_proj", ("q", "down")), ("layers/o", ("o",)),
     (".*_proj", EVERY)],
)  # fmt: skip
def test_targets_by_our_names_and_by_those_of_peft(expression, names):
    model = make_model(DENSE)
    found = lora.targets(model, expression)
    assert set(found) == {f"layers/{name}" for name in names}
    if "o" in names:
        target = found["layers/o"]
        assert (target.inputs, target.outputs) == ((4, 8), (16,))
        assert (target.inputs_axes, target.outputs_axes) == (("heads", "head_dim"), ("embed",))


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (DENSE, {"targets": "query"}, r"lora.targets='query' is no name of an adapter; .*layers/q"),
        (DENSE, {"targets": "layers/.*"}, r"names layers/attn_norm, .*can't have an adapter"),
        (LATENT, {"targets": "expert_up"}, r"names layers/expert_up, which can't have"),
        (LATENT, {"targets": "router"}, r"names layers/router, which can't have"),
        (DENSE, {"rank": 0}, r"lora.rank=0: expected at least 1"),
        (DENSE, {"base": "int4"}, r"lora.base='int4': expected one of .*nf4"),
    ],
)
def test_bad_settings(config, settings, message):
    with pytest.raises(ValueError, match=message):
        wrapped(config, **settings)


def test_the_same_settings_give_the_same_model():
    plain = make_model(DENSE)
    one, two = (lora.wrap(plain, lora.LoraConfig(2)) for _ in range(2))
    assert one == two and hash(one) == hash(two) and one != plain
    assert one != lora.wrap(plain, lora.LoraConfig(3))


def test_models_never_mention_adapters():
    folder = Path(lora.__file__).parent
    mine = {"lora.py", "lora_targets.py", "adapters.py", "peft.py", "quantised.py"}
    for path in folder.glob("*.py"):
        if path.name not in mine:
            code = path.read_text("utf-8")
            assert not re.search(
                r"\blora\b|_lora_(a|b|norm)|adapter|intercept_methods", code, re.I
            ), path.name

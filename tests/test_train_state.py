"""The update: gradients by finite differences, AdamW by hand, and resuming bit for bit."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from posttrain_jax import optimizers, train_state, tree
from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.checkpoint import Checkpoints
from posttrain_jax.losses import grpo, sft
from posttrain_jax.losses.common import AGGREGATIONS, aggregation_weights


def random_batch(seed, rows=4, length=7):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 32, (rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    mask = (rng.random((rows, length)) < 0.6) & (positions >= 2)
    weight = aggregation_weights(mask, "token_mean_global")
    return Batch(tokens, positions, np.ones_like(tokens), weight)


@pytest.fixture(scope="module")
def trainer(small):
    """(a function that makes a new state, the update of it)."""
    optimizer = optimizers.make_optimizer(weight_decay=0.1)
    update = train_state.make_update(small.model, optimizer, sft.loss)
    start = lambda: train_state.init_state(  # noqa: E731
        jax.tree.map(jnp.copy, small.params), optimizer
    )
    return start, update


def test_the_gradient_of_the_model_by_finite_differences(small, logp_float64):
    """One step of plain gradient descent against central differences of the float64 decoder."""
    batch = random_batch(0)
    descent = optax.trace(decay=0.0)
    update = train_state.make_update(small.model, descent, sft.loss, start=2)
    state = train_state.init_state(jax.tree.map(jnp.copy, small.params), descent)
    after, metrics = update(state, batch, 1.0)

    def loss(params):
        total = 0.0
        for tokens, weight in zip(batch.tokens_BT, np.asarray(batch.weight_BT), strict=True):
            logp = logp_float64(params, small.model.config, tokens)
            total -= (logp[np.arange(6), tokens[1:]] * weight[1:]).sum()
        return total

    assert float(metrics["loss"]) == pytest.approx(loss(small.exact), abs=1e-5)
    rng = np.random.default_rng(1)
    leaves, structure = jax.tree.flatten(small.exact)
    moved = jax.tree.leaves(after.params)
    for number, leaf in enumerate(leaves):
        place = tuple(rng.integers(n) for n in leaf.shape)
        sides = []
        for sign in (1, -1):
            shifted = [x.copy() for x in leaves]
            shifted[number][place] += sign * 1e-5
            sides.append(loss(jax.tree.unflatten(structure, shifted)))
        slope = (sides[0] - sides[1]) / 2e-5
        found = leaf[place] - float(moved[number][place])
        assert found == pytest.approx(slope, abs=2e-5, rel=1e-3)


def test_adamw_by_hand(small):
    """Three steps in float64: clip to norm 1, Adam with bias correction, decay of matrices only."""
    w = {"w": np.array([[1.0, -2.0]]), "layers": {"attn_norm": np.array([[0.5, 1.5]])}}
    grads = [{"w": np.array([[g, -2 * g]]), "layers": {"attn_norm": np.array([[2 * g, 0.1]])}}
             for g in (0.1, 3.0, -0.2)]  # fmt: skip
    optimizer = optimizers.make_optimizer(b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3)
    where = jax.tree.leaves(small.params)[0].sharding
    placed = jax.device_put(jax.tree.map(np.float32, w), where)
    state = train_state.init_state(placed, optimizer)
    step = jax.jit(functools.partial(train_state.apply_gradients, optimizer=optimizer))
    mean, square = (jax.tree.map(np.zeros_like, w) for _ in range(2))
    for number, g in enumerate(grads, start=1):
        lr = 0.1 / number
        state, metrics = step(state, jax.tree.map(np.float32, g), lr=np.float32(lr))
        norm = math.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(g)))
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-6)
        g = jax.tree.map(lambda x, norm=norm: x / max(1.0, norm), g)
        mean = jax.tree.map(lambda m, x: 0.8 * m + 0.2 * x, mean, g)
        square = jax.tree.map(lambda s, x: 0.9 * s + 0.1 * x**2, square, g)
        adam = jax.tree.map(
            lambda m, s, n=number: m / (1 - 0.8**n) / (np.sqrt(s / (1 - 0.9**n)) + 1e-6),
            mean, square,
        )  # fmt: skip
        w = {
            "w": w["w"] - lr * (adam["w"] + 0.3 * w["w"]),
            "layers": jax.tree.map(lambda p, a, lr=lr: p - lr * a, w["layers"], adam["layers"]),
        }
        for found, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(w), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert int(state.step) == 3 and int(state.skipped) == 0


def test_muon_turns_each_layers_matrices_into_their_orthogonal_factor(small):
    """A layer's matrices first move by c U V' of their gradient U S V'; the rest is Adam's."""
    optimizer = optimizers.make_optimizer(name="muon", muon_ratio=5.0, clip_norm=1e9)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), small.exact)
    state = train_state.init_state(jax.tree.map(jnp.copy, small.params), optimizer)
    step = jax.jit(functools.partial(train_state.apply_gradients, optimizer=optimizer))
    after, _ = step(state, grads, lr=np.float32(0.1))
    moved = jax.tree.map(lambda old, new: old - np.asarray(new), small.exact, after.params)
    inputs = {"q": 16, "k": 16, "v": 16, "o": 4 * 8, "gate": 16, "up": 16, "down": 32}
    for name, rows in inputs.items():
        for layer in range(2):
            found = moved["layers"][name][layer].reshape(rows, -1)
            u, _, v = np.linalg.svd(grads["layers"][name][layer].reshape(rows, -1), False)
            cosine = (found * (u @ v)).sum() / np.linalg.norm(found) / np.linalg.norm(u @ v)
            assert cosine > 0.97
            length = np.linalg.norm(found) / np.linalg.norm(u @ v)
            expected = 0.1 * 5.0 * max(1.0, found.shape[1] / rows) ** 0.5
            assert length == pytest.approx(expected, rel=0.25)  # Newton-Schulz stops early
    # optax's muon takes Nesterov's momentum in Adam too: (b1 (1 - b1) / (1 - b1^2) + 1) sign(g)
    adam = 0.1 * (0.9 * 0.1 / 0.19 + 1)
    for name in ("embed", "final_norm"):
        np.testing.assert_allclose(moved[name], adam * np.sign(grads[name]), atol=1e-5)
    with pytest.raises(ValueError, match=r"optimizer.name='adam': expected adamw or muon"):
        optimizers.make_optimizer(name="adam")


def test_only_matrices_decay(small):
    decays = jax.tree.leaves_with_path(optimizers.decayed(small.params))
    named = {jax.tree_util.keystr(path, simple=True, separator="."): on for path, on in decays}
    assert {name for name, on in named.items() if not on} == {
        "final_norm", "layers.attn_norm", "layers.mlp_norm"
    }  # fmt: skip


def test_gradients_that_are_not_finite_are_skipped_and_counted(trainer):
    start, update = trainer
    good = [random_batch(seed) for seed in range(2)]
    bad = good[0]._replace(weight_BT=good[0].weight_BT.at[0, 3].set(jnp.nan))
    plain, skipping = start(), start()
    for batch in good:
        plain, _ = update(plain, batch, jnp.float32(0.01))
    for batch in (good[0], bad, bad, good[1]):
        skipping, metrics = update(skipping, batch, jnp.float32(0.01))
    assert tree.digest((plain.params, plain.opt_state)) == tree.digest(
        (skipping.params, skipping.opt_state)
    )
    assert (int(skipping.step), int(skipping.skipped), int(metrics["skipped"])) == (4, 2, 2)
    assert (int(plain.step), int(plain.skipped)) == (2, 0)


def test_resuming_from_a_checkpoint_is_exact_to_the_last_bit(trainer, tmp_path):
    """Also: the old state is donated, and a save under way is none the worse for it."""
    start, update = trainer
    batches = [random_batch(seed) for seed in range(4)]
    state = start()
    checkpoints = Checkpoints(tmp_path, every=2)
    for step, batch in enumerate(batches, start=1):
        before = state
        state, _ = update(state, batch, jnp.float32(0.01 * step))
        checkpoints.after(step, state, {"seconds": step})
        assert step == 3 or jax.tree.leaves(before.params)[0].is_deleted()  # 2 is being saved
    checkpoints.close()
    expected = tree.digest(state)

    (tmp_path / "checkpoints" / "4" / "_CHECKPOINT_METADATA").unlink()  # a save that was cut off
    step, resumed, meta = Checkpoints(tmp_path, every=2).restore(start())
    assert (step, meta) == (2, {"seconds": 2})
    assert type(resumed) is train_state.TrainState
    assert tree.digest(resumed) != expected
    for number in (3, 4):
        resumed, _ = update(resumed, batches[number - 1], jnp.float32(0.01 * number))
    assert tree.digest(resumed) == expected


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_of_microbatches_add_up(aggregation):
    """A toy policy with one row of logits a token; eight sequences, one of them without loss."""
    rng = np.random.default_rng(0)
    rows, length = 8, 5
    ints = rng.integers(0, 6, (rows, length)).astype(np.int32)
    mask = rng.random((rows, length)) < 0.5
    mask[3] = False
    others = rng.normal(-2, 1, (3, rows, length)).astype(np.float32)
    weights = functools.partial(aggregation_weights, mode=aggregation, constant=length)
    batch = Batch(ints, ints, ints, weights(mask, microbatches=4), *others)
    params = rng.standard_normal((6, 6)).astype(np.float32)

    def objective(params, part):
        logp = jax.nn.log_softmax(params)[part.positions_BT, part.tokens_BT]
        return grpo.loss(PolicyOut(logp, -logp), part, clip_high=2.0, kl_coef=0.1)

    both = jax.value_and_grad(objective, has_aux=True)
    found, metrics = train_state.accumulate(both, params, batch, 4)
    if aggregation == "token_mean_local":  # each part by itself, then the mean of the parts
        grads = []
        for part in range(4):
            alone = jax.tree.map(lambda x, part=part: x[part::4], batch)
            grads.append(both(params, alone._replace(weight_BT=weights(mask[part::4])))[1])
        expected = np.mean(grads, axis=0)
    else:
        (value, whole), expected = both(params, batch._replace(weight_BT=weights(mask)))
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
        assert float(metrics["max/logprob_gap"]) == float(whole["max/logprob_gap"])
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("together", "parts"), [(1, [[0, 2, 4, 6], [1, 3, 5, 7]]),
                                               (2, [[0, 1, 4, 5], [2, 3, 6, 7]])])  # fmt: skip
def test_rows_that_belong_together_stay_in_one_microbatch(together, parts):
    """The gradient of a part is its product, so that the sum tells which rows were together."""
    rows = jnp.arange(1.0, 9.0)
    one = jax.value_and_grad(lambda p, part: (p * jnp.prod(part), {}), has_aux=True)
    found, _ = train_state.accumulate(one, jnp.float32(1), rows, 2, together)
    assert float(found) == sum(float(np.prod([rows[i] for i in part])) for part in parts)
    with pytest.raises(ValueError, match="3 of 2 rows together don't divide 8 rows"):
        train_state.accumulate(one, jnp.float32(1), rows, 3, 2)


def test_controls_reach_the_loss_without_compiling_again(small):
    def loss(out, batch, *, scale):
        value = scale * jnp.sum(out.logp_BT * batch.weight_BT)
        return value, {"loss": value}

    optimizer = optimizers.make_optimizer()
    update = train_state.make_update(small.model, optimizer, loss)
    fresh = jax.tree.map(jnp.copy, small.params)
    state, values, batch = train_state.init_state(fresh, optimizer), [], random_batch(0)
    for scale in (1.0, 3.0):
        state, metrics = update(state, batch, jnp.float32(0), scale=jnp.float32(scale))
        values.append(float(metrics["loss"]))
    assert values[1] == pytest.approx(3 * values[0]) and values[0] != 0
    assert update.func._cache_size() == 1


@pytest.mark.parametrize(
    ("schedule", "expected"),
    # peak 8, 3 warm-up steps of 11 in all, down to a quarter: 8 steps of decay
    [
        ("constant", {0: 2.0, 1: 4.0, 2: 6.0, 3: 8.0, 7: 8.0, 11: 8.0, 99: 8.0}),
        ("linear", {0: 2.0, 2: 6.0, 3: 8.0, 4: 7.25, 7: 5.0, 11: 2.0, 99: 2.0}),
        # 2 + 6 * (1 + cos(pi / 4)) / 2 after two of eight steps
        ("cosine", {0: 2.0, 2: 6.0, 3: 8.0, 5: 7.1213203, 7: 5.0, 11: 2.0, 99: 2.0}),
    ],
)
def test_learning_rates_by_hand(schedule, expected):
    for step, rate in expected.items():
        found = optimizers.learning_rate(
            step, peak=8.0, total=11, warmup=3, schedule=schedule, end_ratio=0.25
        )
        assert found == pytest.approx(rate)


def test_an_unknown_schedule_raises_at_the_first_step():
    with pytest.raises(ValueError, match="lr_schedule 'cosin': expected constant, linear or"):
        optimizers.learning_rate(0, peak=1.0, total=9, warmup=3, schedule="cosin")


def test_the_head_starts_at_the_first_place_that_bears_loss(small):
    batch = random_batch(5)
    whole = train_state.logprobs(small.model, small.params, batch)
    late = train_state.logprobs(small.model, small.params, batch, start=4)
    assert not np.asarray(late)[:, :4].any()
    np.testing.assert_allclose(late[:, 4:], whole[:, 4:], atol=1e-6)
    assert not np.asarray(whole)[:, 0].any()


def lowered(small):
    where = jax.tree.leaves(small.params)[0].sharding
    half = {"w": np.array([[1.0, -2.0], [0.5, 4.0]]), "b": np.array([1.0])}
    return jax.device_put(jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), half), where)


def test_bfloat16_parameters_move_by_their_float32_master(small):
    """Steps of 0.001 are lost in a bfloat16 weight of 1, whose next value below is 0.996."""
    optimizer = optimizers.make_optimizer(clip_norm=1e9)
    params = lowered(small)
    state = train_state.init_state(params, optimizer)
    step = jax.jit(functools.partial(train_state.apply_gradients, optimizer=optimizer))
    grads = jax.tree.map(jnp.ones_like, params)  # equal gradients: Adam moves by lr each time
    for _ in range(10):
        state, _ = step(state, grads, lr=np.float32(1e-3))
    assert {x.dtype for x in jax.tree.leaves((state.master, state.opt_state[1][1:]))} == {
        jnp.dtype("float32")
    }
    for name, start in lowered(small).items():
        expected = np.asarray(start, np.float64) - 0.01
        np.testing.assert_allclose(state.master[name], expected, rtol=1e-5)
        assert state.params[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(state.params[name], state.master[name].astype(jnp.bfloat16))
    assert float(state.params["b"][0]) < 1.0


def test_a_gradient_that_is_not_finite_leaves_master_and_copy(small):
    optimizer = optimizers.make_optimizer()
    params = lowered(small)
    state = train_state.init_state(params, optimizer)
    grads = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    after, _ = train_state.apply_gradients(state, grads, optimizer, np.float32(0.1))
    assert int(after.skipped) == 1
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        if old.dtype != jnp.int32:
            np.testing.assert_array_equal(old, new)


def test_float32_parameters_have_no_master(small):
    state = train_state.init_state(small.params, optimizers.make_optimizer())
    assert state.master is None


def test_bfloat16_moments_take_half_the_memory_and_nearly_the_same_steps(small):
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), small.exact)
    moved, size = {}, {}
    for moments in ("float32", "bfloat16"):
        optimizer = optimizers.make_optimizer(moments=moments)
        state = train_state.init_state(jax.tree.map(jnp.copy, small.params), optimizer)
        step = jax.jit(functools.partial(train_state.apply_gradients, optimizer=optimizer))
        for _ in range(3):
            state, _ = step(state, grads, lr=np.float32(0.1))
        kept = jax.tree.leaves(state.opt_state)
        size[moments] = sum(x.nbytes for x in kept if x.dtype != jnp.int32)
        moved[moments] = jax.tree.map(lambda a, b: np.asarray(a - b), state.params, small.params)
    assert 2 * size["bfloat16"] == size["float32"]
    each = zip(*(jax.tree.leaves(moved[m]) for m in ("float32", "bfloat16")), strict=True)
    assert max(np.abs(a - b).max() for a, b in each) < 0.3 * 0.02  # of three steps of 0.1
    with pytest.raises(ValueError, match=r"optimizer.moments='float16'"):
        optimizers.make_optimizer(moments="float16")


def test_microbatches_of_bfloat16_gradients_add_up_in_float32():
    """256 + 1 is 256 in bfloat16."""
    value_and_grad = lambda p, part: ((0.0, {}), {"w": part[0]})  # noqa: E731
    parts = jnp.asarray([256.0] + [1.0] * 15, jnp.bfloat16)
    grads, _ = train_state.accumulate(value_and_grad, {}, parts, 16)
    assert float(grads["w"]) == 271.0


def test_muon_takes_only_matrices_of_layers():
    shapes = {
        "embed": (7, 4), "layers/q": (2, 4, 3, 5), "layers/q_bias": (2, 3, 5),
        "layers/q_norm": (2, 3, 5), "layers/o": (2, 3, 5, 4), "layers/o_lora_a": (2, 3, 5, 2),
        "layers/o_lora_b": (2, 2, 4), "layers/o_lora_norm": (2, 4),
        "layers/expert_up": (2, 6, 4, 8), "dense_layers/up": (1, 4, 8),
    }  # fmt: skip
    params: dict = {}
    for path, shape in shapes.items():
        *stack, name = path.split("/")
        (params.setdefault(stack[0], {}) if stack else params)[name] = jnp.zeros(shape)
    axes = optimizers._matrix_axes(params)
    found = {
        path: axes[path.split("/")[0]][path.split("/")[1]] if "/" in path else axes[path]
        for path in shapes
    }
    expected = {
        "layers/q": ((1,), (2, 3)), "layers/o": ((1, 2), (3,)), "layers/o_lora_a": ((1, 2), (3,)),
        "layers/o_lora_b": ((1,), (2,)), "layers/expert_up": ((2,), (3,)),
        "dense_layers/up": ((1,), (2,)),
    }  # fmt: skip
    assert {k: tuple(v) if v else None for k, v in found.items()} == {
        path: expected.get(path) for path in shapes
    }

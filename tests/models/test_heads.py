"""Heads: their maths in float64, the places they are read at by brute force, one row at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import train_state
from posttrain_jax.api import Batch
from posttrain_jax.models import heads
from posttrain_jax.models.heads import HeadConfig

HEADS = {
    "score": heads.SCORE,
    "process": heads.PROCESS,
    "many": HeadConfig(outputs=3, bias=True),
    "bare": HeadConfig(layers=2, outputs=3, bias=False),
}


def random_head(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(functools.partial(heads.init, head=config, width=16), jax.random.key(0))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def outputs_float64(head, hidden_D):
    """One hidden state, one number at a time."""
    w = {name: np.float64(x) for name, x in head.items()}
    x = hidden_D
    if "hidden" in w:
        bias = w.get("hidden_bias", np.zeros(16))
        x = [max(0.0, sum(hidden_D[i] * w["hidden"][i, j] for i in range(16)) + bias[j])
             for j in range(16)]  # fmt: skip
    bias = w.get("bias", np.zeros(w["weight"].shape[1]))
    return [sum(x[i] * w["weight"][i, o] for i in range(16)) + bias[o] for o in range(len(bias))]


def batch_of(rows, length=12):
    """Rows of (gap before, sequences) as a batch, what stands outside of them being anything."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(1, 32, (len(rows), length)).astype(np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, (start, sequences) in enumerate(rows):
        for segment, sequence in enumerate(sequences, start=1):
            end = start + len(sequence)
            tokens[row, start:end], segments[row, start:end] = sequence, segment
            positions[row, start:end] = range(len(sequence))
            start = end
    return Batch(tokens, positions, segments, np.float32(segments > 0))


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(1)
    return [rng.integers(2, 32, size).tolist() for size in (7, 1, 4, 5, 3, 2)]


@pytest.mark.parametrize("name", HEADS)
def test_outputs(name):
    head = random_head(HEADS[name])
    hidden = np.random.default_rng(2).standard_normal((2, 3, 16))
    found = heads.apply(head, jnp.asarray(hidden, jnp.float32))
    assert found.dtype == jnp.float32 and found.shape == (2, 3, HEADS[name].outputs)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(found[index], outputs_float64(head, hidden[index]), atol=1e-4)


def test_low_precision_states_are_widened_first():
    """Products of bfloat16 numbers would be off by 1 %."""
    head = random_head(heads.PROCESS)
    hidden = jnp.asarray(np.random.default_rng(3).standard_normal(16), jnp.bfloat16)
    expected = outputs_float64(head, np.float64(hidden))
    np.testing.assert_allclose(heads.apply(head, hidden), expected, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_new_heads(name):
    """Every axis is named, deviations are those of the sources, biases start at 0."""
    config = HEADS[name]
    head = heads.init(jax.random.key(0), config, 1023)
    axes = heads.axes(config)
    assert head.keys() == axes.keys()
    assert all(x.ndim == len(axes[k]) and x.dtype == jnp.float32 for k, x in head.items())
    assert ("hidden" in head, "bias" in head) == (config.layers == 2, bool(config.bias))
    for key, value in head.items():
        if "bias" in key:
            assert not np.any(value)
        else:  # 1 / sqrt(D + 1)
            assert float(np.std(value)) == pytest.approx(1 / 32, rel=0.1), key


def test_initial_deviations():
    make = functools.partial(heads.init, jax.random.key(1), width=255)
    head = make(HeadConfig(layers=2, outputs=2, init_std=0.02))
    assert float(np.std(head["hidden"])) == pytest.approx(0.02, rel=0.05)
    assert float(np.std(head["weight"])) == pytest.approx(0.02, rel=0.2)
    assert not np.any(make(heads.VALUE)["weight"])
    silent = make(HeadConfig(layers=2, init_std=0.0))
    states = np.random.default_rng(0).standard_normal((5, 255)).astype(np.float32)
    grads = jax.grad(lambda h: heads.apply(h, states).sum())(silent)
    assert not np.any(heads.apply(silent, states)) and np.any(grads["weight"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 3}, r"head\.layers=3: expected 1 or 2"),
        ({"outputs": 0}, r"head\.outputs=0: expected at least 1"),
        ({"init_std": -1.0}, r"head\.init_std=-1\.0: expected at least 0"),
    ],
)
def test_heads_that_there_are_not(wrong, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**wrong)


def test_places_by_brute_force():
    rng = np.random.default_rng(4)
    marks = rng.random((50, 9)) < rng.random((50, 1))
    place, present = heads.places(jnp.asarray(marks), 4)
    for row in range(50):
        where = [t for t in range(9) if marks[row, t]][:4]
        assert present[row].tolist() == [i < len(where) for i in range(4)]
        assert place[row].tolist() == where + [0] * (4 - len(where))


def test_last_tokens_and_step_ends(sequences):
    a, b, c, d, e, f = sequences
    batch = batch_of([(0, [a]), (5, [a]), (0, [b, c, d]), (1, [e, f]), (0, []), (0, [a, d])])
    marks = np.asarray(heads.last_tokens(jnp.asarray(batch.segments_BT)))
    ends = [np.flatnonzero(row).tolist() for row in marks]
    assert ends == [[6], [11], [0, 4, 9], [3, 5], [], [6, 11]]
    tokens = np.array([[5, 1, 1, 7, 1, 1], [1, 5, 1, 3, 3, 3]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0], [0, 1, 1, 0, 0, 0]], np.int32)
    steps = np.asarray(heads.step_ends(tokens, segments, 1))
    assert [np.flatnonzero(row).tolist() for row in steps] == [[1, 2, 4], [2]]


@pytest.fixture(scope="module")
def tools(small, hidden_float64):
    """(a process model's parameters, its outputs at one token of a sequence in float64)."""
    head = random_head(heads.PROCESS)
    params = {"backbone": heads.without_lm_head(small.params), "head": head}

    def exact(sequence, place):
        hidden = hidden_float64(small.exact, small.model.config, sequence)
        return outputs_float64(head, hidden[place])

    return params, exact


@pytest.fixture(scope="module")
def read(small):
    return jax.jit(functools.partial(heads.read, small.model))


def test_scores_padded_on_either_side_and_packed_are_those_one_by_one(tools, read, sequences):
    params, exact = tools
    a, b, c, d, e, f = sequences
    rows = [(0, [a]), (5, [a]), (0, [b, c, d]), (0, [d, e, f, b]), (0, []), (2, [f])]
    batch = batch_of(rows)
    place, present = heads.places(heads.last_tokens(jnp.asarray(batch.segments_BT)), 4)
    found = read(params, batch, place)
    assert np.all(np.isfinite(found))  # an empty row too
    for row, (_, members) in enumerate(rows):
        assert int(present[row].sum()) == len(members)
        for number, member in enumerate(members):
            np.testing.assert_allclose(found[row, number], exact(member, -1), atol=1e-4)


def test_process_scores_at_step_ends(tools, read, sequences):
    """Packed too: a sequence's steps do not see the sequence before it."""
    params, exact = tools
    first = [*sequences[0][:3], 1, *sequences[3][:2], 1]
    second = [*sequences[2], 1]
    batch = batch_of([(0, [first, second]), (3, [first])])
    marks = heads.step_ends(jnp.asarray(batch.tokens_BT), jnp.asarray(batch.segments_BT), 1)
    place, present = heads.places(marks, 3)
    assert present.tolist() == [[True, True, True], [True, True, False]]
    found = read(params, batch, place)
    expected = [exact(first, 3), exact(first, 6), exact(second, 4)]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    np.testing.assert_allclose(found[1, :2], expected[:2], atol=1e-4)
    wrong, right = expected[0]
    chance = heads.right_chance(found)[0, 0]
    assert float(chance) == pytest.approx(1 / (1 + np.exp(wrong - right)), abs=1e-4)


def test_values_are_aligned_with_the_tokens_they_are_subtracted_at(small, sequences, tools):
    head, params = random_head(heads.SCORE), tools[0]
    rows = [(0, [sequences[0]]), (4, [sequences[0]]), (0, [sequences[2], sequences[3]])]
    batch = batch_of(rows)
    values = jax.jit(functools.partial(heads.values, small.model))
    found = values({**params, "head": head}, batch)
    everywhere = np.stack([heads.apply(head, small.model.apply(
        small.params, s[None], positions_BT=np.arange(len(s))[None],
        segments_BT=np.ones((1, len(s)), np.int32))[0])[0, :, 0][-1]
        for s in (np.array(sequences[0][:n], np.int32) for n in range(1, 7))])  # fmt: skip
    # The value at token t is that of the prefix that ends before it.
    np.testing.assert_allclose(found[0, 1:7], everywhere, atol=1e-4)
    np.testing.assert_allclose(found[1, 5:11], everywhere, atol=1e-4)
    alone = values({**params, "head": head}, batch_of([(0, [s]) for s in rows[2][1]] * 2))
    np.testing.assert_allclose(found[2, :4], alone[0, :4], atol=1e-4)
    np.testing.assert_allclose(found[2, 4:9], alone[1, :5], atol=1e-4)
    zero = [[0, *range(7, 12)], [*range(5), 11], [0, 4, 9, 10, 11]]
    for row, where in enumerate(zero):
        assert np.flatnonzero(np.asarray(found[row]) == 0).tolist() == where


@pytest.mark.parametrize("microbatches", [1, 3])
def test_gradients_of_microbatches_add_up(small, tools, sequences, microbatches):
    params = tools[0]
    a, b, c, d, e, f = sequences
    batch = batch_of([(0, [a, f]), (0, [b, c]), (2, [d]), (0, [e, d]), (1, [c]), (0, [f, b])])
    target = np.random.default_rng(7).standard_normal((6, 2, 2)).astype(np.float32)

    def loss(params, part):
        batch, target = part
        place, present = heads.places(heads.last_tokens(batch.segments_BT), 2)
        off = (heads.read(small.model, params, batch, place) - target) * present[..., None]
        return jnp.sum(off**2), {}

    grad = jax.value_and_grad(loss, has_aux=True)
    run = jax.jit(lambda p: train_state.accumulate(grad, p, (batch, target), microbatches)[0])
    whole = functools.reduce(
        functools.partial(jax.tree.map, np.add),
        [run_row(grad, params, batch, target, row) for row in range(6)],
    )
    for x, y in zip(jax.tree.leaves(run(params)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3 * np.abs(y).max())


@functools.cache
def _jitted(grad):
    return jax.jit(grad)


def run_row(grad, params, batch, target, row):
    """The gradient of one row alone."""
    part = jax.tree.map(lambda x: x[row : row + 1], (batch, target))
    return jax.tree.map(np.asarray, _jitted(grad)(params, part)[1])

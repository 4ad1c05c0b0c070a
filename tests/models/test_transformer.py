"""The decoder against a numpy float64 one, and against itself: packed, padded, cached, remade."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.models import ModelConfig, make_model, parameter_count
from posttrain_jax.models.rope import inverse_frequencies, rope

LENGTHS = (7, 5, 3)


@functools.partial(jax.jit, static_argnums=0)
def all_logp(model, params, tokens, positions, segments):
    hidden, _ = model.apply(params, tokens, positions_BT=positions, segments_BT=segments)
    return jax.nn.log_softmax(model.logits(params, hidden))


@functools.partial(jax.jit, static_argnums=0)
def cached(model, params, cache, tokens, positions, segments):
    hidden, cache = model.apply(
        params, tokens, positions_BT=positions, segments_BT=segments, cache=cache
    )
    return jax.nn.log_softmax(model.logits(params, hidden)), cache


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(1)
    return [rng.integers(1, 32, n) for n in LENGTHS]


def rows(sequences, width, left):
    """Each sequence in a row of its own: (tokens, positions, segments)."""
    tokens, positions, segments = (np.zeros((len(sequences), width), np.int32) for _ in range(3))
    for i, sequence in enumerate(sequences):
        place = np.s_[width - len(sequence) :] if left else np.s_[: len(sequence)]
        tokens[i, place], positions[i, place] = sequence, np.arange(len(sequence))
        segments[i, place] = 1
    return tokens, positions, segments


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"kv_heads": 4, "pad_id": None}])
@pytest.mark.parametrize("left", [False, True])
def test_log_probs_equal_those_of_numpy_float64(make_small, logp_float64, sequences, changes, left):
    small = make_small(2, **changes)
    batch = rows(sequences, 8, left)
    found = all_logp(small.model, small.params, *batch)
    for row, segment, sequence in zip(found, batch[2], sequences, strict=True):
        expected = logp_float64(small.exact, small.model.config, sequence)
        seen = np.isfinite(expected)
        np.testing.assert_allclose(np.asarray(row)[segment > 0][seen], expected[seen], atol=1e-4)
        assert np.all(np.asarray(row)[segment > 0][~seen] < -1e29)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_log_probs_and_entropy(small, logp_float64, sequences, temperature):
    tokens = sequences[0]
    hidden, _ = small.model.apply(
        small.params, tokens[None], positions_BT=np.arange(7)[None],
        segments_BT=np.ones((1, 7), np.int32),
    )  # fmt: skip
    logp, entropy = small.model.logprobs(
        small.params, hidden[:, :-1], tokens[None, 1:], temperature
    )
    expected = logp_float64(small.exact, small.model.config, tokens, temperature)[:-1]
    np.testing.assert_allclose(logp[0], expected[np.arange(6), tokens[1:]], atol=1e-4)
    likely = expected[:, 1:]  # all but the padding token
    np.testing.assert_allclose(entropy[0], -(np.exp(likely) * likely).sum(axis=1), atol=1e-4)


def test_packed_rows_give_the_log_probs_of_each_sequence_alone(small, logp_float64, sequences):
    tokens = np.concatenate([*sequences, [0]])[None]
    positions = np.concatenate([*map(np.arange, LENGTHS), [0]])[None]
    segments = np.repeat([1, 2, 3, 0], [*LENGTHS, 1])[None]
    packed = np.asarray(all_logp(small.model, small.params, tokens, positions, segments))[0]
    for segment, sequence in enumerate(sequences, start=1):
        expected = logp_float64(small.exact, small.model.config, sequence)[:, 1:]
        np.testing.assert_allclose(packed[segments[0] == segment][:, 1:], expected, atol=1e-4)


@pytest.mark.parametrize(("width", "cut"), [(6, 3), (6, 6), (1, 1)])
def test_cached_decoding_equals_the_full_forward(small, sequences, width, cut):
    """Prompts of several lengths, left-padded to `width` and prefilled, then four more tokens."""
    rng = np.random.default_rng(3)
    tokens, positions, segments = rows([s[:cut] for s in sequences], width, left=True)
    more = rng.integers(1, 32, (3, 4)).astype(np.int32)
    lengths = segments.sum(axis=1, keepdims=True)
    tokens = np.concatenate([tokens, more], axis=1)
    positions = np.concatenate([positions, lengths + np.arange(4)], axis=1).astype(np.int32)
    segments = np.concatenate([segments, np.ones_like(more)], axis=1)
    full = np.asarray(all_logp(small.model, small.params, tokens, positions, segments))

    step = functools.partial(cached, small.model, small.params)
    at = lambda place: (x[:, place] for x in (tokens, positions, segments))  # noqa: E731
    logp, cache = step(small.model.init_cache(3, 12), *at(np.s_[:width]))
    visible = segments[:, :width] > 0
    np.testing.assert_allclose(np.asarray(logp)[visible], full[:, :width][visible], atol=1e-5)
    for place in range(width, width + 4):
        logp, cache = step(cache, *at(np.s_[place : place + 1]))
        np.testing.assert_allclose(np.asarray(logp)[:, 0], full[:, place], atol=1e-5)


def test_rope_depends_on_the_distance_only():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def score(at_q, at_k):
        inverse = inverse_frequencies(8, 10000.0)
        turn = lambda x, p: rope(jnp.asarray(x), jnp.array([[p]]), inverse)  # noqa: E731
        return float(jnp.sum(turn(q, at_q) * turn(k, at_k)))

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-6)


def test_remat_policies_give_the_same_gradients(make_small, sequences):
    tokens, positions, segments = rows(sequences, 8, left=False)

    def gradient(remat):
        small = make_small(remat=remat)

        def mean(params):
            logp = all_logp(small.model, params, tokens, positions, segments)[..., 1:]
            return jnp.mean(logp * segments[..., None])

        return jax.tree.leaves(jax.jit(jax.grad(mean))(small.params))

    plain = gradient("none")
    assert max(float(jnp.max(jnp.abs(g))) for g in plain) > 1e-3
    for remat in ("dots", "full"):
        for got, expected in zip(gradient(remat), plain, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_parameter_counts_by_hand():
    sizes = ModelConfig(vocab_size=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32)
    # embed 32*16, final norm 16; a layer: norms 2*16, q 16*32, k and v 2*16*16, o 32*16, 3*16*32
    tied = 512 + 16 + 2 * (32 + 512 + 512 + 512 + 1536)
    assert parameter_count(sizes) == tied == 6736
    untied = ModelConfig(**{**sizes.__dict__, "tied": False})
    assert parameter_count(untied) == tied + 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"kv_heads": 3}, "heads=4.*kv_heads=3"), ({"remat": "some"}, "remat='some'.*dots.*full")],
)
def test_impossible_configs_raise(small, changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(ModelConfig(**{**small.model.config.__dict__, **changes}))


def test_axes_name_every_dimension_of_every_parameter(make_small):
    small = make_small(tied=False)
    axes = small.model.axes()
    sizes = {
        "vocab": 32, "embed": 16, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 32,
        "layers": 2, "norm": 16,
    }  # fmt: skip
    named = jax.tree.map(
        lambda names: tuple(sizes[n] for n in names), axes, is_leaf=lambda x: isinstance(x, tuple)
    )
    assert named == jax.tree.map(lambda x: x.shape, small.params)

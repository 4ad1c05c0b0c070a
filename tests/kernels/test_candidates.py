"""Log-probs of candidates and the likeliest tokens, against float64 and automatic derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.kernels import candidates, chunks, logprobs_at, top_logprobs
from posttrain_jax.kernels.candidates import logprobs_at_ref

BATCH, LENGTH, WIDTH, VOCAB = 3, 10, 8, 37
COLUMNS = 3  # positions of each row in a chunk: 10 make 4 chunks and two are padding
NEEDED = np.array([[0, 1, 0, 1, 1, 1, 1, 0, 0, 0], [0] * 10, [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]], bool)


@pytest.fixture(autouse=True)
def chunked(monkeypatch):
    held = (COLUMNS * BATCH * VOCAB, 1)
    monkeypatch.setattr(chunks, "CHUNKS", {jax.default_backend(): held})


@pytest.fixture
def make_inputs():
    """`(J) -> hidden, head, candidates [B, T, J]`; every place names its first candidate twice."""

    def make(count):
        rng = np.random.default_rng(0)
        hidden = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
        head = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
        places = rng.permuted(np.tile(np.arange(6, VOCAB), (BATCH * LENGTH, 1)), axis=1)
        tokens = places[:, :count].reshape(BATCH, LENGTH, count)
        tokens[..., -1] = tokens[..., 0]
        return hidden, head, tokens

    return make


def log_softmax64(hidden, head, temperature, never):
    """[B, T, V] in float64; -inf for the token that can't occur."""
    z = hidden.astype(np.float64) @ head.astype(np.float64).T / temperature
    if never is not None:
        z[..., never] = -np.inf
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def both_ways(fn, inputs, g, **options):
    """Log-probs, and the gradient of hidden and of head."""

    def run(hidden, head, tokens, g):
        out, vjp = jax.vjp(lambda h, w: fn(h, w, tokens, **options), hidden, head)
        return out, vjp(g)

    return jax.jit(run)(*inputs, jnp.float32(g))


@pytest.mark.parametrize(
    ("impl", "count", "temperature", "never", "needed"),
    [("xla", 1, 1.0, None, None), ("auto", 5, 0.7, 0, NEEDED), ("auto", 31, 1.3, 5, None),
     ("reference", 5, 1.3, 0, NEEDED)],
)  # fmt: skip
def test_values_are_those_of_float64(make_inputs, impl, count, temperature, never, needed):
    hidden, head, tokens = make_inputs(count)
    run = jax.jit(
        lambda h, w, t: logprobs_at(
            h, w, t, temperature, never=never, needed_BT=needed, impl=impl
        )
    )  # fmt: skip
    want = np.take_along_axis(log_softmax64(hidden, head, temperature, never), tokens, axis=-1)
    if needed is not None:
        want = np.where(needed[..., None], want, 0.0)
    np.testing.assert_allclose(run(hidden, head, tokens), want, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "temperature", "never", "needed"),
    [(1, 1.0, None, None), (5, 0.7, 0, NEEDED), (31, 1.3, 5, None)],
)
def test_gradients_are_those_of_float64(make_inputs, count, temperature, never, needed):
    """dL/dz_v = sum_j g_j (1[v = token_j] - p_v), by a one-hot of all candidates."""
    hidden, head, tokens = make_inputs(count)
    g = np.random.default_rng(1).normal(size=tokens.shape)
    asked = np.ones(tokens.shape[:2]) if needed is None else needed
    _, got = both_ways(
        logprobs_at, (hidden, head, tokens), g, temperature=temperature, never=never,
        needed_BT=needed,
    )  # fmt: skip
    p = np.exp(log_softmax64(hidden, head, temperature, never))
    live = g * asked[..., None]
    dz = np.einsum("btj,btjv->btv", live, np.eye(VOCAB)[tokens])
    dz = (dz - p * live.sum(axis=-1, keepdims=True)) / temperature
    want = dz @ head, np.einsum("btv,btd->vd", dz, hidden)
    for x, y in zip(got, want, strict=True):
        assert np.abs(y).max() > 0.5
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_a_candidate_that_never_occurs_has_no_gradient(make_inputs):
    """As the reference has it: its logit is a constant, the others' share is not."""
    hidden, head, tokens = make_inputs(4)
    tokens[..., 1] = 5
    g = np.random.default_rng(2).normal(size=tokens.shape)
    inputs = (hidden, head, tokens)
    (values, got), (_, want) = (
        both_ways(fn, inputs, g, never=5) for fn in (logprobs_at, logprobs_at_ref)
    )
    assert (np.asarray(values)[..., 1] < -1e29).all()
    np.testing.assert_array_equal(np.asarray(got[1])[5], 0.0)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_bfloat16_sums_in_float32(make_inputs):
    hidden, head, tokens = make_inputs(4)
    low = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    exact = [np.asarray(x, np.float32) for x in low]
    g = np.random.default_rng(3).normal(size=tokens.shape)
    values, grads = both_ways(logprobs_at, (*low, tokens), g)
    want = np.take_along_axis(log_softmax64(*exact, 1.0, None), tokens, axis=-1)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, want, atol=5e-6)
    _, full = both_ways(logprobs_at_ref, (*exact, tokens), g)
    for x, y in zip(grads, full, strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(x.astype(jnp.float32), y, atol=0.01 * np.abs(y).max())


@pytest.mark.parametrize("impl", ["xla", "reference"])
@pytest.mark.parametrize(("k", "never", "needed"), [(1, None, None), (7, 5, NEEDED)])
def test_the_likeliest_tokens_are_those_of_a_sort(make_inputs, impl, k, never, needed):
    hidden, head, _ = make_inputs(1)
    run = jax.jit(lambda h, w: top_logprobs(h, w, k, 0.7, never=never, needed_BT=needed, impl=impl))
    tokens, logp = run(hidden, head)
    assert tokens.shape == logp.shape == (BATCH, LENGTH, k)
    exact = log_softmax64(hidden, head, 0.7, never)
    order = np.argsort(-exact, axis=-1)[..., :k]
    asked = np.ones((BATCH, LENGTH, 1), bool) if needed is None else needed[..., None]
    np.testing.assert_array_equal(tokens, np.where(asked, order, 0))
    want = np.where(asked, np.take_along_axis(exact, order, axis=-1), 0.0)
    np.testing.assert_allclose(logp, want, atol=1e-5)


def test_all_tokens_are_the_whole_distribution(make_inputs):
    hidden, head, _ = make_inputs(1)
    tokens, logp = jax.jit(lambda h, w: top_logprobs(h, w, VOCAB))(hidden, head)
    np.testing.assert_array_equal(np.sort(tokens, axis=-1), np.broadcast_to(
        np.arange(VOCAB), (BATCH, LENGTH, VOCAB)
    ))  # fmt: skip
    np.testing.assert_allclose(np.exp(logp).sum(axis=-1), 1.0, atol=1e-5)


def test_the_likeliest_tokens_have_no_gradient(make_inputs):
    hidden, head, _ = make_inputs(1)
    total = lambda h, w: top_logprobs(h, w, 3)[1].sum()  # noqa: E731
    for grad in jax.grad(total, (0, 1))(hidden, head):
        assert not np.asarray(grad).any()


def test_the_logits_of_all_positions_are_never_held(make_inputs, largest_array):
    inputs, everything = make_inputs(3), BATCH * LENGTH * VOCAB
    g = np.ones((BATCH, LENGTH, 3))
    most = max(BATCH * 12 * WIDTH, BATCH * COLUMNS * VOCAB)
    assert largest_array(lambda *x: both_ways(logprobs_at_ref, x, g), *inputs) >= everything
    assert largest_array(lambda *x: both_ways(logprobs_at, x, g), *inputs) <= most < everything
    assert largest_array(lambda h, w: top_logprobs(h, w, 3), *inputs[:2]) <= most


def test_chunks_that_nobody_needs_are_not_computed(make_inputs, monkeypatch):
    """The head's product is counted while it runs: two chunks of four, each way."""
    counts = {"products": 0}

    def counted(*args):
        jax.debug.callback(lambda: counts.update(products=counts["products"] + 1))
        return real(*args)

    real = candidates.tempered_logits
    monkeypatch.setattr(candidates, "tempered_logits", counted)
    inputs, g = make_inputs(2), np.ones((BATCH, LENGTH, 2))
    for needed, live in ((NEEDED, 2), (np.zeros_like(NEEDED), 0), (None, 4)):
        counts["products"] = 0
        jax.block_until_ready(both_ways(logprobs_at, inputs, g, needed_BT=needed))
        jax.block_until_ready(top_logprobs(*inputs[:2], 2, needed_BT=needed))
        jax.effects_barrier()
        assert counts["products"] == 3 * live


def test_wrong_arguments_are_named(make_inputs):
    hidden, head, tokens = make_inputs(1)
    with pytest.raises(ValueError, match="logprobs_at impl 'fused': expected auto, xla or refer"):
        logprobs_at(hidden, head, tokens, impl="fused")
    for k in (0, VOCAB + 1):
        with pytest.raises(ValueError, match=f"k={k}: expected 1 to {VOCAB}"):
            top_logprobs(hidden, head, k)

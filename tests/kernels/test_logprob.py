import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from posttrain_jax.kernels import chunks, logprob, token_logprobs
from posttrain_jax.kernels.logprob import token_logprobs_ref

BATCH, LENGTH, WIDTH, VOCAB = 3, 10, 8, 37
COLUMNS = 3  # positions of each row in a chunk: 10 make 4 chunks and two are padding


@pytest.fixture
def chunked(monkeypatch):
    held = (COLUMNS * BATCH * VOCAB, 1)
    monkeypatch.setattr(chunks, "CHUNKS", {jax.default_backend(): held})
    assert chunks.count_chunks(BATCH, LENGTH, VOCAB) == 4


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    head = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    targets = rng.integers(6, VOCAB, (BATCH, LENGTH))  # none of the ids that are `never`
    return hidden, head, targets


def expected(hidden, head, targets, temperature, never):
    """Log-softmax in float64 over the tokens that may occur, one position at a time."""
    tokens = [v for v in range(len(head)) if v != never]
    logp, entropy = np.zeros(targets.shape), np.zeros(targets.shape)
    for b, t in np.ndindex(targets.shape):
        z = head[tokens].astype(np.float64) @ hidden[b, t].astype(np.float64) / temperature
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        logp[b, t] = np.log(p[tokens.index(targets[b, t])])
        entropy[b, t] = -(p * np.log(p)).sum()
    return logp, entropy


def both_ways(fn, inputs, g, e, **options):
    """(log-probs, entropy), (gradient of hidden, of head); compiled anew at each call."""

    def run(hidden, head, targets, g, e):
        out, vjp = jax.vjp(lambda h, w: fn(h, w, targets, **options), hidden, head)
        return out, vjp((g, e))

    return jax.jit(run)(*inputs, jnp.float32(g), jnp.float32(e))


def gradients(*args, **options):
    return both_ways(*args, **options)[1]


@pytest.mark.parametrize(
    ("impl", "temperature", "never"),
    [("xla", 1.0, None), ("auto", 0.7, None), ("auto", 1.3, 5), ("reference", 1.3, 0)],
)
def test_values_are_those_of_float64(chunked, inputs, impl, temperature, never):
    run = jax.jit(lambda *x: token_logprobs(*x, temperature, never=never, impl=impl))
    hidden, head, _ = inputs
    # Entropy is a difference of two numbers of the logits' size, each rounded once or twice.
    atol = 4 * np.spacing(np.abs(np.einsum("btd,vd->btv", hidden, head) / temperature).max())
    assert atol < 1e-5
    for g, w in zip(run(*inputs), expected(*inputs, temperature, never), strict=True):
        assert g.shape == (BATCH, LENGTH)
        np.testing.assert_allclose(g, w, atol=atol)


@pytest.mark.parametrize(
    ("of", "temperature", "never"), [("logp", 0.7, None), ("entropy", 1.0, 5), ("both", 1.3, 0)]
)
def test_gradients_are_those_of_autodiff(chunked, inputs, of, temperature, never):
    rng = np.random.default_rng(1)
    g = rng.normal(size=(BATCH, LENGTH)) * (of != "entropy")
    e = rng.normal(size=(BATCH, LENGTH)) * (of != "logp")
    options = {"temperature": temperature, "never": never}
    got = gradients(token_logprobs, inputs, g, e, **options)
    want = gradients(token_logprobs_ref, inputs, g, e, **options)
    for x, y in zip(got, want, strict=True):
        assert np.abs(y).max() > 0.5
        np.testing.assert_allclose(x, y, atol=2e-5)
    if never is not None:
        np.testing.assert_array_equal(np.asarray(got[1])[never], 0.0)


def test_gradient_is_the_slope_of_float64(chunked, inputs):
    hidden, head, targets = inputs
    rng, step = np.random.default_rng(2), 1e-5
    g, e = rng.normal(size=(2, BATCH, LENGTH))
    directions = rng.normal(size=hidden.shape), rng.normal(size=head.shape)

    def moved(by):
        h, w = (x + by * d for x, d in zip((hidden, head), directions, strict=True))
        logp, entropy = expected(h, w, targets, 0.8, 3)
        return (g * logp + e * entropy).sum()

    slope = (moved(step) - moved(-step)) / (2 * step)
    got = gradients(token_logprobs, inputs, g, e, temperature=0.8, never=3)
    total = sum((np.asarray(x) * d).sum() for x, d in zip(got, directions, strict=True))
    np.testing.assert_allclose(total, slope, rtol=1e-4)


def test_one_chunk_is_as_many(inputs, monkeypatch):
    g = e = np.ones((BATCH, LENGTH))
    results = []
    for columns in (1, LENGTH):
        held = (columns * BATCH * VOCAB, 1)
        monkeypatch.setattr(chunks, "CHUNKS", {jax.default_backend(): held})
        assert chunks.count_chunks(BATCH, LENGTH, VOCAB) == LENGTH // columns
        results.append(both_ways(token_logprobs, inputs, g, e))
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_bfloat16_sums_in_float32(chunked, inputs):
    hidden, head, targets = inputs
    low = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16), targets
    exact = (*(np.asarray(x, np.float32) for x in low[:2]), targets)
    ones = np.ones((BATCH, LENGTH))
    values, grads = both_ways(token_logprobs, low, ones, ones)
    for g, w in zip(values, expected(*exact, 1.0, None), strict=True):
        assert g.dtype == jnp.float32
        np.testing.assert_allclose(g, w, atol=5e-6)
    for g, w in zip(grads, gradients(token_logprobs_ref, exact, ones, ones), strict=True):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(g.astype(jnp.float32), w, atol=0.01 * np.abs(w).max())


def test_the_logits_of_all_positions_are_never_held(chunked, inputs, largest_array):
    everything = BATCH * LENGTH * VOCAB
    ones = np.ones((BATCH, LENGTH))

    def program(fn):
        return lambda *inputs: both_ways(fn, inputs, ones, ones)

    assert largest_array(program(token_logprobs_ref), *inputs) >= everything  # it would be seen
    # A padded copy of the hidden states (12 places) or one chunk, whichever is larger.
    most = max(BATCH * 12 * WIDTH, BATCH * COLUMNS * VOCAB)
    assert largest_array(program(token_logprobs), *inputs) <= most < everything


def test_chunks_are_counted_per_device(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNKS", {jax.default_backend(): (8 * 1000, 2)})
    assert chunks.count_chunks(4, 64, 1000) == 32  # 8 positions: two of each row
    assert chunks.count_chunks(4, 64, 9999) == 64  # no fewer than one column
    mesh = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        assert chunks.count_chunks(4, 64, 1000) == 4  # 8 devices: 64 positions, 16 of each row


def test_an_unknown_impl_is_named(inputs):
    with pytest.raises(ValueError, match="'fused': expected auto, xla or reference"):
        token_logprobs(*inputs, impl="fused")


NEEDED = np.array([[0, 1, 0, 1, 1, 1, 1, 0, 0, 0], [0] * 10, [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]], bool)


@pytest.mark.parametrize("impl", ["xla", "reference"])
def test_only_needed_positions_have_results_and_gradients(chunked, inputs, impl):
    rng = np.random.default_rng(4)
    g, e = rng.normal(size=(2, BATCH, LENGTH))
    some = lambda *x: token_logprobs(*x, 0.7, never=0, needed_BT=NEEDED, impl=impl)  # noqa: E731
    values, grads = both_ways(some, inputs, g, e)
    for got, want in zip(values, expected(*inputs, 0.7, 0), strict=True):
        np.testing.assert_allclose(got, np.where(NEEDED, want, 0.0), atol=1e-5)
    # Without the mask, cotangents of zero elsewhere say the same.
    whole = gradients(token_logprobs_ref, inputs, g * NEEDED, e * NEEDED, temperature=0.7, never=0)
    for got, want in zip(grads, whole, strict=True):
        assert np.abs(want).max() > 0.5
        np.testing.assert_allclose(got, want, atol=2e-5)
    assert not np.asarray(grads[0])[~NEEDED].any()


def test_chunks_that_nobody_needs_are_not_computed(chunked, inputs, monkeypatch):
    """The head's product is counted while it runs: two chunks of four, each way."""
    counts = {"products": 0}

    def counted(*args):
        jax.debug.callback(lambda: counts.update(products=counts["products"] + 1))
        return real(*args)

    real = logprob.tempered_logits
    monkeypatch.setattr(logprob, "tempered_logits", counted)
    ones = np.ones((BATCH, LENGTH))
    for needed, live in ((NEEDED, 2), (np.zeros_like(NEEDED), 0), (None, 4)):
        counts["products"] = 0
        some = lambda *x, needed=needed: token_logprobs(*x, needed_BT=needed)  # noqa: E731
        jax.block_until_ready(both_ways(some, inputs, ones, ones))
        jax.effects_barrier()
        assert counts["products"] == 2 * live

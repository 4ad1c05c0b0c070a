"""Distillation against TRL, float64 formulas and hand-worked numbers; what must not change it."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import train_state
from posttrain_jax.api import Batch, PolicyOut, Teacher
from posttrain_jax.losses import distill

GOLDEN = Path(__file__).parents[1] / "golden" / "distill" / "gkd.npz"


def batch_of(logp_BTJ, weight_BT, tokens_BTJ=None):
    """A batch with this teacher; the loss does not look at the rest."""
    shape = np.shape(logp_BTJ)
    tokens = np.broadcast_to(np.arange(shape[-1]), shape) if tokens_BTJ is None else tokens_BTJ
    nothing = np.zeros(shape[:2], np.int32)
    teacher = Teacher(tokens, jnp.float32(logp_BTJ), jnp.float32(weight_BT))
    return Batch(nothing, nothing, nothing, jnp.zeros(shape[:2]), teacher=teacher)


def of_logits(student_BTV, batch, temperature=1.0, **options):
    """(loss, metrics) of a student given by its logits."""
    logp = jax.nn.log_softmax(student_BTV / temperature)
    at = jnp.take_along_axis(logp, batch.teacher.tokens_BTJ, axis=-1)
    nothing = jnp.zeros(at.shape[:2])
    return distill.loss(PolicyOut(nothing, nothing, teacher_logp_BTJ=at), batch, **options)


def at_place(p, q, **options):
    """The loss at one place, of two lists of probabilities."""
    weight = np.ones((1, 1))
    out = PolicyOut(jnp.zeros((1, 1)), jnp.zeros((1, 1)), teacher_logp_BTJ=np.log([[q]]))
    return float(distill.loss(out, batch_of(np.log([[p]]), weight), **options)[0])


WORDS = {0.0: "forward", 1.0: "reverse"}


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_values_and_gradients_are_those_of_trl(tail):
    stored = np.load(GOLDEN)
    mask = stored["labels"] != -100
    for i, beta in enumerate(stored["betas"].tolist()):
        options = {"divergence": WORDS.get(beta, "jensen_shannon"), "beta": beta, "tail": tail}
        for j, temperature in enumerate(stored["temperatures"].tolist()):
            logp = jax.nn.log_softmax(stored["teacher"] / temperature)
            batch = batch_of(logp, mask / mask.sum())
            value, gradient = jax.value_and_grad(
                lambda x, b=batch, t=temperature, o=options: of_logits(x, b, t, **o)[0]
            )(jnp.asarray(stored["student"]))
            assert float(value) == pytest.approx(stored["values"][i, j], abs=1e-6)
            np.testing.assert_allclose(gradient, stored["gradients"][i, j], atol=1e-6)


def in_float64(student, teacher, tokens, weight, divergence, beta, tail):
    """The sum over places, of logits, with loops and probabilities."""
    total = 0.0
    for b, t in np.ndindex(weight.shape):
        sides = []
        for logits in (teacher, student):
            x = np.exp(logits[b, t].astype(np.float64))
            named = (x / x.sum())[tokens[b, t]]
            rest = [1 - named.sum()] if tail == "bucket" else []
            sides.append(np.array([*named, *rest]) / (1 if rest else named.sum()))
        p, q = sides
        kl = lambda x, y: sum(a * np.log(a / b) for a, b in zip(x, y, strict=True))  # noqa: E731
        if divergence == "jensen_shannon":
            m = beta * p + (1 - beta) * q
            total += weight[b, t] * (beta * kl(p, m) + (1 - beta) * kl(q, m))
        else:
            total += weight[b, t] * (kl(p, q) if divergence == "forward" else kl(q, p))
    return total


@pytest.mark.parametrize("tail", distill.TAILS)
@pytest.mark.parametrize("divergence", distill.DIVERGENCES)
def test_some_of_the_tokens_as_in_float64(divergence, tail):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 3, 9)).astype(np.float32)
    tokens = np.argsort(-teacher, axis=-1)[..., :4]
    weight = rng.random((2, 3)) * [[1, 0, 1], [1, 1, 0]]
    logp = np.take_along_axis(np.asarray(jax.nn.log_softmax(teacher)), tokens, axis=-1)
    batch = batch_of(logp, weight, tokens)
    options = {"divergence": divergence, "beta": 0.3, "tail": tail}
    exact = functools.partial(
        in_float64, teacher=teacher, tokens=tokens, weight=weight, **options
    )  # fmt: skip
    (value, metrics), gradient = jax.value_and_grad(
        lambda x: of_logits(x, batch, **options), has_aux=True
    )(student)
    assert float(value) == pytest.approx(exact(student), abs=1e-6)
    for direction in rng.normal(size=(3, *student.shape)):
        moved = [exact(student + s * 1e-5 * direction) for s in (1.0, -1.0)]
        slope = (moved[0] - moved[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, abs=2e-6)
    named = np.exp(np.float64(student)) / np.exp(np.float64(student)).sum(axis=-1, keepdims=True)
    tails = 1 - np.take_along_axis(named, tokens, axis=-1).sum(axis=-1)
    assert float(metrics["student_tail"]) == pytest.approx((weight * tails).sum(), abs=1e-6)
    first = np.take_along_axis(student, tokens, axis=-1).argmax(axis=-1) == 0
    assert float(metrics["teacher_agreement"]) == pytest.approx((weight * first).sum(), abs=1e-6)


def test_forward_and_reverse_by_hand():
    """p = (1/2, 1/2), q = (9/10, 1/10): 1/2 ln 25/9, and 9/10 ln 9/5 - 1/10 ln 5."""
    p, q = [0.5, 0.5], [0.9, 0.1]
    assert at_place(p, q, divergence="forward") == pytest.approx(0.5108256, abs=1e-6)
    assert at_place(p, q, divergence="reverse") == pytest.approx(0.3680642, abs=1e-6)
    assert at_place(q, p, divergence="reverse") == pytest.approx(0.5108256, abs=1e-6)
    half = at_place(p, q, divergence="jensen_shannon", beta=0.5)
    assert half == pytest.approx(at_place(q, p, divergence="jensen_shannon"), abs=1e-7)


def test_the_rest_of_the_mass_is_an_outcome_or_left_out():
    """Given one of the two tokens both sides agree; on how often it is one they don't."""
    p, q = [0.4, 0.4], [0.1, 0.1]
    assert at_place(p, q, tail="renormalise") == pytest.approx(0.0, abs=1e-7)
    assert at_place(p, q, tail="bucket") == pytest.approx(
        0.8 * np.log(4) + 0.2 * np.log(0.2 / 0.8), abs=1e-6
    )


@pytest.mark.parametrize("tail", distill.TAILS)
def test_the_mixture_tends_to_both_divergences(tail):
    p, q = [0.5, 0.2, 0.1], [0.2, 0.4, 0.3]
    for beta, word in ((0.01, "forward"), (0.99, "reverse")):
        mixed = at_place(p, q, divergence="jensen_shannon", beta=beta, tail=tail) / 0.01
        assert mixed == pytest.approx(at_place(p, q, divergence=word, tail=tail), rel=0.02)


@pytest.mark.parametrize("tail", distill.TAILS)
@pytest.mark.parametrize("divergence", distill.DIVERGENCES)
def test_a_teacher_teaches_itself_nothing(divergence, tail):
    rng = np.random.default_rng(1)
    logits = (3.0 * rng.normal(size=(2, 4, 17))).astype(np.float32)
    logits[0, 0, 3] = 60.0  # all the mass on one token: no tail
    for count in (5, 17):
        tokens = np.argsort(-logits, axis=-1)[..., :count]
        logp = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens, axis=-1)
        batch = batch_of(logp, np.ones((2, 4)), tokens)
        value, gradient = jax.value_and_grad(
            lambda x, b=batch: of_logits(x, b, divergence=divergence, tail=tail)[0]
        )(jnp.asarray(logits))
        assert abs(float(value)) < 1e-6
        assert np.abs(gradient).max() < 1e-6


@pytest.mark.parametrize("tail", distill.TAILS)
@pytest.mark.parametrize("divergence", distill.DIVERGENCES)
def test_places_without_a_token_count_for_nothing(divergence, tail):
    """-inf of the teacher where it gave fewer; -1e30 of a token that only one side can produce."""
    p, q = [0.5, 0.3], [0.2, 0.6]
    want = at_place(p, q, divergence=divergence, tail=tail)
    logp = np.log([[[*p, 1.0, 0.1]]])
    logp[..., 2] = -np.inf
    logq = np.log([[[*q, 0.15, 1.0]]])
    logq[..., 3] = -1e30
    batch = batch_of(logp, np.ones((1, 1)))

    def value(logq):
        nothing = jnp.zeros((1, 1))
        out = PolicyOut(nothing, nothing, teacher_logp_BTJ=logq)
        return distill.loss(out, batch, divergence=divergence, tail=tail)[0]

    found, gradient = jax.value_and_grad(value)(jnp.float32(logq))
    assert float(found) == pytest.approx(want, abs=1e-6)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[..., 2:].any() and np.asarray(gradient)[..., :2].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "backward"}, "divergence='backward': expected one of"),
        ({"tail": "drop"}, r"tail='drop': expected one of \('bucket', 'renormalise'\)"),
        ({"divergence": "jensen_shannon", "beta": 1.0}, "beta=1.0: jensen_shannon needs 0 < beta"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        at_place([0.5, 0.5], [0.9, 0.1], **options)


def test_a_batch_without_a_teacher_is_refused():
    nothing = jnp.zeros((1, 1))
    batch = Batch(nothing, nothing, nothing, nothing)
    with pytest.raises(ValueError, match=r"the distill loss needs \('teacher',\) in the batch"):
        distill.loss(PolicyOut(nothing, nothing), batch)


LENGTHS, COUNT = (5, 7, 4, 6), 3


def sequence(number):
    """Tokens and the teacher's candidates of one sequence; loss on all but the first two."""
    rng, length = np.random.default_rng(number), LENGTHS[number]
    candidates = np.argsort(rng.random((length, 31)), axis=-1)[:, :COUNT] + 1
    logp = np.log(rng.dirichlet(np.ones(COUNT + 1), length)[:, :COUNT])
    return rng.integers(1, 32, length), candidates, logp, np.arange(length) > 1


def rows_of(members, width):
    """A batch of these sequences, several a row, padded to `width`."""
    shape = len(members), width
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    candidates = np.zeros((*shape, COUNT), np.int32)
    logp, mask = np.zeros((*shape, COUNT), np.float32), np.zeros(shape, np.float32)
    for row, numbers in enumerate(members):
        start = 0
        for segment, number in enumerate(numbers, start=1):
            here = slice(start, start + LENGTHS[number])
            tokens[row, here], candidates[row, here], logp[row, here], mask[row, here] = sequence(
                number
            )
            positions[row, here] = np.arange(LENGTHS[number])
            segments[row, here] = segment
            start += LENGTHS[number]
    teacher = Teacher(candidates, logp, mask / 14)  # 14 places bear loss in all
    return Batch(tokens, positions, segments, np.zeros_like(mask), teacher=teacher)


@pytest.mark.usefixtures("quick_compile")
def test_padding_packing_and_microbatches_change_nothing(small):
    """And each place's log-probs are those of the float64 decoder at the teacher's temperature."""
    view = functools.partial(train_state.policy_out, teacher_temperature=1.7)
    descend = jax.jit(_descend, static_argnums=(0, 3, 4))
    alone = [[0], [1], [2], [3]]
    found = {
        name: descend(small.model, small.params, rows_of(*rows), parts, view)
        for name, (rows, parts) in {
            "alone": ((alone, 7), 1),
            "padded": ((alone, 11), 1),
            "packed": (([[3, 1], [0, 2]], 13), 1),
            "parts": ((alone, 7), 2),
        }.items()
    }
    value, gradient = found.pop("alone")
    assert max(np.abs(x).max() for x in jax.tree.leaves(gradient)) > 0.01
    for other, gradient_of_other in found.values():
        assert float(other) == pytest.approx(float(value), abs=1e-6)
        for x, y in zip(*map(jax.tree.leaves, (gradient, gradient_of_other)), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def _descend(model, params, batch, parts, view):
    def value_and_grad(params, part):
        out = lambda params: distill.loss(view(model, params, part, 1, 1.0), part)  # noqa: E731
        return jax.value_and_grad(out, has_aux=True)(params)

    gradient, metrics = train_state.accumulate(value_and_grad, params, batch, parts)
    return metrics["loss"], gradient


def test_the_view_has_the_teachers_tokens_at_its_temperature(small, logp_float64):
    batch = rows_of([[0], [1], [2], [3]], 7)
    batch = batch._replace(weight_BT=batch.teacher.weight_BT)
    out = train_state.policy_out(small.model, small.params, batch, 2, 1.0, 1.7)
    for row, length in enumerate(LENGTHS):
        tokens = batch.tokens_BT[row, :length]
        for t in range(2, length):
            logp = logp_float64(small.exact, small.model.config, tokens, 1.7)[t - 1]
            np.testing.assert_allclose(
                out.teacher_logp_BTJ[row, t], logp[batch.teacher.tokens_BTJ[row, t]], atol=2e-5
            )
            plain = logp_float64(small.exact, small.model.config, tokens)[t - 1]
            assert float(out.logp_BT[row, t]) == pytest.approx(plain[tokens[t]], abs=2e-5)
    assert not np.asarray(out.teacher_logp_BTJ)[:, :2].any()

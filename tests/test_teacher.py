"""A teacher asked about data and samples; the student's steps towards it on a tabular problem."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from posttrain_jax import artifacts, kernels, policy, teacher, train_state
from posttrain_jax.api import Batch, Model, Teacher
from posttrain_jax.artifacts import Record
from posttrain_jax.losses import distill, grpo
from posttrain_jax.mesh import make_mesh
from posttrain_jax.teacher import TeacherModel, annotate, likeliest, sampled_kl


def random_batch(rows=3, length=9):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 32, (rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    weight = (rng.random((rows, length)) * (positions >= 3)).astype(np.float32)
    weight[0, 5] = 0.0
    return Batch(tokens, positions, np.ones_like(tokens), weight)


def test_the_likeliest_tokens_are_those_of_float64(small, logp_float64):
    batch = random_batch()
    found = likeliest(TeacherModel(small.model, small.params, 32), batch, 4, start=3,
                      temperature=1.6)  # fmt: skip
    np.testing.assert_array_equal(found.weight_BT, batch.weight_BT)
    for row, tokens in enumerate(batch.tokens_BT):
        logp = logp_float64(small.exact, small.model.config, tokens, 1.6)
        for t in range(9):
            if not batch.weight_BT[row, t]:
                assert not np.asarray(found.logp_BTJ[row, t]).any()
                continue
            order = np.argsort(-logp[t - 1])[:4]
            np.testing.assert_array_equal(found.tokens_BTJ[row, t], order)
            np.testing.assert_allclose(found.logp_BTJ[row, t], logp[t - 1][order], atol=2e-5)


def test_with_k_0_it_tells_of_the_sampled_tokens_only(small, logp_float64):
    batch = random_batch()
    behaviour = np.random.default_rng(1).normal(size=batch.weight_BT.shape).astype(np.float32)
    batch = annotate(TeacherModel(small.model, small.params, 32), batch, 0, temperature=0.7)
    assert batch.teacher.tokens_BTJ.shape == (*batch.tokens_BT.shape, 1)
    assert not np.asarray(batch.teacher.weight_BT).any()  # no divergence is made of one token
    advantage, returns, metrics = sampled_kl(batch._replace(behaviour_logp_BT=behaviour))
    expected = np.zeros_like(behaviour)
    for row, t in np.argwhere(batch.weight_BT):
        tokens = batch.tokens_BT[row]
        logp = logp_float64(small.exact, small.model.config, tokens, 0.7)[t - 1, tokens[t]]
        expected[row, t] = logp - behaviour[row, t]
    assert returns is None
    np.testing.assert_allclose(advantage, expected, atol=2e-5)
    mean = (batch.weight_BT * expected).sum() / batch.weight_BT.sum()
    assert float(metrics["sampled_kl"]) == pytest.approx(-mean, abs=1e-5)


def test_tokens_that_the_student_does_not_have_are_left_out(small):
    teachers = TeacherModel(small.model, small.params, 20)  # of 32
    whole = likeliest(teachers._replace(vocab_size=32), random_batch(), 6)
    found = likeliest(teachers, random_batch(), 6)
    foreign = np.asarray(whole.tokens_BTJ) >= 20
    assert foreign.any() and not foreign.all()
    assert (np.asarray(found.logp_BTJ)[foreign] == -np.inf).all()
    np.testing.assert_array_equal(found.tokens_BTJ, np.where(foreign, 0, whole.tokens_BTJ))
    with pytest.raises(ValueError, match="k=21: expected 0 to 20"):
        likeliest(teachers, random_batch(), 21)


def test_a_teacher_of_another_tokenizer_is_refused(small, tmp_path):
    text = policy.open_text({"tokenizer": "tiny", "chat_template": "tiny"})
    hashes = {"tokenizer_hash": text.tokenizer.hash, "template_hash": text.template.hash}
    for name, changes, message in (
        ("same", {}, ""),
        ("plain", {"template_hash": ""}, ""),
        ("words", {"tokenizer_hash": "f" * 64}, "another tokenizer .ffffffffffff. than the stud"),
        ("turns", {"template_hash": "e" * 64}, "'turns', was made with another chat template"),
    ):
        folder = tmp_path / name
        record = Record(name, "sft", "a" * 64, {}, **{**hashes, **changes})
        artifacts.prepare(folder, record)
        policy.save_policy(folder, small.model, small.params)
        artifact = artifacts.finish(folder)
        if message:
            with pytest.raises(ValueError, match=message):
                teacher.open_teacher(artifact, small.mesh, text, small.model)
        else:
            opened = teacher.open_teacher(artifact, small.mesh, text, small.model)
            assert opened.vocab_size == 32


WORDS, STEPS = 4, 3


class Table(NamedTuple):
    """The config of a model that is a table: the logits of a token given the one before it."""

    vocab_size: int = WORDS
    experts: Any = None


def make_table() -> Model:
    """Its hidden state is the last token, one-hot; its head is the table."""

    def routed(params, tokens_BT, **places):
        return jax.nn.one_hot(tokens_BT, WORDS), None, None

    def head(kernel):
        return lambda params, hidden, *rest: kernel(hidden, params["table"].T, *rest[:2], **(
            {"needed_BT": rest[2]} if len(rest) > 2 else {}
        ))  # fmt: skip

    return Model(
        Table(), lambda key: None, lambda: None, lambda *a, **k: routed(*a, **k)[:2], routed,
        lambda *a: None, head(kernels.token_logprobs), head(kernels.logprobs_at),
        head(kernels.top_logprobs), lambda *a: None,
    )  # fmt: skip


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def exact_kl(student, teacher):
    """KL of sequences of STEPS tokens after token 0, by enumeration in float64."""
    q, p = (log_softmax(np.asarray(x, np.float64)) for x in (student, teacher))
    total = 0.0
    for path in itertools.product(range(WORDS), repeat=STEPS):
        pairs = list(itertools.pairwise((0, *path)))
        logq, logp = (sum(table[pair] for pair in pairs) for table in (q, p))
        total += np.exp(logq) * (logq - logp)
    return total


def draw(student, rows):
    """Sequences that the student samples, and their log-probs."""
    rng, logq = np.random.default_rng(0), log_softmax(np.asarray(student, np.float64))
    tokens, behaviour = np.zeros((rows, STEPS + 1), np.int32), np.zeros((rows, STEPS + 1))
    for row, t in itertools.product(range(rows), range(STEPS)):
        now = logq[tokens[row, t]]
        tokens[row, t + 1] = rng.choice(WORDS, p=np.exp(now))
        behaviour[row, t + 1] = now[tokens[row, t + 1]]
    return tokens, behaviour


def step(student, batch, loss, lr):
    """The student's table after one step of plain gradient descent."""
    descent = optax.trace(decay=0.0)
    where = NamedSharding(make_mesh(devices=jax.devices()[:1]), PartitionSpec())
    params = jax.device_put({"table": np.float32(student)}, where)
    state = train_state.init_state(params, descent)
    state, _ = train_state.make_update(make_table(), descent, loss)(state, batch, lr)
    return np.asarray(state.params["table"])


def prepared(student, teachers, k, tokens, behaviour, weight):
    """A batch of these samples and the loss of on-policy distillation with k tokens."""
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    batch = Batch(tokens, places, np.ones_like(tokens), jnp.float32(weight),
                  behaviour_logp_BT=jnp.float32(behaviour))  # fmt: skip
    params = {"table": jnp.asarray(teachers, jnp.float32)}
    batch = annotate(TeacherModel(make_table(), params, WORDS), batch, k)
    if k:
        return batch, functools.partial(distill.loss, divergence="reverse")
    advantage, _, _ = sampled_kl(batch)
    return batch._replace(advantage_BT=advantage, teacher=None), grpo.loss


@pytest.mark.parametrize("k", [0, 2, WORDS])
def test_a_step_on_its_own_samples_brings_the_student_nearer(k):
    """The KL of whole sequences falls, by enumeration of all 64."""
    student, teachers = np.random.default_rng(3).normal(size=(2, WORDS, WORDS))
    tokens, behaviour = draw(student, 256)
    weight = (np.arange(STEPS + 1) > 0) / 256 * np.ones((256, 1))
    batch, loss = prepared(student, teachers, k, tokens, behaviour, weight)
    before, after = (
        exact_kl(table, teachers) for table in (student, step(student, batch, loss, 0.5))
    )
    assert before > 0.5
    assert after < 0.9 * before


@pytest.mark.parametrize("k", [0, WORDS])
def test_the_expected_gradient_is_that_of_the_kl(k):
    """One choice, every outcome once, weighed by its probability: d KL(q | p) / dz_v is
    q_v (log(q_v / p_v) - KL), whether the teacher says all or only the sampled token's log-prob."""
    student, teachers = np.random.default_rng(4).normal(size=(2, WORDS, WORDS))
    logq, logp = log_softmax(student)[0], log_softmax(teachers)[0]
    tokens = np.stack([np.zeros(WORDS, np.int32), np.arange(WORDS, dtype=np.int32)], axis=1)
    behaviour = np.stack([np.zeros(WORDS), logq], axis=1)
    weight = np.stack([np.zeros(WORDS), np.exp(logq)], axis=1)
    batch, loss = prepared(student, teachers, k, tokens, behaviour, weight)
    found = np.float32(student) - step(student, batch, loss, 1.0)
    kl = (np.exp(logq) * (logq - logp)).sum()
    np.testing.assert_allclose(found[0], np.exp(logq) * (logq - logp - kl), atol=1e-6)
    assert np.abs(found[0]).max() > 0.05 and not found[1:].any()


def test_a_student_that_is_its_teacher_stays():
    student = np.random.default_rng(5).normal(size=(WORDS, WORDS))
    tokens, behaviour = draw(student, 16)
    for k in (0, 2, WORDS):
        batch, loss = prepared(student, student, k, tokens, behaviour, np.ones(tokens.shape))
        moved = step(student, batch, loss, 1.0) - np.float32(student)
        assert np.abs(moved).max() < 1e-5


def test_advantages_need_both_log_probs():
    nothing = jnp.zeros((1, 2))
    batch = Batch(nothing, nothing, nothing, nothing, teacher=Teacher(nothing, nothing, nothing))
    with pytest.raises(ValueError, match=r"sampled_kl needs behaviour_logp_BT and a teacher"):
        sampled_kl(batch)

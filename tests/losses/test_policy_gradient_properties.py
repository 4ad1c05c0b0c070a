"""What must not change the policy gradient, and where it must be zero.

The policy is a table of next-token logits, so that gradients are of parameters that all tokens
share; losses run through the update's own accumulation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import registry, train_state
from posttrain_jax.advantages import Told
from posttrain_jax.api import Batch, PolicyOut, Teacher
from posttrain_jax.losses import distill, grpo, ppo
from posttrain_jax.losses.common import aggregation_weights
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

VOCAB, ROWS, WIDTH, PROMPT = 6, 8, 7, 2
VARIANTS = {
    "token": {"clip_high": 0.3, "kl_coef": 0.1, "entropy_coef": 0.01},
    "sequence": {"importance_level": "sequence", "clip_low": 0.9, "clip_high": 2, "kl_coef": 0.1},
    "gspo": {"importance_level": "sequence_mean", "clip_low": 0.3, "clip_high": 0.4},
    "cispo": {"surrogate": "cispo", "kl_coef": 0.1, "kl_estimator": "k2"},
    "dual": {"dual_clip": 1.3},
    "corrected": {"off_policy_weight": "token", "off_policy_cap": 1.2,
                  "off_policy_mask": "sequence_mean", "off_policy_low": 0.8,
                  "off_policy_high": 1.25},
    "ppo": {"vf_coef": 0.3},
}  # fmt: skip


def lost(name, out, batch, **controls):
    loss = ppo.loss if name == "ppo" else grpo.loss
    return loss(out, batch, **VARIANTS[name], **controls)


def policy(table, batch):
    """The policy's view of a batch; the value of a state is its logit of token 0."""
    logits = table[batch.tokens_BT[:, :-1]]
    logp = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logp, batch.tokens_BT[:, 1:, None], axis=2)[..., 0]
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=2)
    shift = lambda x: jnp.pad(x, ((0, 0), (1, 0)))  # noqa: E731
    named = None
    if batch.teacher is not None:
        tokens = batch.teacher.tokens_BTJ[:, 1:]
        named = jnp.pad(jnp.take_along_axis(logp, tokens, axis=2), ((0, 0), (1, 0), (0, 0)))
    return PolicyOut(
        shift(chosen), shift(entropy), value_BT=shift(logits[..., 0]), teacher_logp_BTJ=named
    )


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(1).normal(0, 0.5, (VOCAB, VOCAB)).astype(np.float32)


@pytest.fixture(scope="module")
def batch(table):
    rng = np.random.default_rng(0)
    mask = np.zeros((ROWS, WIDTH), np.float32)
    for row, length in enumerate([5, 1, 3, 4, 2, 5, 3, 0]):
        mask[row, PROMPT : PROMPT + length] = 1
    mask[3, 3] = 0
    tokens = rng.integers(0, VOCAB, mask.shape).astype(np.int32)
    places = jnp.zeros_like(tokens)
    bare = Batch(tokens, places, places, jnp.ones_like(mask))
    logp = np.asarray(policy(table, bare).logp_BT)
    noisy = lambda size: logp + rng.normal(0, size, logp.shape).astype(np.float32)  # noqa: E731
    advantage = np.repeat(rng.normal(0, 1, (ROWS, 1)), WIDTH, axis=1).astype(np.float32)
    value = rng.normal(0, 1, mask.shape).astype(np.float32)
    return bare._replace(
        weight_BT=mask, advantage_BT=advantage, behaviour_logp_BT=noisy(0.5),
        reference_logp_BT=noisy(0.5), proximal_logp_BT=noisy(0.3), value_BT=value,
        return_BT=value + rng.normal(0, 1, mask.shape).astype(np.float32),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("name", "microbatches", "together"))
def slope(name, table, batch, microbatches=1, together=1):
    """The gradient and the metrics, loss included, as the update accumulates them."""

    def value_and_grad(table, part):
        return jax.value_and_grad(lambda t: lost(name, policy(t, part), part), has_aux=True)(table)

    return train_state.accumulate(value_and_grad, table, batch, microbatches, together)


def weigh(batch, mode="seq_mean_token_mean", **options):
    return batch._replace(weight_BT=aggregation_weights(batch.weight_BT, mode, **options))


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_microbatches_change_nothing(name, table, batch):
    batch = weigh(batch)
    together = 2 if name == "ppo" else 1
    close(slope(name, table, batch, 4, together), slope(name, table, batch))


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_changes_nothing(name, table, batch):
    """Wider rows on either side, filled with numbers that no policy gives."""

    def widen(x):
        fill = {"i": 3, "f": -1e30}[x.dtype.kind]
        return np.pad(x, ((0, 0), (2, 3)), constant_values=fill)

    padded = jax.tree.map(lambda x: widen(np.asarray(x)), batch)
    padded = padded._replace(weight_BT=np.maximum(padded.weight_BT, 0))
    close(slope(name, table, weigh(padded)), slope(name, table, weigh(batch)))


@pytest.mark.parametrize("name", ["cispo", "ppo"])
def test_two_responses_in_one_row_are_as_good_as_two_rows(name, table, batch):
    """Where each token has a ratio of its own; the weights come with the tokens."""
    batch = weigh(batch)
    packed = jax.tree.map(lambda x: x.reshape(ROWS // 2, 2 * WIDTH), batch)
    close(slope(name, table, packed), slope(name, table, batch))


@pytest.mark.parametrize("name", VARIANTS)
def test_on_policy_every_ratio_is_one_and_nothing_is_clipped(name, table, batch):
    logp = policy(table, batch).logp_BT
    batch = weigh(batch, "token_mean_global")._replace(
        behaviour_logp_BT=logp, proximal_logp_BT=None if name != "corrected" else logp
    )
    _, metrics = slope(name, table, batch)
    assert float(metrics["ratio"]) == pytest.approx(1, abs=1e-6)
    assert metrics["clip_fraction"] == 0 and metrics["max/logprob_gap"] == 0
    if name == "corrected":
        assert metrics["off_policy_truncated"] == metrics["off_policy_masked"] == 0
        assert float(metrics["off_policy_weight"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "name"), [("group", "gspo"), ("rloo", "dual"), ("gdpo", "corrected")]
)
def test_equal_rewards_give_no_gradient_at_all(name, estimator, table, batch):
    reward = np.full(ROWS, 1 / 3, np.float32)
    told = Told(
        reward, reward[:, None], np.ones(1), np.ones(ROWS, bool), batch.weight_BT > 0, ROWS // 2
    )
    advantage, _, counted = registry.load("advantages", estimator).advantage(told)
    gradient, _ = slope(name, table, weigh(batch)._replace(advantage_BT=advantage))
    assert not np.asarray(gradient).any()
    assert counted["all_equal_groups"] == 1


def test_the_entropy_bonus_can_be_a_control(table, batch):
    """A traced coefficient gives the same numbers, and another one compiles nothing new."""
    batch, traces = weigh(batch), []

    @jax.jit
    def controlled(table, entropy_coef, kl_coef):
        traces.append(1)
        out = policy(table, batch)
        return grpo.loss(out, batch, entropy_coef=entropy_coef, kl_coef=kl_coef)[0]

    for entropy_coef, kl_coef in ((0.0, 0.1), (0.2, 0.0)):
        out = policy(table, batch)
        fixed = grpo.loss(out, batch, entropy_coef=entropy_coef, kl_coef=kl_coef)[0]
        found = controlled(table, jnp.float32(entropy_coef), jnp.float32(kl_coef))
        assert float(found) == pytest.approx(float(fixed), abs=1e-6)
    assert len(traces) == 1
    with pytest.raises(ValueError, match="reference_logp_BT"):
        jax.jit(lambda coef: grpo.loss(out, batch._replace(reference_logp_BT=None), kl_coef=coef))(
            1.0
        )


def test_rows_of_three_sorts_add_up(table, batch):
    """Policy gradient on rows 0-2, log-likelihood on 3-4, a teacher on 5-6: each part alone."""
    rng = np.random.default_rng(3)
    rows = np.arange(ROWS)[:, None]
    mask = np.asarray(batch.weight_BT)
    nll = np.where((rows >= 3) & (rows < 5), mask, 0) * 0.1
    rl = weigh(batch._replace(weight_BT=np.where(rows < 3, mask, 0)))
    named = np.argsort(rng.random((ROWS, WIDTH, VOCAB)), axis=2)[..., :3].astype(np.int32)
    teacher_logp = np.log(rng.dirichlet(np.ones(4), (ROWS, WIDTH))[..., :3]).astype(np.float32)
    teacher = Teacher(named, teacher_logp, np.where(rows >= 5, mask, 0) * 0.2)
    mixed = rl._replace(nll_weight_BT=nll, teacher=teacher)
    options = {"divergence": "reverse"}

    def value(table, loss, batch, **options):
        return loss(policy(table, batch), batch, **options)[0]

    grad = jax.value_and_grad(value)
    whole = grad(table, grpo.loss, mixed, distill_options=options)
    parts = (
        grad(table, grpo.loss, rl),
        jax.value_and_grad(lambda t: -jnp.sum(nll * policy(t, batch).logp_BT))(table),
        grad(table, distill.loss, mixed, **options),
    )
    assert all(np.abs(slope).max() > 1e-3 for _, slope in parts)
    close(whole, jax.tree.map(lambda *x: sum(x), *parts))
    metrics = grpo.loss(policy(table, mixed), mixed, distill_options=options)[1]
    assert float(metrics["nll"]) == pytest.approx(float(parts[1][0]), rel=1e-5)
    assert float(metrics["distill"]) == pytest.approx(float(parts[2][0]), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(whole[0]), rel=1e-5)


def test_the_samplers_temperature_is_the_losss(small):
    """Behaviour log-probs are those that the update computes at the same temperature."""
    prompts = np.array([[5, 9, 3], [7, 2, 11]], np.int32)
    asked = Asked(prompts, np.ones_like(prompts), jax.random.key(0), np.arange(4, dtype=np.uint32))
    rollout = sample(small.model, small.params, asked, Rules(Sampling(0.6, stop=(1,)), 6, 2))
    mask = rollout.completion_mask_BT
    batch = Batch(rollout.tokens_BT, rollout.positions_BT, rollout.segments_BT, mask * 1.0)
    same, other = (
        np.asarray(train_state.logprobs(small.model, small.params, batch, start=3, temperature=t))
        for t in (0.6, 1.0)
    )
    mask, behaviour = np.asarray(mask), np.asarray(rollout.behaviour_logp_BT)
    np.testing.assert_allclose(same[mask], behaviour[mask], atol=1e-5)
    assert np.abs(other - behaviour)[mask].max() > 0.1

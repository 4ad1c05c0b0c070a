"""The RL stage: its batch arithmetic, its metrics, and that an iteration compiles once."""

import collections
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax import optimizers, train_state
from posttrain_jax.mesh import from_local_rows
from posttrain_jax.policy import Text
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.experience import Scored, assemble
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.stages import rl

pytestmark = pytest.mark.usefixtures("quick_compile")
SIZES = {
    "rollout_size": 32, "batch_size": 16, "group_size": 4, "microbatches": 2, "steps": 6,
    "reference_every": 0,
}  # fmt: skip


def test_the_number_of_minibatches(small):
    assert rl.check_sizes(ConfigDict(SIZES), small.mesh) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "rollout_size=32 is not a multiple of batch_size=12; .*24 or 36"),
        ({"group_size": 5}, "rollout_size=32 is not a multiple of group_size=5; .*30 or 35"),
        ({"group_size": 64}, "group_size=64; the nearest: 64 or 64"),
        ({"microbatches": 3}, "batch_size=16 is not a multiple of microbatches=3; .*15 or 18"),
        ({"steps": 7}, "steps=7 must be a multiple of the 2 updates of a rollout"),
        ({"reference_every": 5}, "reference_every=5 must be a multiple of the 2 updates"),
    ],
)
def test_sizes_that_do_not_divide(small, changes, message):
    with pytest.raises(ValueError, match=message):
        rl.check_sizes(ConfigDict({**SIZES, **changes}), small.mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"microbatches": 8}, "batch_size / microbatches=2 .*nearest that do: 4"),
        ({"group_size": 16}, "rollout_size / group_size=2 .*nearest that do: 4"),
    ],
)
def test_sizes_that_the_mesh_does_not_divide(changes, message):
    mesh = SimpleNamespace(shape={"data": 2, "fsdp": 2, "expert": 1})
    with pytest.raises(ValueError, match=message):
        rl.check_sizes(ConfigDict({**SIZES, **changes}), mesh)


def test_metrics_are_means_over_minibatches_but_the_gap_is_the_first():
    metrics = {"reward": 0.5}
    for number, (kl, gap, skipped) in enumerate([(1.0, 0.01, 0), (3.0, 0.5, 1)]):
        found = {"kl": kl, "max/logprob_gap": gap, "skipped": skipped}
        metrics |= rl.join(metrics, found, number, 2)
    assert metrics == {"reward": 0.5, "kl": 2.0, "max/logprob_gap": 0.01, "skipped": 1}


def test_the_report_names_terms_and_leaves_out_those_that_are_off():
    metrics = {
        "terms_W": np.array([0.5, np.nan, 0.25]), "reward": np.float32(1.5), "max/logprob_gap": 0.1
    }  # fmt: skip
    assert rl.report(metrics, ["format", "preference", "accuracy"]) == {
        "reward": 1.5, "logprob_gap": 0.1, "reward/format": 0.5, "reward/accuracy": 0.25,
        "accuracy": 0.25,
    }  # fmt: skip


@pytest.fixture
def compiled():
    """How often each function was compiled since the counter was last cleared."""
    names = collections.Counter()

    def listen(event, _seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            names[about.get("fun_name")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def setting(small):
    config = ConfigDict({
        **SIZES, "seed": 0, "prompt_length": 5, "max_new": 4, "aggregation": "seq_mean_token_mean",
        "aggregation_constant": 0.0, "lr": 1e-2, "lr_schedule": "linear", "lr_end_ratio": 0.0,
        "warmup": 1, "loss": "grpo", "loss_options": {"kl_coef": 0.1}, "steps": 8, "looks": 2,
        "router_replay": False,
    })  # fmt: skip
    text = Text(SimpleNamespace(eos_id=1, pad_id=0, decode=str), None)
    judges = SimpleNamespace(pool=SimpleNamespace(submit=lambda responses, examples: None))
    return rl.Setting(
        config, small.mesh, text, small.model, judges, Sampling(temperature=0.9), 0.9, 2
    )


def test_an_iteration_compiles_once(setting, small, compiled):
    """Sample, assemble, minibatches, reference log-probs, updates; prompts and rewards change.

    On the way: the updates raise the rewarded token, and the first minibatch is on-policy.
    """
    rng = np.random.default_rng(0)
    with jax.set_mesh(small.mesh):
        optimizer = optimizers.make_optimizer()
        update = rl.make_update(setting, optimizer)
        state = train_state.init_state(rl.copy(small.params), optimizer)
        reference, counts, rewards = rl.copy(state.params), [], []
        for step in (0, 2, 4, 6):
            segments = (np.arange(5) >= rng.integers(0, 4, (8, 1))).astype(np.int32)
            tokens = segments * rng.integers(2, 32, (8, 5), np.int32)
            prompts = Prompts([{}] * 8, tokens, segments, 0)
            rollout, judging = rl.roll_out(setting, state.params, prompts, step)
            assert all(judging.responses)
            good = np.isin(rollout.tokens_BT[:, 5:], (3, 4, 5, 6)).sum(axis=1, dtype=np.float32)
            scored = Scored(*(
                from_local_rows(small.mesh, x)
                for x in (good[:, None], np.ones((32, 1), bool), rng.random(32) < 0.9)
            ))  # fmt: skip
            batch, metrics = assemble(
                rollout, scored, np.float32([1.0]), group_size=4, truncated=False,
                mask_truncated=False, options=(),
            )  # fmt: skip
            state, found = rl.learn(setting, update, state, reference, batch, step)
            last = rl.report({**metrics, **found}, ["good"])
            rewards.append(last["reward"])
            assert last["logprob_gap"] < 1e-4
            counts.append(dict(compiled))
            compiled.clear()
    first, *later = counts
    for name in ("start", "advance", "finish", "assemble", "take", "logprobs", "update"):
        assert first[f"jit({name})"] == 1
    assert later == [{}] * 3
    assert rewards[-1] > rewards[0] + 0.3

"""The KTO stage on a very small policy: its batches, its reference, its resume."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from posttrain_jax import artifacts, interrupt, policy, settings, train_state, tree
from posttrain_jax.api import Artifact
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.losses import kto as loss
from posttrain_jax.metrics import read_rows
from posttrain_jax.stages import kto, reference_logprobs

PAIRS = {"chat": {"tasks": {"chat": 1.0}, "count": 8}}
SHARED = {"seed": 0, "tokenizer": "tiny", "chat_template": "tiny", "mesh": {"data": 1}}
LORA = {"rank": 2, "alpha": 32.0, "targets": "", "rslora": False, "dora": False, "base": ""}


def settle(stage, **given):
    given = {"length": 48, "row_length": 96, **given}
    return ConfigDict(SHARED | settings.fill(stage.DEFAULTS, given, "stage"))


def train(**given):
    return settle(kto, **{"data": PAIRS, "pairs_per_step": 4, "steps": 2, "lr": 1e-2, **given})


def execute(stage, config, folder, inputs):
    record = artifacts.Record(folder.name, stage.__name__.rpartition(".")[2], "0" * 64, {})
    artifacts.prepare(folder, record)
    return stage.run(config, folder, inputs)


@pytest.fixture(scope="module")
def tiny(make_small):
    vocabulary = load_tokenizer("tiny").vocab_size
    return make_small(vocab_size=vocabulary, layers=1, max_length=96)


@pytest.fixture(scope="module")
def start(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    policy.save_policy(folder, tiny.model, tiny.params)
    return Artifact("sft", "sft", "1" * 64, folder)


@pytest.fixture(scope="module")
def data():
    tokenizer = load_tokenizer("tiny")
    text = policy.Text(tokenizer, load_template("tiny", tokenizer))
    return reference_logprobs.read_data(train(), {}, text, True)


def test_kept_log_probs_and_a_run_that_is_stopped(start, tmp_path, monkeypatch):
    config = settle(reference_logprobs, data=PAIRS, batch_size=4, singles=True)
    kept = execute(reference_logprobs, config, tmp_path / "reference", {"policy": start})
    inputs = {"policy": start, "reference": kept}
    config = train(microbatches=2, loss_options={"undesirable_weight": 1.2})
    whole = execute(kto, config, tmp_path / "whole", inputs)
    answers = iter([True])
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(answers, False))
        with pytest.raises(interrupt.Interrupted):
            execute(kto, config, tmp_path / "parts", inputs)
    parts = execute(kto, config, tmp_path / "parts", inputs)
    mesh = policy.open_mesh(config)
    assert len({tree.digest(policy.load_policy(a, mesh)[1]) for a in (whole, parts)}) == 1
    first, second = read_rows(tmp_path / "whole" / "metrics.jsonl")
    # the policy begins as its own reference: half of each side's weight
    share = first["chosen_share"]
    assert share + first["rejected_share"] == pytest.approx(1.0)
    assert first["loss"] == pytest.approx(0.5 * (share + 1.2 * (1 - share)), abs=1e-5)
    assert first["kl"] == pytest.approx(0, abs=1e-4) and first["grad_norm"] > 1e-3
    assert second["loss"] != pytest.approx(first["loss"], abs=1e-4)
    counted = {n: whole.metrics[n]["mean"] for n in ("responses", "desirable", "too_long")}
    assert counted == {"responses": 16, "desirable": 8, "too_long": 0}


def test_adapters_are_their_own_reference(start, tmp_path):
    artifact = execute(kto, train(lora=LORA), tmp_path, {"policy": start})
    first, second = read_rows(artifact.path / "metrics.jsonl")
    assert first["loss"] == pytest.approx(0.5, abs=1e-5) and first["margin"] == pytest.approx(
        0, abs=1e-5
    )
    assert second["margin"] != pytest.approx(0, abs=1e-6)


def test_layouts_and_microbatches_change_no_update(tiny, data):
    rng = np.random.default_rng(0)
    kept = [
        tuple(rng.normal(-9, 0.3, side.said.sum()).astype(np.float32) for side in group)
        for group in data.groups
    ]
    descent, found = optax.trace(decay=0.0), []
    for changes in ({"row_length": 0}, {"microbatches": 2}):
        config = train(**changes)
        view = kto.View(config, tiny.mesh, tiny.model, None, data, kept, 0)
        steps = [[3, 8, 11, 5], [0, 1, 2, 4]]
        own, other = (view.layout(which, steps) for which in (kto.OWN, kto.OTHER))
        batch, mismatched = (
            view.batch(which, steps[0], layout)
            for which, layout in ((kto.OWN, own), (kto.OTHER, other))
        )
        drift = loss.drift(train_state.logprobs(tiny.model, tiny.params, mismatched), mismatched)
        update = train_state.make_update(
            tiny.model, descent, functools.partial(loss.loss, sequences=own.sequences),
            microbatches=config.microbatches,
        )  # fmt: skip
        state = train_state.init_state(jax.tree.map(jnp.copy, tiny.params), descent)
        state, metrics = update(state, batch, jnp.float32(1.0), kl=drift)
        found.append((state.params, {k: float(v) for k, v in {**metrics, "kl": drift}.items()}))
    (params, metrics), (packed, others) = found
    assert own.sequences > 1 and metrics["grad_norm"] > 1e-2 and metrics["kl"] > 0.1
    assert metrics["chosen_share"] == 0.25  # of 3, 8, 11 and 5 only 8 is a chosen response
    assert others == pytest.approx(metrics, rel=2e-6, abs=1e-6)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(packed), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6, rtol=2e-6)


def test_settings_that_can_not_be(tiny):
    with pytest.raises(ValueError, match=r"singles=True\) as inputs\.reference, or train adapters"):
        kto.check(train(), {}, tiny.mesh)
    with pytest.raises(ValueError, match="microbatches=3 does not divide pairs_per_step=4"):
        kto.check(train(lora=LORA, microbatches=3), {}, tiny.mesh)

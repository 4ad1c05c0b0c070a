"""The preference stage and the log-probs it starts from, on a very small policy and chat pairs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from posttrain_jax import artifacts, interrupt, policy, settings, train_state, tree
from posttrain_jax.api import Artifact
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.pairs import one_a_row
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.files import read_json
from posttrain_jax.losses import dpo, orpo, simpo
from posttrain_jax.metrics import read_rows
from posttrain_jax.stages import preference, reference_logprobs

PAIRS = {"chat": {"tasks": {"chat": 1.0}, "count": 12}}
HELDOUT = {"chat": {"tasks": {"chat": 1.0}, "split": "heldout", "count": 6}}
SHARED = {"seed": 0, "tokenizer": "tiny", "chat_template": "tiny", "mesh": {"data": 1}}
LORA = {"rank": 2, "alpha": 32.0, "targets": "", "rslora": False, "dora": False, "base": ""}


def settle(stage, **given):
    """The resolved config of a stage."""
    return ConfigDict(SHARED | settings.fill(stage.DEFAULTS, {"length": 48} | given, "stage"))


def train(**given):
    few = {"data": PAIRS, "pairs_per_step": 4, "steps": 2, "lr": 1e-2}
    return settle(preference, **{**few, **given})


def execute(stage, config, folder, inputs):
    """Run a stage into a folder, as the pipeline does."""
    record = artifacts.Record(folder.name, stage.__name__.rpartition(".")[2], "0" * 64, {})
    artifacts.prepare(folder, record)
    return stage.run(config, folder, inputs)


@pytest.fixture(scope="module")
def tiny(make_small):
    """Random weights under the tiny tokenizer."""
    vocabulary = load_tokenizer("tiny").vocab_size
    return make_small(vocab_size=vocabulary, layers=1, max_length=64)


@pytest.fixture(scope="module")
def start(tiny, tmp_path_factory):
    """The policy's artifact."""
    folder = tmp_path_factory.mktemp("policy")
    policy.save_policy(folder, tiny.model, tiny.params)
    return Artifact("sft", "sft", "1" * 64, folder)


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """Its log-probs of the pairs."""
    config = settle(reference_logprobs, data=PAIRS, row_length=64, batch_size=4)
    folder = tmp_path_factory.mktemp("reference")
    return execute(reference_logprobs, config, folder, {"policy": start})


@pytest.fixture(scope="module")
def pairs():
    """The encoded pairs."""
    tokenizer = load_tokenizer("tiny")
    text = policy.Text(tokenizer, load_template("tiny", tokenizer))
    return reference_logprobs.read_data(train(), {}, text, False)


def test_kept_log_probs_are_the_policys(tiny, reference, pairs, logp_float64):
    found = reference_logprobs.load(reference, pairs)
    assert len(found) == len(pairs.groups) == 12
    for number in (0, 7, 11):
        for side, logp in zip(pairs.groups[number], found[number], strict=True):
            exact = logp_float64(tiny.exact, tiny.model.config, side.tokens)
            expected = exact[np.arange(len(side.tokens) - 1), side.tokens[1:]]
            np.testing.assert_allclose(logp, expected[side.said[1:]], atol=1e-4)


def test_a_killed_run_of_log_probs_goes_on(start, reference, tmp_path, monkeypatch):
    config = settle(reference_logprobs, data=PAIRS, row_length=64, batch_size=4)
    answers = iter([False, True])
    monkeypatch.setattr(interrupt, "requested", lambda: next(answers, False))
    with pytest.raises(interrupt.Interrupted):
        execute(reference_logprobs, config, tmp_path, {"policy": start})
    path = tmp_path / reference_logprobs.LOGP
    assert 0 < path.stat().st_size < (reference.path / path.name).stat().st_size
    path.write_bytes(path.read_bytes() + b"torn")  # a part of the third batch
    asked = []
    real = train_state.logprobs
    monkeypatch.setattr(train_state, "logprobs", lambda *a, **k: asked.append(1) or real(*a, **k))
    execute(reference_logprobs, config, tmp_path, {"policy": start})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(asked) == len(rows) - 2 > 0
    for name in (path.name, "begins.npy", "groups.npy"):
        assert (tmp_path / name).read_bytes() == (reference.path / name).read_bytes()


def test_log_probs_of_other_data_are_refused(reference, pairs, tmp_path):
    swapped = pairs._replace(groups=[*pairs.groups[:3], *pairs.groups[4:2:-1], *pairs.groups[5:]])
    with pytest.raises(ValueError, match=rf"differ first at group 3 \(example '{pairs.names[3]}'"):
        reference_logprobs.load(reference, swapped)
    fewer = pairs._replace(groups=pairs.groups[:-1], names=pairs.names[:-1])
    with pytest.raises(ValueError, match=r"12 groups and this stage 11.*group 11 .*past the end"):
        reference_logprobs.load(reference, fewer)
    with pytest.raises(ValueError, match="of kind 'sft'; expected reference_logprobs"):
        reference_logprobs.load(Artifact("a", "sft", "", tmp_path), pairs)


def test_log_probs_that_are_not_finite_are_refused_with_their_row(reference, pairs, tmp_path):
    for name in ("begins.npy", "groups.npy"):
        (tmp_path / name).write_bytes((reference.path / name).read_bytes())
    flat = np.fromfile(reference.path / reference_logprobs.LOGP, np.float32)
    flat[np.load(tmp_path / "begins.npy")[2 * 5 + 1]] = np.nan
    flat.tofile(tmp_path / reference_logprobs.LOGP)
    with pytest.raises(ValueError, match=f"example '{pairs.names[5]}' is not finite"):
        reference_logprobs.load(Artifact("r", "reference_logprobs", "", tmp_path), pairs)


def test_two_steps_of_dpo_from_kept_log_probs(start, reference, pairs, tmp_path):
    config = train(loss_options={"beta": 0.3}, heldout={}, microbatches=2)
    artifact = execute(preference, config, tmp_path, {"policy": start, "reference": reference})
    first, second = read_rows(tmp_path / "metrics.jsonl")
    # the policy begins as its own reference: no margin, log 2
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-4) and first["grad_norm"] > 0.1
    assert second["loss"] != pytest.approx(np.log(2), abs=1e-3)
    for row, step in zip((first, second), preference.plan_steps(config, 12), strict=True):
        for place, side in enumerate(("chosen", "rejected")):
            lengths = [pairs.groups[i][place].said.sum() for i in step]
            assert row[f"{side}_tokens"] == pytest.approx(np.mean(lengths), rel=1e-6)
    assert artifact.metrics["pairs"]["mean"] == 12 and artifact.metrics["too_long"]["mean"] == 0
    assert (tmp_path / "left_out.jsonl").read_text() == ""
    assert (tmp_path / "params").is_dir()


def test_a_stopped_run_ends_with_the_same_bits(start, reference, tmp_path, monkeypatch):
    inputs = {"policy": start, "reference": reference}
    config = train(row_length=96, nll_coef=0.2, mask_formatting_tokens=True, steps=3)
    whole = execute(preference, config, tmp_path / "whole", inputs)
    answers = iter([True])
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(answers, False))
        with pytest.raises(interrupt.Interrupted):
            execute(preference, config, tmp_path / "parts", inputs)
    parts = execute(preference, config, tmp_path / "parts", inputs)
    mesh = policy.open_mesh(config)
    digests = {tree.digest(policy.load_policy(a, mesh)[1]) for a in (whole, parts)}
    assert len(digests) == 1 and whole.metrics == parts.metrics
    logged = [[(r["step"], r["loss"]) for r in read_rows(a.path / "metrics.jsonl")]
              for a in (whole, parts)]  # fmt: skip
    assert logged[0] == logged[1] and [step for step, _ in logged[0]] == [1, 2, 3]
    before = tree.digest(policy.load_policy(start, mesh)[1])
    assert digests != {before}


def test_adapters_are_their_own_reference(start, reference, tmp_path):
    """With new adapters that is the policy without them: as with kept log-probs."""
    found = []
    for name, inputs in (("asked", {}), ("kept", {"reference": reference})):
        config = train(lora=LORA, loss_options={"beta": 0.5}, row_length=96)
        artifact = execute(preference, config, tmp_path / name, {"policy": start, **inputs})
        about = read_json(artifact.path / "model.json")
        assert about["lora"]["rank"] == 2 and about["base"]["id"] == start.id
        found.append([row["loss"] for row in read_rows(artifact.path / "metrics.jsonl")])
    assert found[0][0] == pytest.approx(np.log(2), abs=1e-5) != pytest.approx(found[0][1])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_accuracy_on_held_out_pairs(start, tmp_path, tiny, logp_float64):
    """Of an untrained policy, by SimPO's reward in float64."""
    config = train(loss="simpo", heldout=HELDOUT, lr=0.0, steps=1, row_length=96)
    artifact = execute(preference, config, tmp_path, {"policy": start})
    tokenizer = load_tokenizer("tiny")
    text = policy.Text(tokenizer, load_template("tiny", tokenizer))
    groups = reference_logprobs.read_data(config, {}, text, False, HELDOUT).groups
    margins = []
    for group in groups:
        means = []
        for side in group:
            logp = logp_float64(tiny.exact, tiny.model.config, side.tokens)
            seen = logp[np.arange(len(side.tokens) - 1), side.tokens[1:]]
            means.append(seen[side.said[1:]].mean())
        margins.append(2.0 * (means[0] - means[1]))
    found = artifact.metrics["pair_accuracy"]
    right = np.array(margins) > 0
    assert found["mean"] == pytest.approx(right.mean(), abs=1e-5) and found["n"] == 6
    assert found["stderr"] == pytest.approx(right.std(ddof=1) / 6**0.5, abs=1e-5)
    assert artifact.metrics["heldout_margin"]["mean"] == pytest.approx(np.mean(margins), abs=1e-4)


PLAIN = 50
"""The `length` for which prompts are read with each side."""
CASES = {
    "dpo": (dpo, {"nll_coef": 0.2, "mask_formatting_tokens": True}),
    "orpo": (orpo, {"nll_coef": 1.0, "nll_norm": "batch"}),
    "simpo": (simpo, {"nll_coef": 0.1, "nll_norm": "sum"}),
}


@pytest.mark.parametrize("name", CASES)
def test_padding_packing_and_microbatches_change_no_update(tiny, pairs, name):
    """One step of descent is linear in the gradient: its errors stay as small as they are."""
    module, options = CASES[name]
    descent, found, shapes = optax.trace(decay=0.0), [], set()
    rng = np.random.default_rng(0)
    kept = [
        tuple(rng.normal(-3, 1, side.said.sum()).astype(np.float32) for side in group)
        for group in pairs.groups
    ]
    layouts = [{"length": PLAIN}, {}, {"row_length": 160, "microbatches": 2}]
    layouts += [{"length": 64}, {"microbatches": 2}] if module is dpo else []
    for changes in layouts:
        config = train(loss=name, **options, **changes)
        view = preference.View(config, tiny.mesh, tiny.model, module, None, pad_id=0)
        known = preference.Pairs(pairs, kept if module is dpo else None)
        steps = [[3, 0, 11, 5], [1, 2, 4, 6]]
        layout = view.layout(known, steps, config.microbatches)
        if config.length == PLAIN:
            layout = one_a_row(PLAIN, 4)
        shapes.add((layout.rows, layout.sequences, bool(layout.prompt)))
        update = train_state.make_update(
            view.reader(layout), descent, view.bound(layout), microbatches=config.microbatches,
            together=layout.together,
        )  # fmt: skip
        state = train_state.init_state(jax.tree.map(jnp.copy, tiny.params), descent)
        batch = view.batch(known, steps[0], layout, 4)
        state, metrics = update(state, batch, jnp.float32(1.0))
        found.append((state.params, {k: float(v) for k, v in metrics.items()}))
    assert {(8, 1, False), (8, 1, True)} <= shapes and any(most > 2 for _, most, _ in shapes)
    (params, metrics), *others = found
    assert metrics["grad_norm"] > 1e-2
    for other, its in others:
        assert its == pytest.approx(metrics, rel=2e-6, abs=1e-6)
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6, rtol=2e-6)


def test_a_reference_asked_of_shared_prompts_says_what_it_says_of_plain_rows(tiny, pairs):
    view = preference.View(train(), tiny.mesh, tiny.model, dpo, tiny.params, pad_id=0)
    known, said = preference.Pairs(pairs, None), []
    for layout in (view.layout(known, [[0, 1, 2, 3]], 1), one_a_row(48, 4)):
        batch = view.batch(known, [0, 1, 2, 3], layout, 4)
        assert batch.weight_BT.shape == (8, layout.length)
        said.append([row[row != 0] for row in np.asarray(batch.reference_logp_BT)])
    for one, other in zip(*said, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
        assert len(one) > 1


def test_formatting_tokens_are_in_the_likelihood_alone(tiny, pairs):
    config = train(nll_coef=0.5, mask_formatting_tokens=True)
    view = preference.View(config, tiny.mesh, tiny.model, dpo, None, pad_id=0)
    known = preference.Pairs(pairs, None)
    layout = view.layout(known, [[0, 1, 2, 3]], 1)
    batch = view.batch(known, [0, 1, 2, 3], layout, 4)
    tokenizer = load_tokenizer("tiny")
    ends = {tokenizer.eos_id, tokenizer.markers["<|assistant|>"]}
    for row in range(8):
        tokens, weight = np.asarray(batch.tokens_BT)[row], np.asarray(batch.weight_BT)[row]
        imitated = np.asarray(batch.nll_weight_BT)[row]
        assert not ends & set(tokens[weight > 0].tolist())
        assert set(weight.tolist()) == {0.0, 0.25}
        if row % 2:
            assert not imitated.any()
        else:
            assert ends <= set(tokens[imitated > 0].tolist())
            assert imitated.sum() == pytest.approx(0.5 / 4)
            assert (imitated > 0).sum() == (weight > 0).sum() + 2


@pytest.mark.parametrize(
    ("changes", "roles", "message"),
    [
        ({}, (), r"loss='dpo' needs .* inputs\.reference, or train adapters \(lora\.rank\)"),
        ({"loss": "ipo"}, (), r"loss='ipo' needs the log-probs of a reference"),
        ({"loss": "kto"}, (), "loss='kto' does not compare pairs .*of kind kto"),
        ({"loss": "sft"}, (), "loss='sft' does not compare pairs"),
        ({"loss": "dpoo"}, (), "no 'dpoo' in posttrain_jax/losses/. Did you mean 'dpo'"),
        ({"loss": "orpo"}, (), "loss='orpo' needs nll_coef above 0; 1 in its paper"),
        ({"loss": "simpo", "loss_options": {"gama": 1}}, (), r"\['gama'\]: simpo has \['beta', 'g"),
        ({"loss": "simpo", "nll_norm": "token"}, (), "nll_norm='token': expected one of"),
        ({"loss": "simpo", "microbatches": 3}, (), "microbatches=3 does not divide pairs_per_st"),
        ({"heldout": HELDOUT}, ("reference",), r"as inputs\.heldout_reference"),
    ],
)
def test_settings_that_can_not_be(changes, roles, message):
    with pytest.raises(ValueError, match=message):
        preference.open_loss(train(**changes), dict.fromkeys(roles))


@pytest.mark.parametrize(("steps", "epochs", "count"), [(3, 0.0, 3), (0, 2.0, 6), (0, 0.01, 1)])
def test_steps_or_epochs(steps, epochs, count):
    plan = preference.plan_steps(train(steps=steps, epochs=epochs), 12)
    assert [len(step) for step in plan] == [4] * count
    if epochs == 2.0:
        assert sorted(i for step in plan for i in step) == sorted([*range(12)] * 2)
    with pytest.raises(ValueError, match="set one of steps=3 and epochs=1"):
        preference.plan_steps(train(steps=3, epochs=1.0), 12)


def test_left_out_rows_are_written(start, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"id": str(i), "prompt": " Name two fruits.", "chosen": a, "rejected": b}
        for i, (a, b) in enumerate([(" apples", " red"), (" apples", " apples"), (" red", "")])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settle(reference_logprobs, data={"file": {"path": str(path)}}, batch_size=1)
    artifact = execute(reference_logprobs, config, tmp_path / "stage", {"policy": start})
    counted = {name: artifact.metrics[name]["mean"] for name in ("pairs", "equal_sides")}
    assert counted == {"pairs": 1, "equal_sides": 1}
    assert read_rows(tmp_path / "stage" / "left_out.jsonl") == [
        {"id": "1", "reason": "equal_sides"}, {"id": "2", "reason": "empty_response"}
    ]  # fmt: skip


def test_a_run_that_learns_nothing_stops(start, reference, tmp_path, monkeypatch):
    nothing = functools.partial(dpo.loss, beta=float("nan"))
    monkeypatch.setattr(preference.View, "bound", lambda *_: nothing)
    config = train(steps=5, stop_after_skipped=2)
    with pytest.raises(ValueError, match="not finite in 2 updates in a row, up to update 2"):
        execute(preference, config, tmp_path, {"policy": start, "reference": reference})
    assert (tmp_path / "nonfinite-2.npz").is_file()

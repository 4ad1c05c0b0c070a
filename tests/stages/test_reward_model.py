"""Groups one a row, packed and with shared prompts, and updates against the float64 decoder."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from posttrain_jax import head_training, optimizers, reward_model, train_state, tree
from posttrain_jax.api import Artifact
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.marked import Group, Response, lay_out, one_a_row
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.losses import bradley_terry, listwise, regression
from posttrain_jax.mesh import shard_rows
from posttrain_jax.models.heads import HeadConfig
from posttrain_jax.policy import Text, save_policy
from posttrain_jax.stages import reward_model as stage


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer("tiny")
    return Text(tokenizer, load_template("tiny", tokenizer))


def make_groups(sizes, seed=0):
    """Groups of responses of these many tokens after a prompt of one; the first is the best."""
    rng = np.random.default_rng(seed)
    groups = []
    for number, lengths in enumerate(sizes):
        prompt = rng.integers(2, 32)
        responses = [
            Response(
                np.concatenate([[prompt], rng.integers(2, 32, n)]).astype(np.int32), 1,
                (float(len(lengths) - i),),
            )
            for i, n in enumerate(lengths)
        ]  # fmt: skip
        groups.append(Group(tuple(responses), 0.1 * number))
    return groups


PAIRS = make_groups([(5, 2), (1, 4), (3, 4), (5, 5)])


def settings(**changes):
    """Settings of the stage that `check` and `find_layout` read."""
    plain = {
        "head": {}, "gate": {}, "objectives": (), "loss": "bradley_terry", "loss_options": {},
        "span": "whole", "length": 6, "row_length": 0, "shared_prompt": False,
        "pairs_per_step": 4, "microbatches": 1, "seed": 0, "label": "label", "margin": 0.0,
        "margin_field": "",
    }  # fmt: skip
    return ConfigDict(plain | changes)


def start(small, head, optimizer):
    """A fresh state, whose backbone may be donated."""
    backbone = jax.tree.map(jnp.copy, small.params)
    params = reward_model.add_head(small.model, backbone, small.mesh, 0, head)
    return train_state.init_state(params, optimizer)


def update_of(small, loss, layout, optimizer, **options):
    objective = stage.make_objective(small.model, loss, layout.members)
    return head_training.make_update(
        objective, optimizer, together=layout.together, **options
    )  # fmt: skip


def exact_scores(small, hidden_float64, weight, group):
    return [
        hidden_float64(small.exact, small.model.config, r.tokens)[-1] @ weight
        for r in group.responses
    ]


def test_loss_and_accuracy_of_an_update(small, hidden_float64):
    optimizer = optimizers.make_optimizer()
    state, layout = start(small, HeadConfig(), optimizer), one_a_row(6, 2, 2)
    weight = np.float64(state.params["head"]["weight"][:, 0])
    update = update_of(small, bradley_terry, layout, optimizer)
    batch = shard_rows(small.mesh, lay_out(PAIRS[1:3], layout, 0))
    gaps = [
        np.subtract(*exact_scores(small, hidden_float64, weight, group)) for group in PAIRS[1:3]
    ]
    state, metrics = update(state, batch, jnp.float32(1e-2))
    expected = sum(math.log1p(math.exp(m - gap)) for gap, m in zip(gaps, (0.1, 0.2), strict=True))
    assert float(metrics["loss"]) == pytest.approx(expected / 2, abs=1e-4)
    assert float(metrics["pair_accuracy"]) == sum(gap > 0 for gap in gaps) / 2
    for _ in range(10):
        state, metrics = update(state, batch, jnp.float32(1e-2))
    assert float(metrics["pair_accuracy"]) == 1.0
    assert float(metrics["loss"]) < expected / 4


@pytest.mark.parametrize("loss", [bradley_terry, listwise], ids=["pairs", "list"])
def test_packing_and_microbatches_change_no_update(small, loss):
    """One step of descent is linear in the gradient: its errors stay as small as they are."""
    groups = PAIRS if loss is bradley_terry else make_groups([(5, 2, 1), (1, 4), (3, 4, 2), (5, 5)])
    found, descent, shapes = [], optax.trace(decay=0.0), set()
    for changes in ({}, {"row_length": 26, "microbatches": 2}):
        config = settings(head={"layers": 2}, **changes)
        stage.check(config)
        layout = stage.find_layout(config, small.mesh, groups, [[3, 0, 2, 1], [0, 0, 0, 0]])
        shapes.add((layout.rows, layout.groups))
        update = update_of(small, loss, layout, descent, microbatches=config.microbatches)
        batch = shard_rows(small.mesh, lay_out([groups[i] for i in (3, 0, 2, 1)], layout, 0))
        state = start(small, HeadConfig(**config.head), descent)
        state, metrics = update(state, batch, jnp.float32(1.0))
        found.append((state.params, metrics))
    assert len(shapes) == 2 and min(shapes)[0] < 8
    (params, metrics), *others = found
    assert float(metrics["grad_norm"]) > 1e-2
    for other, its in others:
        assert {k: float(v) for k, v in its.items()} == pytest.approx(
            {k: float(v) for k, v in metrics.items()}, abs=1e-4
        )
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)


def test_with_a_shared_prompt_a_response_sees_those_before_it(small, hidden_float64):
    (group,) = make_groups([(3, 2, 4)])
    config = settings(row_length=12, shared_prompt=True, loss="listwise", pairs_per_step=1)
    layout = stage.find_layout(config, small.mesh, [group], [[0]])
    head, descent = HeadConfig(), optax.trace(decay=0.0)
    state = start(small, head, descent)
    weight = np.float64(state.params["head"]["weight"][:, 0])
    rows = lay_out([group], layout, 0)
    whole = np.concatenate(
        [group.responses[0].tokens, *(r.tokens[1:] for r in group.responses[1:])]
    )
    hidden = hidden_float64(small.exact, small.model.config, whole)
    exact = hidden[[3, 5, 9]] @ weight
    _, metrics = update_of(small, listwise, layout, descent)(
        state, shard_rows(small.mesh, rows), jnp.float32(0.1)
    )
    gaps = [exact[0] - exact[1], exact[0] - exact[2], exact[1] - exact[2]]
    expected = np.mean([math.log1p(math.exp(-gap)) for gap in gaps])
    assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-4)


def test_a_gate_weighs_the_objectives_by_the_prompt(small, hidden_float64):
    """ArmoRM: only the gate is trained; at its start all objectives weigh alike."""
    head = HeadConfig(outputs=3)
    params = reward_model.add_head(small.model, small.params, small.mesh, 1, head)
    plain = reward_model.RewardModel(small.model, params, 6, "whole", head)
    gated = reward_model.add_gate(plain, small.mesh, 0, {})
    weights = jax.tree.map(np.float64, gated.params["head"]["weight"])
    group, descent = PAIRS[0], optax.trace(decay=0.0)
    ends = [hidden_float64(small.exact, small.model.config, r.tokens)[-1] for r in group.responses]
    rated = np.stack(ends) @ weights
    layout = one_a_row(6, 1, 2)
    batch = shard_rows(small.mesh, lay_out([group], layout, 0))
    part = batch.batch, batch.place_BM, batch.prompt_BM
    found = reward_model.outputs(small.model, gated.params, *part)
    np.testing.assert_allclose(found[:, 0, 0], rated.mean(axis=1), atol=1e-4)
    trained, frozen = tree.split(gated.params, lambda path: stage.is_trained(gated, path))
    assert set(trained) == {"gate"}
    state = train_state.init_state(trained, descent)
    update = update_of(small, bradley_terry, layout, descent, frozen=frozen)
    losses = []
    for _ in range(8):
        state, metrics = update(state, batch, jnp.float32(0.3))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    # The score in float64, from the trained gate.
    gate = jax.tree.map(np.float64, state.params["gate"])
    prompt = hidden_float64(small.exact, small.model.config, group.responses[0].tokens)[0]
    logits = np.maximum(prompt @ gate["hidden"] + gate["hidden_bias"], 0) @ gate["weight"]
    share = np.exp(logits + gate["bias"]) / np.exp(logits + gate["bias"]).sum()
    assert share.max() > 0.34 and abs(gate["log_scale"]) > 1e-3
    found = reward_model.outputs(small.model, tree.join(frozen, state.params), *part)[:, 0, 0]
    np.testing.assert_allclose(found, np.exp(gate["log_scale"]) * rated @ share, atol=1e-4)


def test_regression_of_objectives(small, hidden_float64):
    head, layout, descent = HeadConfig(outputs=2), one_a_row(6, 2, 1), optax.trace(decay=0.0)
    tokens = [g.responses[0].tokens for g in PAIRS[:2]]
    labels = [(0.5, float("nan")), (0.25, 1.0)]
    groups = [Group((Response(t, 1, y),)) for t, y in zip(tokens, labels, strict=True)]
    state = start(small, head, descent)
    weight = np.float64(state.params["head"]["weight"])
    said = [hidden_float64(small.exact, small.model.config, t)[-1] @ weight for t in tokens]
    batch = shard_rows(small.mesh, lay_out(groups, layout, 0))
    _, metrics = update_of(small, regression, layout, descent)(state, batch, jnp.float32(0.1))
    expected = ((said[0][0] - 0.5) ** 2 + (said[1][0] - 0.25) ** 2 + (said[1][1] - 1) ** 2) / 2
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"outputs": 2}}, r"head\.outputs=2: expected 1, one for each of objectives=\(\)"),
        ({"objectives": ("a",)}, "objectives go with regression"),
        ({"loss": "regression"}, "objectives go with regression"),
        ({"gate": {"layers": 2}, "loss": "pointwise"}, "a gate is trained by bradley_terry or"),
        ({"loss": "sft"}, "loss='sft' is no loss of graded responses"),
        ({"span": "summary"}, "span='summary': expected one of whole, thought, answer"),
        ({"microbatches": 3}, "microbatches=3 does not divide pairs_per_step=4"),
        ({"shared_prompt": True}, "shared_prompt needs row_length"),
    ],
)
def test_settings_that_can_not_be(changes, message):
    with pytest.raises(ValueError, match=message):
        stage.check(settings(**changes))


def rows_file(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "hi", **row}) + "\n" for row in rows))
    return {"file": {"path": str(path)}}


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path, text):
    data = rows_file(tmp_path, [
        {"id": "a", "chosen": "yes", "rejected": "no"},
        {"id": "b", "chosen": "same", "rejected": "same"},
        {"id": "c", "chosen": "yes", "rejected": " "},
        {"id": "d", "chosen": "yes " * 60 + "a", "rejected": "yes " * 60 + "b"},
        {"id": "e", "responses": ["x", "y"], "labels": [1, 1]},
    ])  # fmt: skip
    config = settings(loss="listwise", length=16)
    groups, counts, notes = stage.encode_groups(config, {}, text, data)
    assert len(groups) == 1 and [r.labels for r in groups[0].responses] == [(1.0,), (0.0,)]
    # c: alone is the chosen one; d: equal once cut to 16 tokens
    assert counts == {
        "cut": 2, "dropped_empty": 1, "dropped_equal": 2, "dropped_alike": 2, "dropped_masked": 0
    }  # fmt: skip
    assert notes == {
        "dropped_empty": "'c'", "dropped_equal": "'b' 'd'", "dropped_alike": "'c' 'e'"
    }  # fmt: skip
    only = {"file": {**data["file"], "where": {"id": "b"}}}
    with pytest.raises(ValueError, match="none of 1 groups of responses can be trained on"):
        stage.encode_groups(config, {}, text, only)
    with pytest.raises(ValueError, match="example 'x' has no chosen and rejected response"):
        broken = rows_file(tmp_path, [{"id": "x", "chosen": "yes"}])
        stage.encode_groups(config, {}, text, broken)


def test_a_whole_stage_and_a_gate_over_it(make_small, text, tmp_path, run_stage):
    """Regression, then a gate on pairs; what is written is read back and scores alike."""
    policy = make_small(vocab_size=text.tokenizer.vocab_size, tied=False)
    save_policy(tmp_path / "sft", policy.model, policy.params)
    rated = [{"response": f"{i} {j}", "ratings": {"small": i / 9, "even": j % 2}}
             for i in range(4) for j in range(4)]  # fmt: skip
    data, pairs = rows_file(tmp_path, rated), {"p": {"tasks": {"chat": 1.0}, "count": 8}}
    common = {"length": 40, "steps": 3, "lr": 1e-2, "pairs_per_step": 8, "save_every": 0}
    sft = Artifact("sft", "sft", "0" * 64, tmp_path / "sft")
    made = run_stage("reward_model", {
        "data": data, "heldout": data, "loss": "regression", "objectives": ("small", "even"),
        "head": {"outputs": 2}, **common,
    }, {"policy": sft}, "rated")  # fmt: skip
    assert set(made.metrics) >= {"groups", "squared_error/small", "correlation/even"}
    gated = run_stage(
        "reward_model", {"data": pairs, "heldout": pairs, "gate": {"layers": 1}, **common},
        {"reward_model": made}, "gated",
    )  # fmt: skip
    assert set(gated.metrics) >= {"pair_accuracy", "pair_accuracy/chat", "calibration_error"}
    before, after = reward_model.load(made, policy.mesh), reward_model.load(gated, policy.mesh)
    assert tree.digest(before.params["backbone"]) == tree.digest(after.params["backbone"])
    assert tree.digest(before.params["head"]) == tree.digest(after.params["head"])
    assert float(after.params["gate"]["log_scale"]) != 0.0
    said = [({"prompt": "hi"}, "yes"), ({"prompt": "hi"}, "no")]
    assert reward_model.score_local(after, said, text, policy.mesh).shape == (2,)
    with pytest.raises(ValueError, match=r"rates 2 objectives \('small', 'even'\), which"):
        reward_model.score_local(before, said, text, policy.mesh)
    with pytest.raises(ValueError, match=r"a gate weighs several objectives; .* a gate already"):
        reward_model.add_gate(after, policy.mesh, 0, {})
    with pytest.raises(ValueError, match="holds a policy: expected a reward_model"):
        reward_model.load(sft, policy.mesh)
    with pytest.raises(ValueError, match="has a gate, and no Hugging Face class holds one"):
        reward_model.export(gated, policy.mesh, tmp_path / "out", *text)


def test_heldout_pairs_by_domain(monkeypatch):
    """Accuracy of pairs whose scores are given: ties are wrong, domains apart."""
    graded = [
        SimpleNamespace(example={"kind": k}, responses=("a", "b"), grades=((1.0,), (0.0,)))
        for k in ("helpful", "helpful", "safety")
    ]
    scores = np.array([[2.0], [1.0], [0.0], [0.0], [0.0], [3.0]])
    monkeypatch.setattr(reward_model, "output_all", lambda *_: scores)
    model = SimpleNamespace(objectives=())
    found = stage.quality(graded, None, None, model, "ranks", 2)  # pyright: ignore
    assert found["pair_accuracy"]["mean"] == pytest.approx(1 / 3)
    assert found["pair_accuracy/helpful"]["mean"] == 0.5
    assert found["pair_accuracy/safety"] == {"mean": 0.0, "stderr": 0.0, "n": 1}

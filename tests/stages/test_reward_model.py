"""Pairs one a row and packed, and updates of the reward model against the float64 decoder."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from posttrain_jax import optimizers, reward_model, train_state
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.pairs import one_a_row
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models.heads import HeadConfig
from posttrain_jax.policy import Text
from posttrain_jax.stages import reward_model as stage

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer("tiny")
    return Text(tokenizer, load_template("tiny", tokenizer))


@pytest.fixture(scope="module")
def pairs():
    """Four pairs of sequences of 1 to 6 tokens."""
    rng = np.random.default_rng(0)
    sizes = [(6, 3), (2, 5), (1, 4), (6, 6)]
    draw = lambda n: rng.integers(2, 32, n).astype(np.int32)  # noqa: E731
    return [(draw(a), draw(b)) for a, b in sizes]


def settings(**changes):
    """Settings of the stage that `check` and `find_layout` read."""
    plain = {"head": {}, "span": "whole", "length": 6, "row_length": 0, "pairs_per_step": 4,
             "microbatches": 1}  # fmt: skip
    return ConfigDict(plain | changes)


def start(small, head, optimizer):
    """A fresh state, whose backbone may be donated."""
    backbone = jax.tree.map(jnp.copy, small.params)
    params = reward_model.add_head(small.model, backbone, small.mesh, 0, head)
    return train_state.init_state(params, optimizer)


def test_loss_and_accuracy_of_an_update(small, hidden_float64, text, pairs):
    optimizer = optimizers.make_optimizer()
    state, layout = start(small, HeadConfig(), optimizer), one_a_row(6, 2)
    weight = np.float64(state.params["head"]["weight"][:, 0])
    update = stage.make_update(small.model, optimizer, layout, margin=0.2)
    batch = stage.place(small.mesh, pairs[:2], layout, text)
    gaps = [np.subtract(*(
        hidden_float64(small.exact, small.model.config, tokens)[-1] @ weight for tokens in pair
    )) for pair in pairs[:2]]  # fmt: skip
    state, metrics = update(state, batch, jnp.float32(1e-2))
    expected = sum(math.log1p(math.exp(0.2 - gap)) for gap in gaps) / 2
    assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-4)
    assert float(metrics["pair_accuracy"]) == sum(gap > 0 for gap in gaps) / 2
    for _ in range(10):
        state, metrics = update(state, batch, jnp.float32(1e-2))
    assert float(metrics["pair_accuracy"]) == 1.0
    assert float(metrics["loss"]) < expected / 2


def test_packing_and_microbatches_change_no_update(small, text, pairs):
    """One step of descent is linear in the gradient: its errors stay as small as they are."""
    found, descent, shapes = [], optax.trace(decay=0.0), set()
    for changes in ({}, {"microbatches": 2}, {"row_length": 21, "microbatches": 2}):
        config = settings(head={"layers": 2}, **changes)
        head = stage.check(config)
        layout = stage.find_layout(config, small.mesh, pairs, [[3, 0, 2, 1], [0, 0, 0, 0]])
        shapes.add(layout)
        update = stage.make_update(
            small.model, descent, layout, margin=0.1, microbatches=config.microbatches
        )
        batch = stage.place(small.mesh, [pairs[i] for i in (3, 0, 2, 1)], layout, text)
        state, metrics = update(start(small, head, descent), batch, jnp.float32(1.0))
        found.append((state.params, metrics))
    assert {(s.rows, s.sequences) for s in shapes} == {(8, 1), (2, 4)}
    (params, metrics), *others = found
    assert float(metrics["grad_norm"]) > 1e-2
    for other, its in others:
        assert {k: float(v) for k, v in its.items()} == pytest.approx(
            {k: float(v) for k, v in metrics.items()}, abs=1e-4
        )
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"outputs": 2}}, r"head\.outputs=2: a reward model of pairs has 1"),
        ({"span": "summary"}, "span='summary': expected one of whole, thought, answer"),
        ({"microbatches": 3}, "microbatches=3 does not divide pairs_per_step=4"),
        ({"row_length": 11}, "row_length=11 can't hold .* length=6 tokens: at least 12, or 0"),
    ],
)
def test_settings_that_can_not_be(changes, message):
    with pytest.raises(ValueError, match=message):
        stage.check(settings(**changes))


def test_pairs_of_examples(tmp_path, text):
    config = ConfigDict({"seed": 0, "length": 48, "span": "whole"})
    data = {"pairs": {"tasks": {"chat": 1.0, "safety": 1.0}, "count": 4}}
    pairs, cut = stage.encode_pairs(config, {}, text, data)
    assert (len(pairs), cut) == (4, 0)
    for example, pair in zip(load_examples(data, {}, 0), pairs, strict=True):
        for key, tokens in zip(("chosen", "rejected"), pair, strict=True):
            assert example[key] in text.tokenizer.decode(tokens.tolist())
    path = tmp_path / "one.jsonl"
    path.write_text('{"id": "x", "prompt": "hi", "chosen": "yes"}\n')
    with pytest.raises(ValueError, match="example 'x' has no chosen and rejected response"):
        stage.encode_pairs(config, {}, text, {"file": {"path": str(path)}})

"""Pairs side by side, and one update of the reward model against the float64 decoder."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax import reward_model, train_state
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.policy import Text
from posttrain_jax.stages import reward_model as stage

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_loss_and_accuracy_of_an_update(small, hidden_float64):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 32, (4, 6)).astype(np.int32)
    segments = (np.arange(6) < np.array([[6], [3], [2], [5]])).astype(np.int32)
    order = np.array([2, 3, 0, 1])  # the second pair, then the first
    backbone = jax.tree.map(jnp.copy, small.params)
    params = reward_model.add_head(small.model, backbone, small.mesh, seed=0)
    weight = np.float64(params["head"]["weight"])
    scores = [
        hidden_float64(small.exact, small.model.config, t[s > 0])[-1] @ weight
        for t, s in zip(tokens, segments, strict=True)
    ]
    gaps = [scores[0] - scores[1], scores[2] - scores[3]]
    optimizer = train_state.make_optimizer()
    update = stage.make_update(small.model, optimizer, margin=0.2)
    state = train_state.init_state(params, optimizer)
    batch = stage.place(small.mesh, tokens, segments, order)
    np.testing.assert_array_equal(batch[0], tokens[order])
    state, metrics = update(state, *batch, jnp.float32(1e-2))
    expected = sum(math.log1p(math.exp(0.2 - gap)) for gap in gaps) / 2
    assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-4)
    assert float(metrics["pair_accuracy"]) == sum(gap > 0 for gap in gaps) / 2
    for _ in range(10):
        state, metrics = update(state, *batch, jnp.float32(1e-2))
    assert float(metrics["pair_accuracy"]) == 1.0
    assert float(metrics["loss"]) < expected / 2


def test_chosen_and_rejected_alternate(tmp_path):
    tokenizer = load_tokenizer("tiny")
    text = Text(tokenizer, load_template("tiny", tokenizer))
    config = ConfigDict({"seed": 0, "length": 48, "span": "whole"})
    data = {"pairs": {"tasks": {"chat": 1.0, "safety": 1.0}, "count": 4}}
    tokens, segments, cut = stage.encode_pairs(config, {}, text, data)
    assert (len(tokens), cut) == (8, 0)
    for i, example in enumerate(load_examples(data, {}, 0)):
        for row, key in ((2 * i, "chosen"), (2 * i + 1, "rejected")):
            assert example[key] in tokenizer.decode(tokens[row][segments[row] > 0].tolist())
    path = tmp_path / "one.jsonl"
    path.write_text('{"id": "x", "prompt": "hi", "chosen": "yes"}\n')
    with pytest.raises(ValueError, match="example 'x' has no chosen and rejected response"):
        stage.encode_pairs(config, {}, text, {"file": {"path": str(path)}})

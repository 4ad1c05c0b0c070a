"""Pretraining's curriculum, documents and probes."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax.data import corpus
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.stages import pretrain
from posttrain_jax.stages.pretrain import Place, advance, rate

CONFIG = ConfigDict({
    "curriculum": {
        "a": {"mix": {"table": 1.0}, "until": ("lookup",)},
        "b": {"mix": {"problem": 1.0}, "steps": 3},
        "c": {"mix": {"problem": 1.0}, "steps": 10},
    },
    "check_every": 5, "stop_at": 0.9, "max_steps": 40, "lr": 1.0, "lr_end_ratio": 0.1,
    "warmup": 4, "seed": 0, "batch_size": 2, "length": 64, "probes": 36,
})  # fmt: skip
PARTS = [CONFIG.curriculum[name] for name in "abc"]
GOOD = {"lookup/x": 0.99, "lookup/y": 0.82, "step/x": 0.1}  # lookup: 0.905 over the tasks
BAD = {"lookup/x": 0.99, "lookup/y": 0.80, "step/x": 1.0}


@pytest.mark.parametrize(
    ("place", "step", "found", "expected"),
    [
        (Place(0, 0), 5, GOOD, Place(1, 5)),
        (Place(0, 0), 5, BAD, Place(0, 0)),
        (Place(0, 0), 6, GOOD, Place(0, 0)),  # no probes were asked at this step
        (Place(0, 0), 40, BAD, Place(2, 40)),  # out of steps: to the last part
        (Place(1, 5), 7, BAD, Place(1, 5)),
        (Place(1, 5), 8, BAD, Place(2, 8)),
        (Place(2, 8), 17, BAD, Place(2, 8)),
        (Place(2, 8), 18, BAD, Place(3, 18)),
    ],
)
def test_when_a_part_is_over(place, step, found, expected):
    assert advance(CONFIG, PARTS, place, step, found) == expected


def test_the_rate_warms_up_stays_and_decays_in_the_last_part():
    early = [rate(CONFIG, PARTS, Place(0, 0), step) for step in (0, 1, 3, 4, 30)]
    assert early == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0])
    late = [rate(CONFIG, PARTS, Place(2, 8), 8 + done) for done in (0, 5, 10)]
    assert late == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        ({"a": {"mix": {}}}, "curriculum.a needs one of until and steps"),
        ({"a": {"until": (), "steps": 3}}, "curriculum.a needs one of until and steps"),
        ({"a": {"steps": 3}, "b": {"until": ("lookup",)}}, "the last part of the curriculum"),
        ({}, "the last part of the curriculum needs steps"),
    ],
)
def test_a_curriculum_that_can_not_be_followed(curriculum, message):
    with pytest.raises(ValueError, match=message):
        pretrain.check_curriculum(ConfigDict({"curriculum": curriculum}))


def test_documents_are_a_function_of_seed_and_step():
    make = functools.partial(pretrain.document_rows, CONFIG, load_tokenizer("tiny"))
    rows = make({"table": 1.0}, 5)
    assert rows.tokens.shape == (10, 64)  # five steps of two rows
    assert (rows.segments > 0).mean() > 0.8
    np.testing.assert_array_equal(make({"table": 1.0}, 5).tokens, rows.tokens)
    assert not np.array_equal(make({"table": 1.0}, 10).tokens, rows.tokens)


def test_a_probe_asks_for_the_token_after_its_prefix():
    tokenizer = load_tokenizer("tiny")
    probes, tokens, places = pretrain.encode_probes(CONFIG, tokenizer)
    for probe, row, (last, following) in zip(probes, tokens, places, strict=True):
        assert tokenizer.decode(row[: last + 1].tolist()) == probe.prefix
        assert probe.target.startswith(tokenizer.decode([int(following)]))
        assert (row[last + 1 :] == tokenizer.pad_id).all()


def test_answers_are_those_of_the_likeliest_token(small, logp_float64):
    """Random prefixes; every other target is the float64 decoder's answer."""
    rng = np.random.default_rng(0)
    probes, places = [], np.zeros((8, 2), np.int32)
    tokens = rng.integers(1, 32, (8, 12)).astype(np.int32)
    for i in range(8):
        probes.append(corpus.Probe("", "", "lookup" if i < 4 else "step", "x"))
        last = int(rng.integers(0, 12))
        logp = logp_float64(small.exact, small.model.config, tokens[i, : last + 1])[-1]
        order = np.argsort(-logp)
        places[i] = last, order[0 if i < 4 and i != 2 else 1]
    with jax.set_mesh(small.mesh):
        found = pretrain.answer_probes(
            small.model, small.params, (probes, tokens, places), small.mesh
        )
    assert found == {"lookup/x": 0.75, "step/x": 0.0}

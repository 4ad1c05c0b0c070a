"""The front of four evaluations, worked out by hand, and settings that don't fit."""

import pytest
from ml_collections import ConfigDict

from posttrain_jax import artifacts
from posttrain_jax.api import Artifact
from posttrain_jax.stages import pareto

FIGURES = {"a": (0.9, 30.0), "b": (0.8, 10.0), "c": (0.7, 20.0), "d": (0.2, 8.0)}


@pytest.fixture
def compare(tmp_path):
    """`(**settings) -> metrics` of a front over FIGURES."""

    def run(**settings):
        inputs = {
            role: Artifact(f"eval_{role}", "evaluate", "0" * 64, tmp_path, {
                "pass@1": {"mean": right, "stderr": 0.01, "n": 10},
                "length": {"mean": length, "stderr": 0.5, "n": 10},
            })
            for role, (right, length) in FIGURES.items()
        }  # fmt: skip
        given = {"objectives": ("pass@1", "-length"), "origin": (0.0, 40.0), "series": {}}
        hashes = {"tokenizer_hash": "", "template_hash": "", "code": ""}
        record = artifacts.Record("front", "pareto", "1" * 64, config={}, inputs={}, **hashes)
        folder = tmp_path / "front-1"
        artifacts.prepare(folder, record)
        pareto.run(ConfigDict(given | settings), folder, inputs)
        artifacts.seal(folder)
        return artifacts.load(folder).metrics

    return run


def test_less_of_the_second_is_better(compare):
    metrics = compare(series={"left": ("a", "b"), "right": ("c", "d")})
    front = {role: metrics[f"on_front/{role}"]["mean"] for role in FIGURES}
    assert front == {"a": 1, "b": 1, "c": 0, "d": 1}
    assert metrics["first/a"] == {"mean": 0.9, "stderr": 0.01, "n": 10}
    # 40 tokens saved are the most: a 10, b 30, c 20, d 32.
    assert metrics["hypervolume/left"]["mean"] == pytest.approx(0.9 * 10 + 0.8 * 20)
    assert metrics["hypervolume/right"]["mean"] == pytest.approx(0.7 * 20 + 0.2 * 12)
    assert metrics["hypervolume"]["mean"] == pytest.approx(0.9 * 10 + 0.8 * 20 + 0.2 * 2)


def test_settings_that_do_not_fit(compare):
    with pytest.raises(ValueError, match="two metrics"):
        compare(objectives=("pass@1",))
    with pytest.raises(ValueError, match=r"'reward' is no metric of the input 'a'.*pass@1"):
        compare(objectives=("pass@1", "reward"))
    with pytest.raises(ValueError, match=r"series.left names \['e'\]"):
        compare(series={"left": ("a", "e")})

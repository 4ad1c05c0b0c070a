"""Stage defaults and overrides: types are kept, unknown keys raise with the nearest name."""

import pytest
from ml_collections import ConfigDict

from posttrain_jax import settings
from posttrain_jax.recipe import RecipeError

STAGE = """import jax_that_does_not_exist
DEFAULTS = {
    "steps": ..., "lr": 1e-4, "decay": None, "on": True, "name": "a", "sizes": (1, 2),
    "sampling": {"temperature": 1.0, "top_k": 0}, "loss": {},
}
"""


@pytest.fixture
def package(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "train.py").write_text(STAGE)
    (tmp_path / "stages" / "bare.py").write_text("def run(config, workdir, inputs): ...\n")
    settings.stage_defaults.cache_clear()
    return tmp_path


def resolve(package, stage, *overrides):
    config = ConfigDict({"stages": {"a": {"kind": "train", **stage}}, "order": ("a",), "seed": 0})
    return settings.resolve(config, overrides, package)["stages"]["a"]


def test_defaults_are_read_without_importing_and_filled_in(package):
    stage = resolve(package, {"steps": 3, "sampling": {"top_k": 5}, "loss": {"name": "grpo"}})
    assert stage == {
        "kind": "train", "steps": 3, "lr": 1e-4, "decay": None, "on": True, "name": "a",
        "sizes": (1, 2), "sampling": {"temperature": 1.0, "top_k": 5}, "loss": {"name": "grpo"},
    }  # fmt: skip


def test_a_stage_without_defaults_takes_any_key(package):
    config = ConfigDict({"stages": {"a": {"kind": "bare", "x": 1}}, "order": ("a",)})
    assert settings.resolve(config, (), package)["stages"]["a"] == {"kind": "bare", "x": 1}


def test_a_stage_can_have_the_defaults_of_another(package):
    (package / "stages" / "again.py").write_text('DEFAULTS = "train"\n')
    config = ConfigDict({"stages": {"a": {"kind": "again", "steps": 3}}, "order": ("a",)})
    again = settings.resolve(config, (), package)["stages"]["a"]
    assert again == {**resolve(package, {"steps": 3}), "kind": "again"}


def test_a_stage_can_add_to_the_defaults_of_another(package):
    more = 'DEFAULTS = ("train", {"k": 7, "lr": 2.0})\n'
    (package / "stages" / "more.py").write_text(more)
    config = ConfigDict({"stages": {"a": {"kind": "more", "steps": 3}}, "order": ("a",)})
    stage = settings.resolve(config, ["stages.a.k=8"], package)["stages"]["a"]
    expected = {**resolve(package, {"steps": 3}), "kind": "more", "k": 8, "lr": 2.0}
    assert stage == expected
    config.stages.a.q = 1
    with pytest.raises(RecipeError, match=r"stages.a.q: no such setting.*k, loss, lr, name"):
        settings.resolve(config, (), package)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({}, "stages.a.steps is not set"),
        ({"steps": 1, "lrr": 1.0}, r"stages.a.lrr: no such setting\. Did you mean 'lr'\?"),
        ({"steps": 1, "sampling": {"topk": 5}}, r"stages.a.sampling.topk.*Did you mean 'top_k'\?"),
        ({"steps": 1, "sampling": 3}, "expected a dict of settings"),
        ({"steps": 1, "lr": "fast"}, "'fast'; expected float"),
        ({"steps": 1, "on": 1}, "expected bool"),
    ],
)
def test_a_recipes_mistakes_are_named(package, stage, message):
    with pytest.raises(RecipeError, match=message):
        resolve(package, stage)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("--config.stages.a.lr=1e-6", "lr", 1e-6),
        ("--config.stages.a.lr=1", "lr", 1.0),
        ("--config.stages.a.steps=1e3", "steps", 1000),
        ("--config.stages.a.on=false", "on", False),
        ("--config.stages.a.name=1e-3", "name", "1e-3"),
        ("--config.stages.a.decay=0.5", "decay", 0.5),
        ("--config.stages.a.decay=cosine", "decay", "cosine"),
        ("--config.stages.a.sizes=4,5,6", "sizes", (4, 5, 6)),
        ("--config.stages.a.sizes=[7]", "sizes", (7,)),
        ("--config.stages.a.sampling.top_k=9", "sampling", {"temperature": 1.0, "top_k": 9}),
        ("--config.stages.a.loss.beta=0.1", "loss", {"beta": 0.1}),
    ],
)
def test_overrides_keep_the_type(package, override, key, value):
    got = resolve(package, {"steps": 1, "loss": {"beta": 0.0}}, override)[key]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.stages.a.lrr=1", r"Did you mean 'stages.a.lr'\?"),
        ("--config.stages.b.lr=1", r"Did you mean 'stages.a'\? There are: stages.a\."),
        ("--config.sed=1", r"Did you mean 'seed'\?"),
        ("--config.seed.x=1", "no such setting"),
        ("--config.stages.a.lr=fast", "'fast'; expected float"),
        ("--config.stages.a.steps=1.5", "1.5; expected int"),
        ("--config.stages.a.on=yes", "expected true or false"),
        ("--config.stages.a.sampling=1", r"is a group of settings \(temperature, top_k\)"),
        ("--config.seed", "expected --config.key=value"),
    ],
)
def test_a_wrong_override_is_named(package, override, message):
    with pytest.raises(RecipeError, match=message):
        resolve(package, {"steps": 1}, override)


def test_order_can_be_overridden():
    config = ConfigDict({"stages": {"a": {}, "b": {}}, "order": ("a", "b")})
    assert settings.resolve(config, ["--config.order=b"])["order"] == ("b",)

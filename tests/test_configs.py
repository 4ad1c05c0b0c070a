"""Every recipe of every preset builds; the tiny ones take two steps of every stage."""

import importlib.util
from pathlib import Path

import pytest

from posttrain_jax import artifacts, pipeline
from posttrain_jax.plan import make_plan
from posttrain_jax.recipe import missing
from posttrain_jax.settings import load_recipe

CONFIGS = Path(__file__).parent.parent / "configs"


def presets():
    """(recipe file, preset) of all recipes."""
    for path in sorted(CONFIGS.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from ((path.name, preset) for preset in module.PRESETS)


ALL = list(presets())
TINY = [name for name, preset in ALL if preset == "tiny"]


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_every_preset_builds_and_its_batches_divide(name, preset):
    config, _ = load_recipe(f"{name}:{preset}")
    plan = make_plan(config, [])
    assert [stage["name"] for stage in plan["stages"]] == list(config["order"])
    assert not [problem for stage in plan["stages"] for problem in stage["problems"]]


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_every_model_family_of_a_recipe_is_there(name, preset):
    config, _ = load_recipe(f"{name}:{preset}")
    assert missing(config) == []


def shortened(name):
    """Overrides that make each stage of a tiny recipe take two steps."""
    config, _ = load_recipe(f"{name}:tiny")
    for stage, settings in config["stages"].items():
        prefix = f"stages.{stage}"
        if settings["kind"] == "pretrain":
            yield from (f"{prefix}.max_steps=2", f"{prefix}.check_every=2")
            yield f"{prefix}.curriculum.2_web.steps=2"
        if settings["kind"] in ("sft", "distill", "reward_model"):
            yield f"{prefix}.steps=2"
        if settings["kind"] == "rl":
            yield from (f"{prefix}.steps=2", f"{prefix}.reference_every=2")
            yield from (f"{prefix}.rollout_size=32", f"{prefix}.batch_size=16")
        if settings["kind"] in ("evaluate", "generate"):
            yield from (f"{prefix}.samples=2", f"{prefix}.batch_size=16")
            yield from (
                f"{prefix}.data.{source}.count=16"
                for source, data in settings["data"].items()
                if "tasks" in data
            )
        if settings["kind"] == "reject":
            yield from (f"{prefix}.keep.{score}=0.0" for score in settings["keep"])


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", TINY)
def test_tiny_recipes_take_two_steps_of_every_stage(name, tmp_path, monkeypatch):
    # An untrained policy finishes few samples: keep the unfinished, so that all stages have data.
    monkeypatch.setattr(
        "posttrain_jax.stages.reject._refused", lambda row, keep: "forged" * row["forged"]
    )
    config, _ = load_recipe(f"{name}:tiny", shortened(name))
    stages = pipeline.run_recipe(config, tmp_path, say=lambda line: None)
    assert [stage.status for stage in stages] == ["done"] * len(config["order"])
    assert all(artifacts.is_done(stage.folder(tmp_path)) for stage in stages)


def test_recipes_share_the_stages_that_one_store_should_share():
    recipes = {name: load_recipe(f"{name}:tiny")[0]["stages"] for name in TINY}
    assert recipes["r1.py"]["base"] == recipes["r1_zero.py"]["base"]
    for stage in ("base", "cold_start", "reasoning_rl", "student_base"):
        assert recipes["r1.py"][stage] == recipes["r1_distill.py"][stage]

"""Every recipe of every preset builds; the tiny ones take two steps of every stage."""

import importlib.util
from pathlib import Path

import pytest

from posttrain_jax import artifacts, pipeline
from posttrain_jax.plan import make_plan
from posttrain_jax.recipe import missing
from posttrain_jax.settings import load_recipe
from posttrain_jax.stages import generate

CONFIGS = Path(__file__).parent.parent / "configs"


def presets():
    """(recipe file, preset) of all recipes."""
    for path in sorted(CONFIGS.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from ((path.name, preset) for preset in module.PRESETS)


ALL = list(presets())
TINY = [(name, preset) for name, preset in ALL if preset in ("tiny", "dpo_ppo", "tiny_online_rlhf")]
TWO_STEPS = (
    "sft", "distill", "reward_model", "process_reward", "preference", "kto", "on_policy_distill",
)  # fmt: skip
SECOND_ROUND = "eval_policy_2"
"""The last stage of a recipe of rounds that is run: later rounds are the same stages again."""


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


def shortened(name, preset):
    """Overrides that make each stage of a tiny recipe take two steps, on two samples a prompt."""
    config, _ = load_recipe(f"{name}:{preset}")
    for stage, settings in config["stages"].items():
        prefix = f"stages.{stage}"
        if settings["kind"] == "pretrain":
            yield from (f"{prefix}.max_steps=2", f"{prefix}.check_every=2")
            yield f"{prefix}.curriculum.2_web.steps=2"
        if settings["kind"] in TWO_STEPS:
            yield f"{prefix}.steps=2"
            if settings.get("epochs"):
                yield f"{prefix}.epochs=0.0"
        if settings["kind"] == "rl":
            updates = 2 * settings["inner_epochs"]
            yield from (f"{prefix}.steps={updates}", f"{prefix}.rollout_size=32")
            yield f"{prefix}.batch_size=16"
            if settings["reference_every"]:
                yield f"{prefix}.reference_every={updates}"
        if settings["kind"] == "on_policy_distill":
            yield f"{prefix}.rollout_size=16"
        if settings["kind"] in ("evaluate", "generate", "step_labels"):
            yield from (f"{prefix}.samples=2", f"{prefix}.batch_size=16")
        if settings["kind"] == "rerank":
            yield f"{prefix}.sizes=(1, 2)"
        if settings["kind"] == "reject":
            yield from (f"{prefix}.keep.{score}=0.0" for score in settings["keep"])
        yield from fewer_rows(prefix, settings)
    if SECOND_ROUND in config["order"]:
        order = config["order"][: config["order"].index(SECOND_ROUND) + 1]
        yield f"order={','.join(order)}"


def fewer_rows(prefix, settings):
    """Overrides that leave 16 prompts to sample for, and later stages rows among the samples."""
    for part in ("data", "heldout"):
        for source, data in settings.get(part, {}).items():
            where = f"{prefix}.{part}.{source}"
            if "tasks" in data and settings["kind"] in ("evaluate", "generate"):
                yield f"{where}.count=16"
            if "input" in data:
                yield from (f"{where}.{key}=16" for key in ("count", "skip") if data.get(key))


@pytest.fixture
def untrained(monkeypatch):
    """Samples as a trained policy's, every other one right: an untrained one finishes few."""

    def score(*args, **more):
        rows = graded(*args, **more)
        for row in rows:
            row["scores"] |= {"accuracy": float(row["sample"] % 2)}
        return [row | {"finished": True} for row in rows]

    graded = generate.score
    monkeypatch.setattr(generate, "score", score)


def quick_or_slow(name, preset):
    """The recipes of many stages, each of which compiles, take minutes."""
    marks = () if name.startswith("r1") else pytest.mark.slow
    return pytest.param(name, preset, marks=marks)


@pytest.mark.usefixtures("quick_compile", "untrained")
@pytest.mark.parametrize(("name", "preset"), [quick_or_slow(*recipe) for recipe in TINY])
def test_tiny_recipes_take_two_steps_of_every_stage(name, preset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "posttrain_jax.stages.reject._refused", lambda row, keep: "forged" * row["forged"]
    )
    config, _ = load_recipe(f"{name}:{preset}", shortened(name, preset))
    stages = pipeline.run_recipe(config, tmp_path, say=lambda line: None)
    assert [stage.status for stage in stages] == ["done"] * len(config["order"])
    assert all(artifacts.is_done(stage.folder(tmp_path)) for stage in stages)


def test_recipes_share_the_stages_that_one_store_should_share():
    recipes = {name: load_recipe(f"{name}:tiny")[0]["stages"] for name, _ in TINY}
    for name in (
        "r1_zero.py", "tulu3.py", "llama3.py", "iterative_dpo.py", "qwen25_math.py", "qwen3.py",
        "qwq.py",
    ):  # fmt: skip
        assert recipes["r1.py"]["base"] == recipes[name]["base"]
    assert recipes["r1.py"]["student_base"] == recipes["qwen3.py"]["student_base"]
    for stage in ("base", "cold_start", "reasoning_rl", "student_base"):
        assert recipes["r1.py"][stage] == recipes["r1_distill.py"][stage]

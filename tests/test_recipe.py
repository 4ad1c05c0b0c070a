"""Finding, loading and validating recipes; every error names what was expected."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from posttrain_jax import recipe
from posttrain_jax.recipe import RecipeError

RECIPE = '''"""A recipe for tests."""
from ml_collections import ConfigDict
from posttrain_jax.recipe import preset

PRESETS = ("tiny", "671b")

def get_config(arg=""):
    return ConfigDict({"preset": preset(arg, choices=PRESETS), "stages": {}, "order": ()})
'''


def graph(**stages):
    """A resolved config with these stages, in this order."""
    return {"mesh": {}, "order": tuple(stages), "stages": stages}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    return tmp_path


def test_a_recipe_is_found_with_and_without_suffix_and_argument(folder):
    assert recipe.find_recipe("mine.py:tiny") == (folder / "mine.py", "tiny")
    assert recipe.find_recipe("mine") == (folder / "mine.py", "")
    assert recipe.find_recipe(f"{folder}/mine:671b") == (folder / "mine.py", "671b")


def test_the_working_folder_hides_an_installed_recipe(folder, tmp_path, monkeypatch):
    installed = tmp_path / "installed"
    installed.mkdir()
    for name in ("mine.py", "other.py"):
        (installed / name).write_text(RECIPE)
    monkeypatch.setattr(recipe, "configs_folder", lambda: installed)
    assert recipe.find_recipe("mine")[0] == folder / "mine.py"
    assert recipe.find_recipe("other")[0] == installed / "other.py"
    assert [path.parent for path in recipe.recipe_paths()] == [folder, installed]


def test_an_unknown_recipe_lists_those_there_are(folder):
    with pytest.raises(RecipeError, match=r"no recipe 'mien'.*Did you mean 'mine.py'\?.*mine.py"):
        recipe.find_recipe("mien")


def test_an_unknown_preset_says_which_there_are(folder):
    with pytest.raises(RecipeError, match=r"'tinny'\. Did you mean 'tiny'\? There are: tiny, 671b"):
        recipe.read_recipe(folder / "mine.py", "tinny")


def test_reading_fills_in_the_top_level(folder):
    config = recipe.read_recipe(folder / "mine.py")
    assert (config.recipe, config.preset, config.seed) == ("mine", "tiny", 0)
    assert config.mesh.to_dict() == {"data": 1, "fsdp": -1, "tensor": 1, "expert": 1, "context": 1}


def test_an_unknown_top_level_key_is_refused(folder):
    (folder / "odd.py").write_text(RECIPE.replace('"stages": {}', '"stages": {}, "sede": 1'))
    with pytest.raises(RecipeError, match=r"unknown top-level key 'sede'\. Did you mean 'seed'"):
        recipe.read_recipe(folder / "odd.py")


def test_a_file_without_get_config_is_refused(folder):
    (folder / "empty.py").write_text("x = 1\n")
    with pytest.raises(RecipeError, match="has no function get_config"):
        recipe.read_recipe(folder / "empty.py")
    assert Path(folder / "empty.py") not in recipe.recipe_paths()


def test_describe_reads_presets_and_summary(folder):
    found = recipe.describe(folder / "mine.py")
    assert (found.presets, found.summary) == (("tiny", "671b"), "A recipe for tests.")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (graph(), "`order` is empty"),
        ({**graph(a={"kind": "sft"}), "order": ("b",)}, "'b', which `stages` does not have"),
        ({**graph(a={"kind": "sft"}), "order": ("a", "a")}, "'a' twice"),
        (graph(a={"kind": "stf"}), r"'stf'\. Did you mean 'sft'\?"),
        (graph(a={"kind": "sft", "inputs": {"policy": "b"}}, b={"kind": "sft"}), "comes later"),
        (graph(a={"kind": "sft", "inputs": {"policy": "x"}}), "is not in `order`"),
        ({**graph(a={"kind": "sft"}), "mesh": {"tensr": 2}}, r"Did you mean 'tensor'\?"),
    ],
)
def test_a_broken_stage_graph_is_named(config, message):
    with pytest.raises(RecipeError, match=message):
        recipe.validate(config, kinds=["sft", "rl"])


def test_stages_that_will_not_run_are_reported():
    config = {**graph(a={"kind": "sft"}, b={"kind": "rl"}), "order": ("a",)}
    assert recipe.validate(config, ["sft", "rl"]) == [
        "stage 'b' is not in `order` and will not run"
    ]


def test_what_is_given_counts_as_an_earlier_stage():
    config = graph(tuned={"kind": "sft", "inputs": {"policy": "base"}})
    with pytest.raises(RecipeError, match="'base', which is not in `order`"):
        recipe.validate(config, ["sft"])
    assert recipe.validate(config, ["sft"], given=("base",)) == []


def test_missing_names_families_without_a_file(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama.py").touch()
    config = graph(
        a={"kind": "sft", "model": "llama:8b"},
        b={"kind": "sft", "teacher": {"model": "lama:8b"}},
    )
    assert recipe.missing(config, tmp_path) == [
        "stage 'b' needs the model 'lama:8b', and the file posttrain_jax/models/lama.py "
        "does not exist yet. Did you mean 'llama'?"
    ]
    with pytest.raises(RecipeError, match="expected family:size"):
        recipe.missing(graph(a={"kind": "sft", "model": "llama"}), tmp_path)


def test_stage_config_merges_the_shared_keys_and_the_stages_own_win():
    config = {
        **graph(a={"kind": "sft", "seed": 7}, b={"kind": "sft"}),
        "seed": 1,
        "tokenizer": "tiny",
        "tokenizer_options": {},
        "chat_template": "tiny",
        "template_options": {"date": "2026-01-01"},
        "mesh": {"fsdp": 2},
    }
    a, b = recipe.stage_config(config, "a"), recipe.stage_config(config, "b")
    assert isinstance(a, ConfigDict)
    assert (a.seed, b.seed, b.tokenizer, b.mesh.fsdp) == (7, 1, "tiny", 2)
    assert a.template_options.date == "2026-01-01"
    with pytest.raises(AttributeError, match="locked"):
        a.typo = 1

"""Recipes: files with `get_config(arg) -> ConfigDict`, found by name and loaded by path.

A recipe's config has the top-level keys `recipe`, `preset`, `seed`, `tokenizer`, `chat_template`
(each with options: `tokenizer_options`, `template_options`), `mesh`, `sources`, `notes`, a dict
`stages` by name and a tuple `order` (ConfigDict sorts its keys,
so the order of the dict means nothing). A stage has `kind` (a file of posttrain_jax/stages),
`inputs` (role -> earlier stage) and its settings.

Recipe files import only ml_collections, this module and recipe_parts.py, none of which imports jax.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

PACKAGE = Path(__file__).parent
MESH = {"data": 1, "fsdp": -1, "tensor": 1, "expert": 1, "context": 1}
"""Sizes of the mesh axes; -1 takes what is left."""
TOP_LEVEL: dict[str, Any] = {
    "recipe": "",
    "preset": "",
    "seed": 0,
    "tokenizer": "tiny",
    "tokenizer_options": {},
    "chat_template": "",
    "template_options": {},
    "mesh": MESH,
    "sources": "",
    "notes": "",
    "stages": {},
    "order": (),
}
TEXT = ("tokenizer", "tokenizer_options", "chat_template", "template_options")
COMMON = ("kind", "inputs", "seed", *TEXT, "mesh", "retokenize")
"""Keys that every stage may have, whatever its kind."""


class RecipeError(ValueError):
    """A recipe or a setting that can't be used; the message is all the user needs to see."""


class RecipeFile(NamedTuple):
    """A recipe as `posttrain ls` shows it."""

    name: str
    path: Path
    presets: tuple[str, ...]
    summary: str


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def preset(arg: str, default: str = "tiny", choices: Sequence[str] = ("tiny",)) -> str:
    """The preset that `arg` names, `default` when it is empty; for use in `get_config`.

    Raises:
      RecipeError: not one of `choices`.
    """
    name = arg or default
    if name not in choices:
        raise RecipeError(
            f"no preset {name!r}.{did_you_mean(name, choices)} There are: {', '.join(choices)}."
        )
    return name


def configs_folder() -> Path:
    """The folder of the recipes that come with the package, installed or in a source tree."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def recipe_paths(working: Path | None = None) -> list[Path]:
    """All recipe files: those of the working folder, then the installed ones they don't hide."""
    found: dict[str, Path] = {}
    for folder in (working or Path.cwd(), configs_folder()):
        for path in sorted(folder.glob("*.py")):
            if path.name[0] != "_" and "def get_config(" in path.read_text("utf-8", "replace"):
                found.setdefault(path.name, path)
    return list(found.values())


def find_recipe(spec: str, working: Path | None = None) -> tuple[Path, str]:
    """`"r1.py:tiny"` -> (path of r1.py, "tiny"); the suffix and the argument are optional.

    Looks in the working folder, then among the installed recipes.

    Raises:
      RecipeError: no such file; the message lists the recipes there are.
    """
    name, _, arg = spec.partition(":")
    for folder in (working or Path.cwd(), configs_folder()):
        for candidate in (folder / name, folder / f"{name}.py"):
            if candidate.is_file():
                return candidate, arg
    known = [path.name for path in recipe_paths(working)]
    raise RecipeError(
        f"no recipe {name!r} in {working or Path.cwd()} or {configs_folder()}."
        f"{did_you_mean(name.removesuffix('.py') + '.py', known)} "
        f"There are: {', '.join(known) or 'none'}."
    )


def load_module(path: Path) -> ModuleType:
    """Run a recipe file as a module of its own.

    Raises:
      RecipeError: not Python, or without `get_config`.
    """
    spec = importlib.util.spec_from_file_location(f"posttrain_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is not a Python file; a recipe is a .py file with get_config")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise RecipeError(f"{path} has no function get_config(arg); every recipe has one")
    return module


def read_recipe(path: Path, arg: str = "") -> ConfigDict:
    """Call `get_config(arg)` and add the top-level keys that it left out.

    Raises:
      RecipeError: not a ConfigDict, or a top-level key that no recipe has.
    """
    config = load_module(path).get_config(arg)
    if not isinstance(config, ConfigDict):
        raise RecipeError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict")
    given = config.to_dict()
    for key in given:
        if key not in TOP_LEVEL:
            raise RecipeError(
                f"{path}: unknown top-level key {key!r}.{did_you_mean(key, TOP_LEVEL)} "
                f"There are: {', '.join(TOP_LEVEL)}."
            )
    given["mesh"] = {**MESH, **given.get("mesh", {})}
    return ConfigDict({**TOP_LEVEL, "recipe": path.stem, "preset": arg or "default", **given})


def describe(path: Path) -> RecipeFile:
    """Name, presets (the file's PRESETS, the default first) and first docstring line."""
    module = load_module(path)
    lines = (module.__doc__ or "").strip().splitlines()
    return RecipeFile(
        path.name, path, tuple(getattr(module, "PRESETS", ("",))), lines[0] if lines else ""
    )


def stage_kinds(package: Path = PACKAGE) -> list[str]:
    """The kinds of stage there are: the file names of posttrain_jax/stages, none imported."""
    return _module_names(package / "stages")


def model_families(package: Path = PACKAGE) -> list[str]:
    """The file names of posttrain_jax/models, none imported."""
    return _module_names(package / "models")


def validate(
    config: Mapping[str, Any], kinds: Sequence[str] | None = None, given: Iterable[str] = ()
) -> list[str]:
    """Check the stage graph; returns remarks, such as stages that `order` leaves out.

    Args:
      kinds: the kinds of stage there are.
      given: names of artifacts that are there before the first stage.

    Raises:
      RecipeError: the first thing wrong, by name, with what was expected.
    """
    kinds = stage_kinds() if kinds is None else kinds
    if not config["order"]:
        raise RecipeError("the recipe's `order` is empty: it names the stages to run, in order")
    for axis in config["mesh"]:
        if axis not in MESH:
            raise RecipeError(
                f"mesh.{axis}: no such axis.{did_you_mean(axis, MESH)} "
                f"There are: {', '.join(MESH)}."
            )
    earlier = list(given)
    for name in config["order"]:
        _check_stage(config, name, earlier, kinds)
        earlier.append(name)
    unused = sorted(set(config["stages"]) - set(config["order"]))
    return [f"stage {name!r} is not in `order` and will not run" for name in unused]


def missing(config: Mapping[str, Any], package: Path = PACKAGE) -> list[str]:
    """What `run` would lack: model families that the stages name and no file implements.

    Raises:
      RecipeError: a model that is not `family:size`.
    """
    families = model_families(package)
    lacks = []
    for name in config["order"]:
        for key, spec in _model_specs(config["stages"][name]):
            family, colon, size = str(spec).partition(":")
            if not (family and colon and size):
                raise RecipeError(
                    f"stages.{name}.{key} is {spec!r}; expected family:size, as in 'llama:8b'"
                )
            if family not in families:
                lacks.append(
                    f"stage {name!r} needs the model {spec!r}, and the file "
                    f"posttrain_jax/models/{family}.py does not exist yet."
                    f"{did_you_mean(family, families)}"
                )
    return lacks


def stage_config(config: Mapping[str, Any], name: str) -> ConfigDict:
    """A stage's settings with the recipe's seed, tokenizer, chat_template and mesh merged in.

    The stage's own value wins where it sets one of these. The result is locked.
    """
    shared = {key: config[key] for key in ("seed", *TEXT)}
    own = config["stages"][name]
    merged = ConfigDict({**shared, "mesh": config["mesh"], "inputs": {}, **own})
    merged.lock()
    return merged


def _check_stage(
    config: Mapping[str, Any], name: str, earlier: list[str], kinds: Sequence[str]
) -> None:
    stages = config["stages"]
    if name not in stages:
        raise RecipeError(
            f"`order` names the stage {name!r}, which `stages` does not have."
            f"{did_you_mean(name, stages)} There are: {', '.join(stages)}."
        )
    if name in earlier:
        raise RecipeError(f"`order` names the stage {name!r} twice")
    stage = stages[name]
    kind = stage.get("kind", "")
    if kind not in kinds:
        raise RecipeError(
            f"stages.{name}.kind is {kind!r}.{did_you_mean(kind, kinds)} The kinds are the files "
            f"of posttrain_jax/stages: {', '.join(kinds)}."
        )
    for role, source in stage.get("inputs", {}).items():
        if source not in earlier:
            why = "comes later" if source in config["order"] else "is not in `order`"
            raise RecipeError(
                f"stages.{name}.inputs.{role} is {source!r}, which {why}."
                f"{did_you_mean(source, earlier)} Earlier stages: {', '.join(earlier) or 'none'}."
            )


def _model_specs(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _model_specs(value, f"{prefix}{key}.")
        elif key == "model" and value:
            yield prefix + key, value


def _module_names(folder: Path) -> list[str]:
    modules = [path.stem for path in folder.glob("*.py")]
    packages = [path.parent.name for path in folder.glob("*/__init__.py")]
    return sorted(name for name in modules + packages if name[0] != "_")

"""A file imports only lower floors; some import no jax, directly or not."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    0: ("api", "registry", "process", "files", "folders", "kernels"),
    1: ("mesh", "tree", "metrics", "artifacts", "model_card", "recipe", "recipe_parts", "settings",
        "interrupt", "data", "verifiers"),
    2: ("losses", "advantages"),
    3: ("models",),
    4: ("rollout", "train_state", "optimizers", "checkpoint", "policy", "conversations",
        "head_training", "reward_model", "process_reward", "rewards",
        "value_model", "nonfinite", "entropy_control", "teacher", "teacher_cache"),
    5: ("stages", "evals", "serve", "report"),
    6: ("main", "pipeline", "plan", "doctor", "runtime", "bench", "launch",
        "exchange", "evaluation", "verify"),
}  # fmt: skip
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
NO_JAX = (
    "api",
    "registry",
    "process",
    "files",
    "recipe",
    "recipe_parts",
    "settings",
    "artifacts",
    "verifiers",
    "verify",
)
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "grain", "tensorstore"}


@cache
def modules():
    """Module name below the package -> file, for every file of the tree."""
    found = {}
    for path in (ROOT / "posttrain_jax").glob("*"):
        if path.suffix == ".py" and path.stem != "__init__":
            found[path.stem] = path
        elif path.is_dir():
            for inner in path.rglob("*.py"):
                parts = inner.relative_to(ROOT / "posttrain_jax").with_suffix("").parts
                found[".".join(p for p in parts if p != "__init__")] = inner
    return found


def names_of(node):
    """The modules that an import statement may mean, absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def is_typing_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@cache
def imports(module, inside_functions=True):
    """(our modules, other top-level packages) that a module imports at run time."""
    ours, others = set(), set()
    todo = list(ast.parse(modules()[module].read_text("utf-8")).body)
    while todo:
        node = todo.pop()
        if is_typing_only(node):
            todo += node.orelse
            continue
        for name in names_of(node):
            if name.startswith("posttrain_jax."):
                inner = name.removeprefix("posttrain_jax.")
                # a package's __init__ runs too
                ours |= {m for m in (inner, inner.rpartition(".")[0]) if m in modules()}
            elif not name.startswith("posttrain_jax"):
                others.add(name.partition(".")[0])
        if inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)
    return frozenset(ours - {module}), frozenset(others)


def closure(module, inside_functions=True):
    """Everything that importing a module brings in: (our modules, other packages)."""
    seen, others, todo = set(), set(), [module]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            ours, packages = imports(current, inside_functions)
            others |= packages
            todo += [*ours, *([current.rpartition(".")[0]] if "." in current else [])]
    return seen, others


def test_every_part_of_the_package_has_a_floor():
    parts = {name.partition(".")[0] for name in modules()} - {"configs"}
    assert parts <= FLOOR.keys(), f"give these a floor: {sorted(parts - FLOOR.keys())}"


def test_a_file_imports_only_lower_floors():
    wrong = []
    for module in modules():
        part = module.partition(".")[0]
        for other in imports(module)[0]:
            below = other.partition(".")[0]
            if FLOOR.get(below, 0) > FLOOR.get(part, 0):
                wrong.append(f"{module} imports {other}, which is higher")
    assert not wrong, "\n".join(wrong)


def test_no_two_files_import_each_other():
    graph = {module: imports(module, False)[0] for module in modules()}
    packages = {module for module in graph if modules()[module].name == "__init__.py"}
    flat = {m: set(ours) - packages for m, ours in graph.items() if m not in packages}
    list(TopologicalSorter(flat).static_order())  # raises CycleError


@pytest.mark.parametrize("part", [*NO_JAX, "data.tasks"])
def test_these_parts_import_no_jax_directly_or_not(part):
    members = [m for m in modules() if m == part or m.startswith(part + ".")]
    assert members
    for member in members:
        assert not closure(member)[1] & HEAVY, member


@pytest.mark.parametrize("part", ["main", "metrics", "interrupt", "pipeline"])
def test_these_parts_import_jax_only_inside_functions(part):
    assert not closure(part, inside_functions=False)[1] & HEAVY


def test_importing_them_loads_no_jax():
    parts = [*NO_JAX, "data.tasks", "main", "metrics", "interrupt", "pipeline"]
    wanted = [m for m in modules() if any(m == p or m.startswith(p + ".") for p in parts)]
    code = "\n".join(
        ["import sys", *(f"import posttrain_jax.{module}" for module in wanted),
         f"print(sorted({HEAVY!r} & sys.modules.keys()))"]
    )  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stdout + run.stderr


def test_configs_import_only_ml_collections_and_recipe():
    for path in (ROOT / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for name in names_of(node):
                top = name.partition(".")[0]
                allowed = top in sys.stdlib_module_names or top == "ml_collections"
                inner = name in ("posttrain_jax",) or name.startswith("posttrain_jax.recipe")
                assert allowed or inner, f"{path.name} imports {name}"


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "posttrain_jax").glob("*.py")))
def test_no_module_is_named_like_one_of_the_standard_library(name):
    assert name not in sys.stdlib_module_names

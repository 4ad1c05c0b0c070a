"""Puzzles of reasoning-gym: the data set that made an entry scores the answer to it.

Source: the package reasoning-gym (Apache-2.0, the extra `logic`), `get_score_answer_fn`: over a
hundred generators of puzzles, each with a scorer from 0 to 1. The scorers read text, but nine of
them evaluate it as Python or through sympy's `parse_expr`, which does the same. A policy could
write a program into its answer, or the name of the scorer's variable that holds the reference. So
for these nine only an answer of plain literals, or of plain arithmetic, reaches the scorer. The
scorer of `game_of_life_halting` takes any text for its reference; here it has to be that text.
"""

import ast
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

from posttrain_jax.api import Verdict
from posttrain_jax.verifiers import tags

EVALUATE_LITERALS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Data sets that pass what isn't the reference to `eval` (reasoning-gym 0.1.25)."""
EVALUATE_FORMULAS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24",
     "simple_integration"}
)  # fmt: skip
"""Data sets that pass every answer to sympy's `parse_expr`."""
_COMPARE_TEXT = frozenset({"game_of_life_halting"})
_COMPARE_TUPLES = frozenset({"arc_agi", "rearc"})
_FUNCTIONS = frozenset(
    {"Abs", "acos", "acosh", "acot", "asin", "asinh", "atan", "atanh", "cos", "cosh", "cot", "csc",
     "erf", "exp", "ln", "log", "sec", "sin", "sinh", "sqrt", "tan", "tanh"}
)  # fmt: skip
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Load, ast.Constant,
    ast.Name, ast.Call,
)  # fmt: skip
_LONGEST = 20_000


def prepare(**_: Any) -> None:
    """Import the package, so that no item's deadline pays for it."""
    _package()


@lru_cache(maxsize=1)
def _package() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError as error:
        raise RuntimeError(
            f"the verifier reasoning_gym needs the package reasoning-gym ({error}): install "
            "posttrain_jax[logic]"
        ) from error
    return reasoning_gym


@lru_cache(maxsize=256)
def _scorer(dataset: str, config: str) -> Callable[[str, dict[str, Any]], float]:
    """The scorer of a data set with a configuration (JSON).

    Raises:
      ValueError: there is no such data set, or it has no such configuration.
    """
    package = _package()
    known = package.factory.DATASETS
    if dataset not in known or dataset == "composite":
        raise ValueError(
            f"example['dataset']={dataset!r}: expected a data set of reasoning-gym, one of "
            f"{', '.join(sorted(known.keys() - {'composite'}))}"
        )
    try:
        return package.create_dataset(dataset, **json.loads(config)).score_answer
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"example['config'] of {dataset}: {error}") from error


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    answer_tag: str = "answer",
    think_tag: str = "think",
) -> Verdict:
    """What the data set says of the answer; `pass` where that is 1.

    The answer is the last tagged one after the chain of thought, else all the text after it.

    Args:
      response: the completion.
      example: `dataset`, a name; `entry`, what the data set made, with its `answer` and `metadata`
        (JSON is enough); `config`, the data set's settings where its scorer needs them.
      answer_tag, think_tag: the names of the tags.

    Raises:
      KeyError: the example has no dataset or entry.
      TypeError, ValueError: they aren't what they should be, or the scorer fails on the entry.
      RuntimeError: the package isn't there.
    """
    name, entry = example["dataset"], _entry(example)
    judge = _scorer(name, json.dumps(example.get("config") or {}, sort_keys=True))
    answer = tags.answer(response, answer_tag, think_tag).strip()
    if not answer:
        return Verdict(0.0, "fail", "no answer found")
    if len(answer) > _LONGEST:
        return Verdict(0.0, "fail", f"the answer has more than {_LONGEST} characters")
    if name in EVALUATE_FORMULAS and not is_arithmetic(answer):
        return Verdict(0.0, "fail", "the answer is not a formula")
    if name in _COMPARE_TEXT:
        found = float(answer.casefold() == str(entry["answer"]).casefold())
    elif name in EVALUATE_LITERALS and is_program(answer):
        found = float(answer == entry["answer"])
    else:
        found = _judge(judge, answer, entry)
    return Verdict(found, "pass" if found == 1 else "fail", answer[:200])


def _entry(example: Mapping[str, Any]) -> dict[str, Any]:
    entry = example["entry"]
    if not isinstance(entry, Mapping):
        raise TypeError(f"example['entry'] is {type(entry).__name__}, expected an object")
    for field in ("answer", "metadata"):
        if field not in entry:
            raise KeyError(f"example['entry'] has no {field!r}; it has {sorted(entry)}")
    if example["dataset"] in _COMPARE_TUPLES:
        return {**entry, "metadata": _tuples(entry["metadata"])}
    return dict(entry)


def _tuples(value: Any) -> Any:
    """Lists as tuples all the way down, which JSON doesn't tell apart."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _judge(judge: Callable[..., float], answer: str, entry: dict[str, Any]) -> float:
    """The scorer's word; an answer that breaks it earns 0, unless the reference breaks it too."""
    try:
        return float(judge(answer, entry))
    except Exception:
        try:
            judge(entry["answer"], entry)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"example['entry'] breaks its data set's scorer: {said}") from error
        return 0.0


def _tree(text: str) -> ast.Expression | None:
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def is_program(text: str) -> bool:
    """Whether Python could evaluate a text to more than the literal that it is."""
    if _tree(text) is None:
        return False
    try:
        ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return True
    return False


def is_arithmetic(text: str) -> bool:
    """Whether a text is a formula of numbers, one-letter variables and elementary functions."""
    tree = _tree(text)
    return tree is not None and all(map(_is_arithmetic, ast.walk(tree)))


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return len(node.id) == 1 or node.id == "pi" or node.id in _FUNCTIONS
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.Call):
        called = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        return called and not node.keywords
    return isinstance(node, _ARITHMETIC)

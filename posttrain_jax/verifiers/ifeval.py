"""Instruction following: the verifiable constraints of IFEval and of Tülu 3.

Sources: Zhou et al., Instruction-Following Evaluation for Large Language Models
(arXiv 2311.07911), and google-research, instruction_following_eval (25 constraints, strict and
loose); Lambert et al., Tülu 3 (arXiv 2411.15124), section 6, and open-instruct, if_functions.py
(the data set RLVR-IFeval).

The rules are the reference's, and so are their quirks, save where one pays for nothing or breaks:
`constraints.language` and `constraints.keywords` say which. A blank response follows no constraint.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain_jax import registry
from posttrain_jax.api import Verdict
from posttrain_jax.verifiers.constraints import tulu
from posttrain_jax.verifiers.constraints.table import Constraint, bind, constraints_of

PRELOAD = ("posttrain_jax.verifiers.constraints.language_detector",)
"""What a worker imports before its first item, so that no item's deadline pays for it."""

_GROUPS = (
    "change_case", "combination", "detectable_content", "detectable_format", "keywords",
    "language", "length_constraints", "punctuation", "startend",
)  # fmt: skip
IFEVAL = {
    name: constraint
    for group in _GROUPS
    for name, constraint in constraints_of(
        registry.load("verifiers/constraints", group), prefix=f"{group}:"
    ).items()
}
"""IFEval's constraints by instruction id, such as `length_constraints:number_words`."""

TULU = constraints_of(tulu)
"""Tülu 3's constraints by `func_name`, such as `validate_word_constraint`."""


def score(
    response: str,
    example: Mapping[str, Any],
    *,
    mode: str = "strict",
    partial: bool = False,
) -> Verdict:
    """1 where a response follows every constraint, 0 otherwise; the detail names those it doesn't.

    Args:
      response: the completion.
      example: either `instruction_id_list` and `kwargs`, a list of as many dicts, as in IFEval; or
        `ground_truth`, as in Tülu 3's data: `{"func_name": name, <arguments>}`, or
        `{"instruction_id": [...], "kwargs": [...]}`, or a list of these, as it is or as a string.
        Arguments that are null count as absent.
      mode: "strict", or "loose": a constraint is followed where one of `loose_variants` does.
      partial: the score is the share of constraints followed.

    Raises:
      ValueError: an unknown constraint or mode, an argument missing or wrong, no constraint at all.
    """
    if mode not in ("strict", "loose"):
        raise ValueError(f"mode: expected 'strict' or 'loose', got {mode!r}")
    wanted = [(constraint, bind(constraint, given)) for constraint, given in _read(example)]
    texts = loose_variants(response) if mode == "loose" else [response]
    failed = [
        constraint.name
        for constraint, arguments in wanted
        if not any(constraint.check(text, **arguments) and text.strip() for text in texts)
    ]
    if not failed:
        return Verdict(1.0, "pass", f"all {len(wanted)} followed")
    share = (len(wanted) - len(failed)) / len(wanted)
    return Verdict(share if partial else 0.0, "fail", f"not followed: {', '.join(failed)}")


def loose_variants(response: str) -> list[str]:
    """A response without its first line, its last, both or neither, with asterisks and without.

    An introduction, a closing remark and markdown then don't count (IFEval, section 2.2). Equal
    variants come once.
    """
    lines = response.split("\n")
    cut = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
    texts = [response, *cut]
    return list(dict.fromkeys([*texts, *(text.replace("*", "") for text in texts)]))


def _read(example: Mapping[str, Any]) -> Iterator[tuple[Constraint, Mapping[str, Any]]]:
    """The constraints of an example, each with its arguments as they stand there."""
    if "ground_truth" in example:
        truth = _parsed(example["ground_truth"])
        if truth == []:
            raise ValueError("ground_truth: expected a constraint at least, got no constraint")
        for spec in truth if isinstance(truth, list) else [truth]:
            yield from _read_truth(spec)
    elif "instruction_id_list" in example:
        yield from _pairs(example, "instruction_id_list")
    else:
        got = ", ".join(example) or "none"
        raise ValueError(f"expected the field instruction_id_list or ground_truth, got {got}")


def _read_truth(spec: Any) -> Iterator[tuple[Constraint, Mapping[str, Any]]]:
    spec = _parsed(spec)
    if not isinstance(spec, Mapping) or not {"func_name", "instruction_id"} & spec.keys():
        raise ValueError(
            f"ground_truth: expected an object with func_name or instruction_id, got {spec!r:.200}"
        )
    if "func_name" not in spec:
        yield from _pairs(spec, "instruction_id")
        return
    arguments = {name: value for name, value in spec.items() if name != "func_name"}
    yield _look_up(TULU, "func_name", spec["func_name"]), arguments


def _pairs(fields: Mapping[str, Any], field: str) -> Iterator[tuple[Constraint, Mapping[str, Any]]]:
    """The constraints that a list of ids and a list of their arguments name."""
    ids, kwargs = fields[field], fields.get("kwargs")
    if not isinstance(ids, list | tuple) or not ids:
        raise ValueError(f"{field}: expected a list of instruction ids, got {ids!r:.200}")
    if not isinstance(kwargs, list | tuple) or len(kwargs) != len(ids):
        got = len(kwargs) if isinstance(kwargs, list | tuple) else repr(kwargs)[:200]
        raise ValueError(f"kwargs: expected a list as long as {field}, {len(ids)}, got {got}")
    for name, arguments in zip(ids, kwargs, strict=True):
        if not isinstance(arguments, Mapping | None):
            raise ValueError(f"kwargs of {name}: expected an object, got {arguments!r:.200}")
        yield _look_up(IFEVAL, field, name), arguments or {}


def _look_up(table: Mapping[str, Constraint], field: str, name: Any) -> Constraint:
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(f"{field}: expected one of {', '.join(sorted(table))}, got {name!r:.200}")


def _parsed(truth: Any) -> Any:
    """What a `ground_truth` says: JSON, or a Python literal in later data sets."""
    if not isinstance(truth, str):
        return truth
    try:
        return json.loads(truth)
    except ValueError:
        pass
    try:
        return ast.literal_eval(truth)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"ground_truth: expected JSON, got {truth!r:.200}") from error

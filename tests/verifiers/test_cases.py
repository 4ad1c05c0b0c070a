"""Published test cases of other verifiers, where they lie beside the repository."""

import json
from pathlib import Path

import pytest
import sympy

from posttrain_jax.verifiers import exact_answer, format, math_answer
from posttrain_jax.verifiers.formulas import symbolic
from posttrain_jax.verifiers.formulas.expression import Unreadable
from posttrain_jax.verifiers.formulas.grammar import parse
from posttrain_jax.verifiers.formulas.numerals import canonical
from posttrain_jax.verifiers.pool import Pool

FOLDER = Path(__file__).parents[3] / "shared/data/verifier_cases"
NOT_NEGATIVES = {
    "math-0028": "9, but across lines in single dollars, which that parser doesn't read",
    "math-0267": "a string grader, for which .1 isn't 0.1",
    "math-0695": "its last sentence about the answer states the reference",
}


def rows(name, *kinds):
    path = FOLDER / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row for row in found if row["kind"] in kinds]


def test_math_answers_of_math_verify_and_hendrycks():
    cases = rows("math_cases", "extract_and_compare", "answer_string_equal", "gsm8k_last_number")
    with Pool({"a": {"verifier": "math_answer"}}, workers=2) as pool:
        out = pool.verdicts([c["pred"] for c in cases], [{"answer": c["gold"]} for c in cases])
    passed = {c["id"] for c, row in zip(cases, out.verdicts, strict=True) if row[0].score == 1}
    positives = {c["id"] for c in cases if c["expected"]}
    assert {row[0].status for row in out.verdicts} <= {"pass", "fail"}
    assert passed - positives == set(NOT_NEGATIVES)
    assert len(positives) == 123
    assert len(passed & positives) >= 106


def test_parsed_latex_is_what_latex2sympy_says():
    different, read = [], 0
    for case in rows("math_cases", "latex_to_sympy"):
        want = eval(case["sympy_srepr"], dict(vars(sympy)))
        try:
            got = symbolic.to_sympy(parse(canonical(case["latex"])))
        except Unreadable:
            continue
        if got == want or sympy.simplify(got - want) == 0:
            read += 1
        else:
            different.append(case["latex"])
    # I is a variable to us, a subscript drops its backslash, and 1500E-1 is read as a number.
    assert set(different) == {"a+bI", r"e^{I\pi}", r"h_{\theta}", "1500E-1"}
    assert read >= 63


def test_normalised_exact_match_of_open_instruct():
    cases = [c for c in rows("math_cases", "normalised_exact_match") if c["options"] == {}]
    assert len(cases) == 20
    for case in cases:
        verdict = exact_answer.score(case["pred"], {"answer": case["gold"]})
        assert bool(verdict.score) == case["expected"], case["id"]


def test_normalised_strings_of_open_instruct():
    for case in rows("math_cases", "normalise_string"):
        verdict = math_answer.score(case["pred"], {"answer": case["gold"]}, use_sympy=False)
        assert verdict.score == 1, case["id"]


def test_format_rewards():
    for case in rows("reward_cases", "think_answer_format"):
        assert format.score(case["completion"], {}).score == case["expected"], case["id"]
    for case in rows("reward_cases", "think_format_reward"):
        # TRL's has no answer tags; wrapped in them its texts must fare alike.
        before, closed, after = case["completion"].rpartition("</think>")
        wrapped = f"{before}{closed}<answer>{after}</answer>"
        assert format.score(wrapped, {}).score == case["expected"], case["id"]


def test_accuracy_rewards_of_trl():
    for case in rows("reward_cases", "accuracy_reward", "reasoning_accuracy_reward"):
        verdict = math_answer.score(case["completion"], {"answer": case["solution"]})
        assert verdict.score == (case["expected"] or 0), case["id"]

import pytest

from posttrain_jax.verifiers.math_answer import score
from posttrain_jax.verifiers.pool import Pool

SAME = [
    ("8", "8"), ("8", " 8. "), ("8", "８"), ("8", "８个"), ("8", "8 apples"), ("8", "$8$"),
    ("8", "8.0"), ("8", "+8"), ("8", r"\boxed{8}"), ("8", "x = 8"), ("8", "16/2"), ("8", "2^3"),
    ("-8", "−8"), ("1000", "1,000"), ("1000", "1 000"), ("1000", r"1{,}000"), ("1000", "$1,000"),
    ("1234567.5", "1,234,567.50"), ("1000", "1000元"), ("1000", "￥1,000"), ("0.5", "1/2"),
    ("1/2", ".5"), ("1/2", r"\frac{1}{2}"), ("1/2", r"\dfrac12"), ("1/2", "½"), ("1/2", "2/4"),
    ("5/2", r"2\frac{1}{2}"), ("5/2", "2 1/2"), ("5/2", "2½"), ("-1/2", r"-\frac12"),
    ("28%", "28"), ("28", "28%"), ("28", "28 percent"), ("0.28", "28%"), ("28%", "0.28"),
    ("5 km", "5"), ("5", "5 km"), ("5 km", r"5\text{ km}"), ("90", r"90^\circ"), ("90°", "90"),
    ("15 cm^2", "15 cm²"), ("300000", "3e5"), ("1e-3", "0.001"),
    ("(1, 2)", "(1,2)"), ("(1,2)", r"\left(1, \frac{4}{2}\right)"), ("1, 2", "2, 1"),
    (r"\{1,2\}", "1 and 2"), ("[0,1)", "[0, 2/2)"), (r"x \le 3", r"x\leq 3"),
    ("B", "(B)"), ("B", r"\text{B}"), ("Evelyn", r"\text{evelyn}"), ("北京", "北京。"),
    ("12:00", "12:00"), (r"\frac{63}{400}", "63/400"), ("2", r"\sqrt{4}"), ("6", "3!"),
    ("10^{20}", "100000000000000000000"), ("3x+1", "3x + 1"), ("f(x)=x", "f(x) = x"),
]  # fmt: skip
DIFFERENT = [
    ("8", "9"), ("8", "-8"), ("8", "80"), ("8", "8.01"), ("8", "8 or 9"), ("8", "8, 9"),
    ("8", "7 8"), ("8", ""), ("8", "eight"), ("8", "8x"), ("8", "8 9"), ("8", "?8?"),
    ("1/3", "0.33"), ("1/3", "0.333333333333"), ("1/2", "1/0"), ("1/2", r"\frac{1}{0}"),
    ("28", "0.28"), ("28%", "2.8"), ("0.28", "0.28%"), ("28", "0.28%"),
    ("5 km", "5 m"), ("2", "2m"), ("2x", "2"), ("1000", "1,00"), ("1000", "1,000,0"),
    ("(1,2)", "(2,1)"), ("(3,1)", r"\{1,3\}"), ("(1,2)", "1,2"), ("1,2", "1,2,3"), ("1,2", "1,1"),
    ("[0,1)", "[0,1]"), ("x<3", "x>3"), ("x=3", "y=3"), ("B", "C"), ("Evelyn", "Eve"),
    ("cat", "act"), ("ab", "ba."), ("3", "1 3"), ("72", "8 9"), ("16", "x2^3"),
    ("13", "1 3"), ("12", r"\boxed{1}\boxed{2}"), ("0", ""),
    ("8", "__import__('os')"), ("8", "8;import os"), ("8", "x.__class__"), ("5", "(1,5]"),
]  # fmt: skip


@pytest.fixture(scope="module")
def judge():
    """Scores pairs of response and answer in a pool, since some need sympy."""
    with Pool({"a": {"verifier": "math_answer"}}, workers=1) as pool:

        def scores(pairs):
            out = pool.verdicts([r for r, _ in pairs], [{"answer": a} for _, a in pairs])
            assert {row[0].status for row in out.verdicts} <= {"pass", "fail"}
            return [row[0].score for row in out.verdicts]

        yield scores


@pytest.mark.parametrize(("pairs", "want"), [(SAME, 1.0), (DIFFERENT, 0.0)])
def test_the_same_or_different(judge, pairs, want):
    scores = judge([(f"<think>8</think><answer>{said}</answer>", a) for a, said in pairs])
    assert [p for p, score in zip(pairs, scores, strict=True) if score != want] == []


def test_what_needs_no_sympy_gets_none():
    for answer, said in SAME:
        assert score(f"<answer>{said}</answer>", {"answer": answer}).score == 1


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("so 3 + 5 = 8", True),
        ("The answer is 8. I am sure of 9 things.", True),
        ("答案是 8。", True),
        ("答案：８", True),
        ("work\n#### 8", True),
        (r"it is 9, no: \boxed{8}", True),
        (r"\boxed{8} The final answer is 9.", False),
        ("The answer is 9. No, the answer is 8.", True),
        (r"The answer is $\boxed{8}$ of 9", True),
        (r"\boxed{9} then \boxed{8}", True),
        (r"\boxed{8} then \boxed{9}", False),
        (r"so \boxed{8", True),  # no box; the last number
        ("The answer is 8 or 9", False),
        ("The answer is one of 8, 9", False),
        ("<answer>The answer is 8</answer>", True),
        ("<answer>I take 7, then 8</answer>", False),  # an answer between tags is taken whole
        ("<answer>9</answer> so 8", False),
        ("<answer>8</answer><answer>9</answer>", False),
        ("<answer>9</answer><answer>8</answer>", True),
        ("<answer><answer>8</answer></answer>", True),  # no pair; the last number
        (r"<think>\boxed{8}</think>", False),
        (r"<think>\boxed{8}", False),
        (r"<think>\boxed{8}</think><answer>9</answer>", False),
        (r"<think>9</think>\boxed{8}", True),
        ("a chain</think><answer>8</answer>", True),
        ("<think>a</think>8<think>b", False),
        ("AZ8K", False),
        ("v8.8", False),
        ("", False),
        ("no number", False),
    ],
)
def test_where_the_answer_stands(judge, response, right):
    assert judge([(response, "8")]) == [float(right)]


def test_options():
    assert score("<answer>5km</answer>", {"answer": "5"}).score == 1
    assert score("<answer>5 apples</answer>", {"answer": "5"}, units=False).score == 0
    assert score("<answer>0.333</answer>", {"answer": "1/3"}, tolerance=0.01).score == 1
    assert score("<answer>0.3</answer>", {"answer": "1/3"}, tolerance=0.01).score == 0
    assert score("<answer>3+5</answer>", {"answer": "8"}).score == 1
    assert score("<answer>3+5</answer>", {"answer": "8"}, literal=True).score == 0
    assert score("<answer>x=-8/1</answer>", {"answer": "-8"}, literal=True).score == 1
    assert score("<final>8</final>", {"answer": "8"}, answer_tag="final").score == 1
    with pytest.raises(KeyError):
        score("8", {})


def test_sympy_is_for_workers_only():
    response, example = r"<answer>\sqrt{8}</answer>", {"answer": r"2\sqrt{2}"}
    with pytest.raises(RuntimeError, match="use_sympy=False"):
        score(response, example)
    assert score(response, example, use_sympy=False).score == 0
    with pytest.raises(RuntimeError, match="use_sympy=False"):
        score("<answer>2x=2y</answer>", {"answer": "x=y-z"})


SYMBOLIC = [
    (r"2\sqrt{2}", r"\sqrt{8}", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt 3}", True),
    ("√13", r"\sqrt{13}", True),
    ("(x+1)^2", "x^2+2x+1", True),
    ("(x+1)^2", "x^2+2x", False),
    (r"\pi r^2", r"r^2 \pi", True),
    ("x", r"\sqrt{x^2}", False),
    (r"1\pm\sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", True),
    (r"1\pm\sqrt{19}", r"1+\sqrt{19}", False),
    (r"\sin^2 x + \cos^2 x", "1", True),
    (r"2\sin a\cos a", r"\sin 2a", True),
    (r"\frac{\pi}{2}", "1.5707963267948966", False),
    ("2x+4y=3", r"y = -\frac{x}{2}+\frac34", True),
    ("x-2y+z-1=0", "x-2y+z-1=3", False),
    ("x>5", "-x<-5", True),
    ("x>5", "-x>-5", False),
    ("x>5", r"(5,\infty)", True),
    (r"\begin{pmatrix}\sqrt4 & 0\\0&1\end{pmatrix}", r"\begin{bmatrix}2&0\\0&1\end{bmatrix}", True),
    (r"\begin{pmatrix}1 & 0\\0&1\end{pmatrix}", r"\begin{pmatrix}1&0\\0&2\end{pmatrix}", False),
    (r"e^{i\pi}", "-1", True),
    (r"\log_2 8", "3", True),
    (r"\binom{5}{2}", "10", True),
    (r"\lfloor \pi \rfloor", "3", True),
    (r"f(2x)", "2f(x)", False),
    ("x", "y", False),
    ("x_1", "x_2", False),
]


def test_symbolic_equality(judge):
    scores = judge([(f"<answer>{said}</answer>", answer) for answer, said, _ in SYMBOLIC])
    got = [(a, b, score == 1) for (a, b, _), score in zip(SYMBOLIC, scores, strict=True)]
    assert got == SYMBOLIC


BOMBS = [
    "9^{9^{9^{9}}}", "2^{10^{30}}", "((((2^9)^9)^9)^9)^9", "(10!)!", "1000!!!", "9" * 999 + "^999",
    "(" * 400 + "1" + ")" * 400, r"\sqrt" * 150 + "2", "sin" * 100 + "x", "-" * 290 + "x",
    "|" * 300, r"\frac" * 200, "x^" * 150 + "2", "1+" * 149 + "x", "{" * 5000, "^{-" * 90 + "2",
]  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_that_are_stopped_before_sympy(bomb):
    verdict = score(f"<answer>{bomb}</answer>", {"answer": "8"}, use_sympy=False)
    assert verdict.score == 0

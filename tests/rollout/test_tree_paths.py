"""The best solutions of a tree and its widest pairs of siblings, on a tree written by hand."""

from types import SimpleNamespace

import pytest

from posttrain_jax.rollout.tree_paths import best_traces, labelled, widest_pairs
from posttrain_jax.rollout.tree_search import Candidate, Plan, Walk, enter, next_leaf

PLAN = Plan(9, 3, 9, 2.0, 0)
WORDS = {1: " a.", 2: " b.", 3: " c", 4: "\n", 5: " d", 6: " e"}
TEXT = SimpleNamespace(decode=lambda ids: "".join(WORDS[i] for i in ids).removeprefix(" "))


def end(token, value):
    return Candidate((token,), True, True, 0.25, 0.25, (value,))


@pytest.fixture
def nodes():
    """a (guess 0.6) with ends c (1), d (1), e (0); b (guess 0.2) with end c (0), a limit, and d."""
    walk = Walk()
    enter(walk, [Candidate((1,), False, chance=0.6, guess=0.6),
                 Candidate((2,), False, chance=0.2, guess=0.2)], PLAN)  # fmt: skip
    walk.at = 1
    enter(walk, [end(3, 1.0), end(5, 1.0), end(6, 0.0)], PLAN)
    walk.at = 2
    enter(walk, [end(3, 0.0), Candidate((6,), True, known=(0.0,)),
                 Candidate((5,), False, chance=0.9, guess=0.9)], PLAN)  # fmt: skip
    return walk.nodes


def test_finished_solutions_come_first_and_the_best_of_them(nodes):
    found = best_traces(nodes, 7)
    # a: (0.6 + 1 + 1 + 0) / 4 = 0.65;  b: (0.2 + 0 + 0) / 3
    assert [(t.tokens, t.finished) for t in found] == [
        ([1, 3], True), ([1, 5], True), ([1, 6], True), ([2, 3], True), ([2, 5], False),
        ([2, 6], False), ([1, 3], True),
    ]  # fmt: skip
    expected = [0.825, 0.825, 0.325, 0.1 / 3, (0.9 + 0.2 / 3) / 2, 0.1 / 3, 0.825]
    assert [t.value for t in found] == pytest.approx(expected)
    assert found[0].chances == [0.6, 0.25] and found[5].chances == [0.2]
    assert [t.prior for t in found] == pytest.approx([1 / 6] * 6 + [0.0])
    assert best_traces(nodes, 2) == found[:2]


def test_a_likely_solution_beats_a_better_one_that_is_hardly_said():
    walk = Walk()
    enter(walk, [Candidate((1,), False, chance=0.5, guess=0.5)] * 4
          + [Candidate((2,), False, chance=0.9, guess=0.9)], PLAN)  # fmt: skip
    for at, token in ((1, 3), (2, 5)):
        walk.at = at
        enter(walk, [end(token, walk.nodes[at].guess)] * 3 + [end(6, 0.0)], PLAN)
    for likely, tokens in ((False, [2, 5]), (True, [1, 3])):
        first = best_traces(walk.nodes, 1, likely)[0]
        assert first.tokens == tokens
    assert first.prior == pytest.approx(0.8 * 0.75)


def test_pairs_are_siblings_far_apart(nodes):
    """c or d against e below a; a (2 of 3 right) against b (0 of 2). Below b nothing is right."""
    assert widest_pairs(nodes) == [(3, 5), (1, 2)]


def test_of_equal_shares_the_one_with_more_ends_counts():
    walk = Walk()
    enter(walk, [end(1, 1.0), end(2, 1.0), end(2, 1.0), end(3, 0.0), end(5, 0.0), end(5, 0.0)],
          PLAN)  # fmt: skip
    (pair,) = widest_pairs(walk.nodes)
    assert [walk.nodes[n].step for n in pair] == [(2,), (5,)]


def test_an_end_that_says_nothing_is_no_step():
    walk = Walk()
    enter(walk, [Candidate((), True, True, known=(1.0,)), end(1, 0.5), end(2, 0.0)], PLAN)
    (pair,) = widest_pairs(walk.nodes)
    assert [walk.nodes[n].step for n in pair] == [(1,), (2,)]


def test_labels_of_the_steps_of_a_solution(nodes):
    assert labelled(nodes, 3, TEXT) == (["a.", " c"], [2 / 3, 1.0])
    assert labelled(nodes, 6, TEXT) == (["b.", " c"], [0.0, 0.0])


def test_white_space_is_part_of_the_step_before():
    walk = Walk()
    for candidates in (
        [Candidate((1,), False)], [Candidate((4,), False)], [end(3, 1.0), end(5, 0.0)]
    ):  # fmt: skip
        next_leaf(walk, PLAN)
        enter(walk, candidates, PLAN)
    assert labelled(walk.nodes, 2, TEXT) == (["a.\n"], [0.5])
    assert labelled(walk.nodes, 3, TEXT) == (["a.\n", " c"], [0.5, 1.0])

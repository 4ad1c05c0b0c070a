"""The tree of a search: a trace by hand, PUCT by brute force, and a toy where greedy goes wrong."""

import math
import random
import subprocess
import sys

import pytest

from posttrain_jax.rollout.tree_search import (
    ROOT,
    Candidate,
    Plan,
    Walk,
    best_child,
    chances_to,
    enter,
    next_leaf,
    path,
    tokens_to,
)

A, B, C, D, E = ((token,) for token in range(5))


def plan(iterations=9, candidates=3, depth=9, c_puct=2.0):
    return Plan(iterations, candidates, depth, c_puct, 0)


def guessed(step, guess):
    return Candidate(step, False, chance=guess, guess=guess)


def ended(step, *known):
    return Candidate(step, True, True, known=known)


def test_a_search_by_hand():
    """Every number of three expansions, worked out on paper."""
    walk, rules = Walk(), plan(iterations=2)
    assert next_leaf(walk, rules) == ROOT
    enter(walk, [guessed(A, 0.6), guessed(B, 0.5), guessed(B, 0.5)], rules)
    # B was said twice: it comes first. sqrt(2 visits) = 1.414:
    #   B: 0.0 + 2 * 2/3 * 1.414 / 2 = 0.943      A: 0.2 + 2 * 1/3 * 1.414 / 2 = 0.671
    b, a = walk.nodes[ROOT].children
    assert [walk.nodes[n].step for n in (b, a)] == [B, A]
    assert [walk.nodes[n].prior for n in (b, a)] == pytest.approx([2 / 3, 1 / 3])
    assert walk.nodes[ROOT].visits == 0  # guesses stay where they are
    assert next_leaf(walk, rules) == b
    enter(walk, [ended(C, 1.0), ended(C, 1.0), guessed(D, 0.9)], rules)
    c, d = walk.nodes[b].children
    assert [(walk.nodes[n].ends, walk.nodes[n].right) for n in (c, d, b, a, ROOT)] == [
        (2, 2.0), (0, 0.0), (2, 2.0), (0, 0.0), (2, 2.0)
    ]  # fmt: skip
    assert walk.nodes[b].mean == pytest.approx((0.5 + 2) / 3)
    # The end C is not chosen again; the way goes on below B, with D.
    assert next_leaf(walk, rules) == d and walk.iterations == 0
    enter(walk, [ended(E, 0.0)] * 3, rules)
    assert walk.nodes[d].closed and walk.nodes[b].closed and not walk.nodes[ROOT].closed
    assert walk.nodes[b].mean == pytest.approx((0.5 + 2 + 0) / 6)
    assert walk.nodes[d].mean == pytest.approx(0.9 / 4)
    assert (walk.at, walk.iterations, walk.expanded) == (ROOT, 1, 3)
    assert next_leaf(walk, rules) == a  # all behind B has ended
    enter(walk, [ended(C, 0.0), ended(D, 1.0), ended(D)], rules)
    assert walk.nodes[a].mean == pytest.approx((0.6 + 0 + 1) / 3)  # what nobody judged counts not
    assert walk.nodes[ROOT].closed and walk.iterations == 2
    assert next_leaf(walk, rules) is None
    assert tokens_to(walk.nodes, d) == [1, 3] and path(walk.nodes, d) == [b, d]
    assert chances_to(walk.nodes, d) == [0.5, 0.9]


def test_the_bonus_falls_with_visits_and_grows_with_those_of_the_others():
    """Equal values: the less visited child is next; c_puct=0 takes the better one."""
    walk, rules = Walk(), plan(candidates=2)
    enter(walk, [guessed(A, 0.6), guessed(B, 0.5)], rules)
    a, b = walk.nodes[ROOT].children
    assert best_child(walk.nodes, ROOT, 2.0) == a
    for node in (a, ROOT):
        walk.nodes[node].ends, walk.nodes[node].right = 3, 1.8  # A stays at 0.6
    # sqrt(5): A 0.2 + 2.236 / 5 = 0.647, B 0 + 2.236 / 2 = 1.118
    assert best_child(walk.nodes, ROOT, 2.0) == b
    assert best_child(walk.nodes, ROOT, 0.0) == a
    # At c = 0.2 / (2.236 / 2 / 2 - 2.236 / 5 / 2) = 0.596 they are equal.
    assert best_child(walk.nodes, ROOT, 0.59) == a and best_child(walk.nodes, ROOT, 0.60) == b


def test_without_a_process_model_the_most_frequent_step_is_first():
    walk, rules = Walk(), plan()
    enter(walk, [Candidate(A, False), Candidate(B, False), Candidate(B, False)], rules)
    assert walk.nodes[next_leaf(walk, rules)].step == B


def test_an_iteration_is_one_way_down():
    """Two ways of three steps: the second starts where the first did not go."""
    walk, rules, depths = Walk(), plan(iterations=2, candidates=2, depth=3), []
    while (leaf := next_leaf(walk, rules)) is not None:
        depths.append((walk.iterations, walk.nodes[leaf].depth))
        last = walk.nodes[leaf].depth == 2
        known = (0.0,) if last else ()
        enter(walk, [Candidate(A, last, known=known), Candidate(B, last, known=known)], rules)
    assert depths == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]
    assert walk.iterations == 2 and not walk.nodes[ROOT].closed
    assert [walk.nodes[n].ends for n in walk.nodes[ROOT].children] == [2, 2]


class Brute:
    """The same search over lists of steps, everything counted from scratch at every look."""

    def __init__(self, c_puct):
        self.c_puct, self.said, self.guesses = c_puct, {}, {}
        self.judged, self.over = [], set()

    def values(self, place):
        own = [self.guesses[place]] if place in self.guesses else []
        return own + [v for end, v in self.judged if end[: len(place)] == place]

    def closed(self, place):
        if place in self.over:
            return True
        return place in self.said and all(self.closed((*place, s)) for s in set(self.said[place]))

    def score(self, place, step):
        mine, said = self.values((*place, step)), self.said[place]
        mean = sum(mine) / len(mine) if mine else 0.5
        visits = sum(len(self.values((*place, other))) for other in set(said))
        prior = said.count(step) / len(said)
        return 2 * mean - 1 + self.c_puct * prior * math.sqrt(visits) / (1 + len(mine))

    def enter(self, place, candidates):
        self.said[place] = [c.step for c in candidates]
        for c in candidates:
            self.judged += [((*place, c.step), value) for value in c.known]
            if c.ended:
                self.over.add((*place, c.step))
            else:
                self.guesses[(*place, c.step)] = c.guess

    def leaf(self, place):
        while place in self.said:
            still = [s for s in self.said[place] if not self.closed((*place, s))]
            place = (*place, max(still, key=lambda s, at=place: self.score(at, s)))
        return place


def test_a_random_search_by_brute_force():
    """The nodes that are expanded, in their order, and the mean value of each at the end."""
    expanded = 0
    for seed in range(5):
        rng, rules = random.Random(seed), plan(iterations=12, candidates=4, depth=5, c_puct=1.3)
        walk, brute, way = Walk(), Brute(1.3), ()
        while (leaf := next_leaf(walk, rules)) is not None:
            place = places(walk, leaf)
            assert place == brute.leaf(way)
            given = draw(rng, len(place) == 4)
            enter(walk, given, rules)
            brute.enter(place, given)
            way = () if brute.closed(place) else place
        expanded += walk.expanded
        for number, node in enumerate(walk.nodes):
            values = brute.values(places(walk, number))
            assert node.visits == len(values)
            assert node.closed == brute.closed(places(walk, number))
            assert node.mean == pytest.approx(sum(values) / len(values) if values else 0.5)
    assert expanded > 100


def places(walk, node):
    return tuple((token,) for token in tokens_to(walk.nodes, node))


def draw(rng, last):
    """Four candidates, some of them equal, some of them ends."""
    known = {}
    for step in (A, B, C, D, E):
        over = last or rng.random() < 0.2
        known[step] = Candidate(
            step, over, over, None, None if over else rng.random(),
            (float(rng.random() < 0.4),) if over else (),
        )  # fmt: skip
    return [known[rng.choice((A, B, C, D, E))] for _ in range(4)]


GOOD = (1, 0, 2)
"""The only right solution of the toy."""


def toy(place):
    """All three steps of the toy. The model likes 0 first, and each later step a little less."""
    return [
        Candidate(
            (s,), len(place) == 2, len(place) == 2, None, 0.9 - 0.2 * s if len(place) < 2 else None,
            (float((*place, s) == GOOD),) if len(place) == 2 else (),
        )
        for s in range(3)
    ]  # fmt: skip


def test_a_tree_finds_what_greedy_steps_miss():
    rules = plan(iterations=6, depth=3)
    greedy = ()
    for _ in range(2):
        greedy += max(toy(greedy), key=lambda c: c.guess).step
    assert greedy == (0, 0)  # whatever it ends with is wrong
    walk = Walk()
    while (leaf := next_leaf(walk, rules)) is not None:
        enter(walk, toy(tuple(tokens_to(walk.nodes, leaf))), rules)
    right = [n for n, node in enumerate(walk.nodes) if node.depth == 3 and node.right]
    assert [tuple(tokens_to(walk.nodes, n)) for n in right] == [GOOD]
    assert len(walk.nodes) - 1 < 3 + 9 + 27  # not by looking at all of it
    means = {walk.nodes[n].step: walk.nodes[n].mean for n in walk.nodes[ROOT].children}
    assert max(means, key=means.get) == (1,)


def test_the_tree_needs_no_jax():
    code = "import sys, posttrain_jax.rollout.tree_search; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

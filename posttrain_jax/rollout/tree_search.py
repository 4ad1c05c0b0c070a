"""Monte Carlo tree search over the steps of a solution: the tree alone, in plain Python; no jax.

An iteration goes from the root down to the end of a solution. Where it meets a node without
children, `candidates` steps are sampled and entered, and it goes on with the one that PUCT picks:

    2 Q(a) - 1 + c_puct P(a) sqrt(sum_b N(b)) / (1 + N(a))

Q is the mean value of a step, from 0 to 1 (2 Q - 1 is on the scale that c_puct is published for;
0 where nothing is known), N its visits, P its share of the candidates: as often as the policy says
it. That is AlphaGo Zero's rule (Silver et al. 2017, Nature 550, "Select"), as AlphaMath has it for
steps (arXiv 2405.03553). rStar-Math (arXiv 2501.04519) has c sqrt(ln N / N(a)) for the last term;
the rest is as in its code (microsoft/rStar, branch rStar-math): what is judged at the end of a
solution counts for every step before it; what the process model says of a step counts once, for
that step alone; ended solutions are not chosen again, nor steps behind which all have ended.
Ours: equal steps of a node are one child, and a solution that meets a limit counts as wrong for the
steps before it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

ROOT = 0


class Plan(NamedTuple):
    """How a tree grows.

    Attributes:
      iterations: ways from the root to an end.
      candidates: steps sampled from a node.
      depth: the most steps of a solution.
      c_puct: how much untried steps are preferred to good ones.
      rollouts: completions sampled from each candidate, to be verified.
    """

    iterations: int
    candidates: int
    depth: int
    c_puct: float
    rollouts: int

    @property
    def most(self) -> int:
        """The most nodes of a tree that can be expanded."""
        return self.iterations * self.depth


class Candidate(NamedTuple):
    """A step that was sampled from a node, and what is known of it.

    Attributes:
      step: its tokens, without the end-of-sequence token.
      ended: the solution goes no further.
      finished: it ended by itself.
      chance: of the step being right, by the process model.
      guess: the process model's value of the solution so far; None where there is no model.
      known: values of judged ends: its own where it has ended, else of its rollouts.
    """

    step: tuple[int, ...]
    ended: bool
    finished: bool = False
    chance: float | None = None
    guess: float | None = None
    known: tuple[float, ...] = ()


@dataclass
class Node:
    """A step in the tree; the root stands for the prompt.

    Attributes:
      prior: its share of the candidates of its parent.
      ends, right: how many ends behind it were judged, and the sum of their values.
      closed: every solution behind it has ended.
    """

    parent: int = -1
    depth: int = 0
    step: tuple[int, ...] = ()
    finished: bool = False
    prior: float = 1.0
    chance: float | None = None
    guess: float | None = None
    ends: int = 0
    right: float = 0.0
    closed: bool = False
    children: list[int] = field(default_factory=list)

    @property
    def visits(self) -> int:
        """How many values the node has."""
        return self.ends + (self.guess is not None)

    @property
    def mean(self) -> float:
        """The mean of its values; a half where it has none."""
        return (self.right + (self.guess or 0.0)) / self.visits if self.visits else 0.5


@dataclass
class Walk:
    """A tree and the way that is being gone through it.

    Attributes:
      at: where the way is.
      iterations: ways that came to their end.
      expanded: nodes that were expanded.
      sampled: tokens that were sampled for the tree.
    """

    nodes: list[Node] = field(default_factory=lambda: [Node()])
    at: int = ROOT
    iterations: int = 0
    expanded: int = 0
    sampled: int = 0


def next_leaf(walk: Walk, plan: Plan) -> int | None:
    """The node to be expanded next, where the way then is; None where the search is over."""
    nodes = walk.nodes
    if walk.iterations >= plan.iterations or nodes[ROOT].closed:
        return None
    while nodes[walk.at].children:
        walk.at = best_child(nodes, walk.at, plan.c_puct)
    return walk.at


def best_child(nodes: Sequence[Node], node: int, c_puct: float) -> int:
    """The open child that PUCT picks; of equals the one that was said most often, then first."""
    children = nodes[node].children
    spread = math.sqrt(sum(nodes[child].visits for child in children))

    def score(child: int) -> float:
        it = nodes[child]
        return 2 * it.mean - 1 + c_puct * it.prior * spread / (1 + it.visits)

    return max((child for child in children if not nodes[child].closed), key=score)


def enter(walk: Walk, candidates: Sequence[Candidate], plan: Plan) -> None:
    """Give the node where the way is its children, and every node above them what is known.

    Candidates at the last depth must have `ended`. Where no child is open the iteration is over.

    Args:
      candidates: of `walk.at`, as they were sampled.
    """
    nodes, parent = walk.nodes, walk.at
    equal: dict[tuple[tuple[int, ...], bool], list[Candidate]] = {}
    for candidate in candidates:
        equal.setdefault((candidate.step, candidate.finished), []).append(candidate)
    for same in sorted(equal.values(), key=len, reverse=True):
        first, number = same[0], len(nodes)
        nodes[parent].children.append(number)
        nodes.append(
            Node(
                parent, nodes[parent].depth + 1, first.step, first.finished,
                len(same) / len(candidates), first.chance, None if first.ended else first.guess,
                closed=first.ended,
            )
        )  # fmt: skip
        known = [value for candidate in same for value in candidate.known]
        for place in [ROOT, *path(nodes, number)]:
            nodes[place].ends += len(known)
            nodes[place].right += math.fsum(known)
    walk.expanded += 1
    _close(nodes, parent)
    if nodes[parent].closed:
        walk.at, walk.iterations = ROOT, walk.iterations + 1


def _close(nodes: list[Node], node: int) -> None:
    """Close a node all of whose children are closed, and so on upwards."""
    while node >= ROOT and all(nodes[child].closed for child in nodes[node].children):
        nodes[node].closed = True
        node = nodes[node].parent


def path(nodes: Sequence[Node], node: int) -> list[int]:
    """The nodes from the first step to `node`; the root is not one of them."""
    found = []
    while node != ROOT:
        found.append(node)
        node = nodes[node].parent
    return found[::-1]


def tokens_to(nodes: Sequence[Node], node: int) -> list[int]:
    """What the solution says up to a node."""
    return [token for place in path(nodes, node) for token in nodes[place].step]


def chances_to(nodes: Sequence[Node], node: int) -> list[float]:
    """The chances of the steps up to a node, of those that have one."""
    found = (nodes[place].chance for place in path(nodes, node))
    return [chance for chance in found if chance is not None]

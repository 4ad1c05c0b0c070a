"""What a searched tree gives: its best solutions, and steps that are better than their siblings.

As rStar-Math (arXiv 2501.04519, section 3) takes its data: the solutions with the highest mean
value of their steps, and of each node the child with the best and the one with the worst outcome.
The weight of a solution by what the policy thinks of it is ours. No jax.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from posttrain_jax.data.tokenizers.base import Tokenizer
from posttrain_jax.rollout.tree_search import ROOT, Node, chances_to, path, tokens_to


class Trace(NamedTuple):
    """A solution of a tree.

    Attributes:
      tokens: of the response, without the end-of-sequence token.
      chances: of its steps being right; empty without a process model.
      value: the mean of the mean values of its steps.
      prior: the product of its steps' shares of the candidates: how likely the policy says it.
    """

    tokens: list[int]
    chances: list[float]
    finished: bool
    value: float
    prior: float


class Labelled(NamedTuple):
    """The texts of the first steps of a solution, and the share of right ends behind each."""

    steps: list[str]
    shares: list[float]


def best_traces(nodes: Sequence[Node], count: int, likely: bool = False) -> list[Trace]:
    """Exactly `count` solutions: finished ones first, then by their value.

    What is not finished is as far as the tree goes. A tree with fewer leaves repeats them, with a
    prior of 0, so that they don't vote twice.

    Args:
      likely: by value times prior. Right for values that the process model guesses: of many ends
        the one that it likes best is more often an error of its own than right.
    """
    leaves = [number for number, node in enumerate(nodes) if number != ROOT and not node.children]
    found = [_trace(nodes, leaf) for leaf in leaves]
    rank = lambda it: (it.finished, it.value * it.prior if likely else it.value)  # noqa: E731
    ranked = sorted(found, key=rank, reverse=True)
    again = itertools.cycle(trace._replace(prior=0.0) for trace in ranked)
    return list(itertools.islice(itertools.chain(ranked, again), count))


def _trace(nodes: Sequence[Node], leaf: int) -> Trace:
    means = [nodes[place].mean for place in path(nodes, leaf)]
    return Trace(
        tokens_to(nodes, leaf), chances_to(nodes, leaf), nodes[leaf].finished,
        sum(means) / len(means), math.prod(nodes[place].prior for place in path(nodes, leaf)),
    )  # fmt: skip


def share(node: Node) -> float:
    """The share of right ones among the judged ends behind a node that has some."""
    return node.right / node.ends


def widest_pairs(nodes: Sequence[Node]) -> list[tuple[int, int]]:
    """Pairs (better, worse) of siblings, those farthest apart first.

    Each node gives one pair at most: of its children with judged ends behind them the best and the
    worst by their share of right ones, among equals those with more ends. Steps that say nothing
    (the end alone) are left out.
    """
    found = []
    for node in nodes:
        judged = [c for c in node.children if nodes[c].ends and nodes[c].step]
        if judged:
            best = max(judged, key=lambda c: (share(nodes[c]), nodes[c].ends))
            worst = min(judged, key=lambda c: (share(nodes[c]), -nodes[c].ends))
            found.append((share(nodes[best]) - share(nodes[worst]), best, worst))
    apart = sorted(found, key=lambda pair: pair[0], reverse=True)
    return [(best, worst) for gap, best, worst in apart if gap > 0]


def labelled(nodes: Sequence[Node], node: int, tokenizer: Tokenizer) -> Labelled:
    """The steps up to a node, with judged ends behind all of them.

    White space alone is part of the step before, as in `data.steps.split_steps`.
    """
    steps: list[str] = []
    shares: list[float] = []
    tokens, said = [], ""
    for place in path(nodes, node):
        tokens += nodes[place].step
        # Decoded as one: some tokenizers drop a space where a text begins.
        step, said = tokenizer.decode(tokens)[len(said) :], tokenizer.decode(tokens)
        if step.strip() or not steps:
            steps.append(step)
            shares.append(share(nodes[place]))
        else:
            steps[-1] += step
            shares[-1] = share(nodes[place])
    return Labelled(steps, shares)

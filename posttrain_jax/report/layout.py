"""Places the stages of a run on a page: layers from left to right, few crossings.

A small Sugiyama layout (Sugiyama, Tagawa and Toda 1981): longest-path layers, an invisible stop in
every layer that an arrow passes, two or three sweeps that order each layer by the mean place of
its neighbours, then the same sweeps on coordinates with a minimum distance. Arrows that leave one
stage share their stops. Sources sit directly before their first reader.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SWEEPS = 8
Stop = tuple[str, int]
"""A stage in its layer, or the passage of that stage's arrows through a later layer."""


@dataclass(frozen=True)
class Layout:
    """`layer` and `y` (centre) of every stop, and the height of the drawing.

    Attributes:
      layers: the layer of each stage.
      y: the centre of each stop; a stage's own box is the stop `(name, layers[name])`.
      height: where the lowest box ends.
    """

    layers: Mapping[str, int]
    y: Mapping[Stop, float]
    height: float


def place(
    names: Sequence[str], edges: Sequence[tuple[str, str]], box: float, gap: float, passage: float
) -> Layout:
    """Layers and heights for `names` (in pipeline order) joined by `edges` (from, to).

    Edges that would close a cycle (they point back in pipeline order) take no part in the layout.
    """
    rank = {name: i for i, name in enumerate(names)}
    forward = [(a, b) for a, b in dict.fromkeys(edges) if rank[a] < rank[b]]
    layers = _layers(names, forward)
    columns, links = _stops(names, forward, layers)
    _order(columns, links)
    size = {s: box if layers[s[0]] == s[1] else passage for column in columns for s in column}
    y = _heights(columns, links, size, gap)
    _straighten(columns, layers, size, gap, y)
    top = min((y[s] - size[s] / 2 for s in y), default=0.0)
    y = {stop: value - top for stop, value in y.items()}
    return Layout(layers, y, max((y[s] + size[s] / 2 for s in y), default=0.0))


def lanes(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """A lane beside a vertical list for every stage whose arrows skip others; near ones first.

    Two stages share a lane only where their arrows do not overlap.
    """
    rank = {name: i for i, name in enumerate(names)}
    reach: dict[str, int] = {}
    for source, target in edges:
        if rank[target] - rank[source] > 1:
            reach[source] = max(reach.get(source, 0), rank[target])
    taken: list[int] = []
    result = {}
    for source in sorted(reach, key=rank.__getitem__):
        free = (i for i, end in enumerate(taken) if end <= rank[source])
        lane = next(free, len(taken))
        taken[lane : lane + 1] = [reach[source]]
        result[source] = lane
    return result


def _layers(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    layers = dict.fromkeys(names, 0)
    for name in names:
        layers[name] = max((layers[a] + 1 for a, b in edges if b == name), default=0)
    for name in names:
        readers = [layers[b] for a, b in edges if a == name]
        if readers and not any(b == name for _, b in edges):
            layers[name] = min(readers) - 1
    return layers


def _stops(
    names: Sequence[str], edges: Sequence[tuple[str, str]], layers: Mapping[str, int]
) -> tuple[list[list[Stop]], list[tuple[Stop, Stop]]]:
    """The stops of each layer in first order, and the links between neighbouring layers."""
    columns: list[list[Stop]] = [[] for _ in range(max(layers.values(), default=-1) + 1)]
    for name in names:
        columns[layers[name]].append((name, layers[name]))
    links: dict[tuple[Stop, Stop], None] = {}
    for source, target in edges:
        previous: Stop = (source, layers[source])
        for layer in range(layers[source] + 1, layers[target]):
            stop = (source, layer)
            if stop not in columns[layer]:
                columns[layer].append(stop)
            links[previous, stop] = None
            previous = stop
        links[previous, (target, layers[target])] = None
    return columns, list(links)


def _order(columns: list[list[Stop]], links: Sequence[tuple[Stop, Stop]]) -> None:
    """Sort each layer by the mean place of its neighbours, forwards and backwards in turn."""
    for sweep in range(SWEEPS):
        place_of = {stop: i for column in columns for i, stop in enumerate(column)}
        for column in columns if sweep % 2 == 0 else reversed(columns):
            means = {stop: _mean_place(stop, links, place_of, sweep % 2 == 0) for stop in column}
            column.sort(key=means.__getitem__)
            place_of.update({stop: i for i, stop in enumerate(column)})


def _mean_place(
    stop: Stop, links: Sequence[tuple[Stop, Stop]], place_of: Mapping[Stop, float], ahead: bool
) -> float:
    near = [a for a, b in links if b == stop] if ahead else [b for a, b in links if a == stop]
    return sum(place_of[n] for n in near) / len(near) if near else place_of[stop]


def _heights(
    columns: Sequence[Sequence[Stop]],
    links: Sequence[tuple[Stop, Stop]],
    size: Mapping[Stop, float],
    gap: float,
) -> dict[Stop, float]:
    """Centres: pull every stop to the mean of its neighbours, then push overlaps apart.

    Passages pull each other hard, so that an arrow over many layers runs straight.
    """

    def passes(stop: Stop) -> bool:
        return size[stop] < max(size.values())

    near: dict[Stop, list[tuple[Stop, int]]] = {stop: [] for stop in size}
    for a, b in links:
        weight = 1 + 4 * (passes(a) + passes(b)) * passes(a) * passes(b) + passes(a) + passes(b)
        near[a].append((b, weight))
        near[b].append((a, weight))
    y: dict[Stop, float] = {}
    for column in columns:
        _settle(column, dict.fromkeys(column, 0.0), size, gap, y)
    for _ in range(4 * SWEEPS):
        for column in columns:
            wanted = {}
            for stop in column:
                total = sum(weight for _, weight in near[stop])
                pull = sum(weight * y[other] for other, weight in near[stop])
                wanted[stop] = pull / total if total else y[stop]
            _settle(column, wanted, size, gap, y)
    return y


def _straighten(
    columns: Sequence[Sequence[Stop]],
    layers: Mapping[str, int],
    size: Mapping[Stop, float],
    gap: float,
    y: dict[Stop, float],
) -> None:
    """Give all passages of one stage one height, where some height is free in all its layers."""
    chains: dict[str, list[Stop]] = {}
    for column in columns:
        for stop in column:
            if layers[stop[0]] != stop[1]:
                chains.setdefault(stop[0], []).append(stop)
    for chain in [*chains.values()] * 3:
        low, high = float("-inf"), float("inf")
        for stop in chain:
            column = columns[stop[1]]
            at = column.index(stop)
            if at > 0:
                low = max(low, y[column[at - 1]] + _distance(column[at - 1], stop, size, gap))
            if at + 1 < len(column):
                high = min(high, y[column[at + 1]] - _distance(stop, column[at + 1], size, gap))
        if low <= high:
            middle = sum(y[stop] for stop in chain) / len(chain)
            y.update(dict.fromkeys(chain, min(max(middle, low), high)))


def _distance(above: Stop, below: Stop, size: Mapping[Stop, float], gap: float) -> float:
    """From centre to centre; two arrows may run nearer to each other than two boxes."""
    both_small = max(size[above], size[below]) < max(size.values())
    return (size[above] + size[below]) / 2 + (gap / 4 if both_small else gap)


def _settle(
    column: Sequence[Stop],
    wanted: Mapping[Stop, float],
    size: Mapping[Stop, float],
    gap: float,
    y: dict[Stop, float],
) -> None:
    """The places nearest to `wanted` (least squares) that keep the order and the distances.

    Pool adjacent violators: stops that would overlap form a block that moves as one.
    """
    offsets, blocks = [0.0], []
    for above, below in itertools.pairwise(column):
        offsets.append(offsets[-1] + _distance(above, below, size, gap))
    for stop, offset in zip(column, offsets, strict=True):
        blocks.append((wanted[stop] - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    starts = [start for start, count in blocks for _ in range(count)]
    for stop, start, offset in zip(column, starts, offsets, strict=True):
        y[stop] = start + offset

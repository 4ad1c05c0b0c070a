"""The pipeline drawn as a graph: stages as boxes by kind, arrows for inputs named by role.

Two drawings of the same graph, the style sheet shows the one that fits: layers from left to right
for a wide page, a list with lanes at its left for a narrow one and for pipelines too deep for a
row. Evaluations are no boxes: their numbers stand in the box of the policy they evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from posttrain_jax.report.layout import lanes, place
from posttrain_jax.report.records import Run, Stage
from posttrain_jax.report.tables import is_folded, key_metric
from posttrain_jax.report.vocabulary import duration, show, show_error, spoken, term

FAMILIES = {
    "pretrain": "base", "outside": "base", "sft": "sft", "rl": "rl", "distill": "distill",
    "preference": "rl", "kto": "rl", "reference_logprobs": "data",
    "pretrained": "base", "dataset": "data", "generate": "data", "reject": "data",
    "pairs": "data", "search": "data",
    "reward_model": "reward", "process_reward": "reward", "merge": "sft",
}  # fmt: skip
WIDE, DEEPEST = 1216, 11
BOX_HEIGHT, ROW_GAP, PASSAGE = 112, 26, 14
LIST_WIDTH, LIST_BOX, LIST_GAP, LANE = 360, 66, 22, 15


@dataclass(frozen=True)
class Edge:
    """One arrow, from `source` to `target` in the given role.

    Attributes:
      flow: how it is drawn: `weights` solid, `data` dashed, `judge` (rewards, teachers) dotted.
    """

    source: str
    target: str
    role: str
    flow: str


@dataclass(frozen=True)
class Box:
    """What a stage's box says."""

    name: str
    kind: str
    family: str
    status: str
    time: str
    figure: str
    caption: str


def pipeline_svg(run: Run) -> Markup:
    """Both drawings of the pipeline; empty for a run without stages."""
    boxes, edges = pipeline(run)
    if not boxes:
        return Markup("")
    depth = _depth(boxes, edges)
    narrow = _list_svg(boxes, edges)
    if depth > DEEPEST:
        return Markup('<div class="graph deep">{}</div>').format(narrow)
    wide = _layered_svg(boxes, edges)
    template = '<div class="graph wide">{}</div><div class="graph narrow">{}</div>'
    return Markup(template).format(wide, narrow)


def pipeline(run: Run) -> tuple[list[Box], list[Edge]]:
    """Boxes in pipeline order and the arrows between them; inputs from outside get a box too."""
    shown = [s for s in run.stages if not is_folded(s)]
    known = {s.name for s in run.stages}
    folded = known - {s.name for s in shown}
    family = {s.name: FAMILIES.get(s.kind, "other") for s in run.stages}
    edges = [
        Edge(i.stage, s.name, i.role, _flow(i.role, family.get(i.stage, "")))
        for s in shown
        for i in s.inputs
        if i.stage not in folded
    ]
    outside = [e.source for e in edges if e.source not in known]
    evaluated = {s.input("policy") for s in run.stages if is_folded(s)} - known
    ghosts = [
        Stage(n, "outside") for n in dict.fromkeys([*outside, *sorted(filter(None, evaluated))])
    ]
    with_ghosts = replace(run, stages=(*ghosts, *run.stages))
    return [_box(with_ghosts, s) for s in (*ghosts, *shown)], edges


def _box(run: Run, stage: Stage) -> Box:
    figure, caption = "", ""
    found = key_metric(run, stage)
    if found is not None:
        name, metric = found
        figure = f"{show(name, metric.mean)} {'%' if term(name).share else ''}".strip()
        caption = f"{term(name).label} {show_error(name, metric)}".strip()
    time = "" if stage.seconds is None else duration(stage.seconds)
    if stage.status != "done":
        time = stage.status if stage.kind != "outside" else "not in this run"
    family = FAMILIES.get(stage.kind, "other")
    kind = spoken(stage.kind) + (" · reused" if stage.reused else "")
    return Box(stage.name, kind, family, stage.status, time, figure, caption)


def _depth(boxes: list[Box], edges: list[Edge]) -> int:
    names = [b.name for b in boxes]
    layout = place(names, [(e.source, e.target) for e in edges], BOX_HEIGHT, ROW_GAP, PASSAGE)
    return 1 + max(layout.layers.values())


def _layered_svg(boxes: list[Box], edges: list[Edge]) -> Markup:
    pairs = [(e.source, e.target) for e in edges]
    layout = place([b.name for b in boxes], pairs, BOX_HEIGHT, ROW_GAP, PASSAGE)
    columns = 1 + max(layout.layers.values())
    gap = min(84.0, max(60.0, 0.38 * WIDE / columns))
    width = min(176.0, max(108.0, (WIDE - 8 + gap) / columns - gap))
    pitch = width + gap
    total = max(WIDE, columns * pitch - gap + 8)
    start = (total - columns * pitch + gap) / 2

    def left(layer: int) -> float:
        return start + layer * pitch

    arrows, labels = [], []
    for edge in edges:
        first, last = layout.layers[edge.source], layout.layers[edge.target]
        if first >= last:
            continue
        middle = layout.y[edge.source, first]
        path = f"M{left(first) + width:.1f} {middle:.1f}"
        for layer in range(first + 1, last):
            at = layout.y[edge.source, layer]
            path += _bend(left(layer) - gap, middle, left(layer), at)
            path += f"H{left(layer) + width:.1f}"
            middle = at
        end = _entry(edge, edges, layout.y[edge.target, last])
        path += _bend(left(last) - gap, middle, left(last) - 6, end)
        arrows.append(_arrow(edge, path, left(last) - 6, end))
        labels.append(_label(edge, left(last) - 8, end - 5, gap - 9))
    drawn = [
        _layered_box(b, left(layer), layout.y[b.name, layer] - BOX_HEIGHT / 2, width)
        for b in boxes
        for layer in [layout.layers[b.name]]
    ]
    return _svg("flow", total, layout.height + 4, arrows + drawn + labels, boxes, edges)


def _entry(edge: Edge, edges: list[Edge], middle: float) -> float:
    """Where an arrow meets its box: the arrows into one box are spread along its left side."""
    sources = list(dict.fromkeys((e.source, e.role) for e in edges if e.target == edge.target))
    place_ = sources.index((edge.source, edge.role)) - (len(sources) - 1) / 2
    return middle + place_ * min(32, BOX_HEIGHT / (len(sources) + 0.5))


def _list_svg(boxes: list[Box], edges: list[Edge]) -> Markup:
    rank = {b.name: i for i, b in enumerate(boxes)}
    lane = lanes([b.name for b in boxes], [(e.source, e.target) for e in edges])
    left = 14 + LANE * (1 + max(lane.values(), default=-1))
    pitch = LIST_BOX + LIST_GAP
    arrows = []
    for edge in edges:
        first, last = rank[edge.source], rank[edge.target]
        if last == first + 1:
            x = left + 26
            path = f"M{x} {first * pitch + LIST_BOX}V{last * pitch - 6}"
            arrows.append(_arrow(edge, path, x, last * pitch - 6, down=True))
        elif last > first:
            x = left - 14 - LANE * lane[edge.source]
            start, end = first * pitch + LIST_BOX / 2 + 10, last * pitch + LIST_BOX / 2 - 8
            path = (
                f"M{left} {start}H{x + 6}Q{x} {start} {x} {start + 6}"
                f"V{end - 6}Q{x} {end} {x + 6} {end}H{left - 6}"
            )
            arrows.append(_arrow(edge, path, left - 6, end))
    drawn = [_list_box(b, edges, left, rank[b.name] * pitch, LIST_WIDTH - left - 2) for b in boxes]
    return _svg("flow", LIST_WIDTH, len(boxes) * pitch - LIST_GAP + 4, arrows + drawn, boxes, edges)


def _layered_box(box: Box, x: float, y: float, width: float) -> Markup:
    lines = _wrapped(box.name, width - 19, 13)
    texts = [_text("kind", x + 14, y + 20, box.kind)]
    texts += [_text("name", x + 14, y + 37 + 15 * i, line) for i, line in enumerate(lines)]
    below = y + BOX_HEIGHT
    if box.figure:
        texts.append(_text("figure", x + 14, below - 36, box.figure))
    caption = box.caption
    if _width(caption, 10.5) > width - 20:
        caption = _clipped(caption.rpartition(" ±")[0] or caption, width - 20, 10.5)
    texts.append(_text("caption", x + 14, below - 22, caption))
    texts.append(_text("time", x + 14, below - 9, _clipped(box.time, width - 20, 10.5)))
    return _frame(box, x, y, width, BOX_HEIGHT, texts)


def _list_box(box: Box, edges: list[Edge], x: float, y: float, width: float) -> Markup:
    inputs = ", ".join(f"{e.source} ({e.role})" for e in edges if e.target == box.name)
    right = x + width - 12
    texts = [
        _text("kind", x + 14, y + 18, box.kind),
        _text("name", x + 14, y + 36, _clipped(box.name, width * 0.62, 13)),
        _text("figure", right, y + 20, box.figure, "end"),
        _text("caption", right, y + 35, _clipped(box.caption, width * 0.5, 10.5), "end"),
        _text("time", right, y + 54, box.time, "end"),
        _text(
            "caption", x + 14, y + 54, _clipped(f"← {inputs}" if inputs else "", width * 0.72, 10.5)
        ),
    ]
    return _frame(box, x, y, width, LIST_BOX, texts)


def _frame(
    box: Box, x: float, y: float, width: float, height: float, texts: list[Markup]
) -> Markup:
    return Markup(
        '<g class="box f-{} st-{}"><rect class="card" x="{}" y="{}" width="{}" height="{}" rx="9"/>'
        '<rect class="edge" x="{}" y="{}" width="4" height="{}" rx="2"/>{}</g>'
    ).format(
        box.family, box.status, _r(x), _r(y), _r(width), height, _r(x + 5), _r(y + 9), height - 18,
        Markup("").join(texts),
    )  # fmt: skip


def _svg(
    css: str, width: float, height: float, parts: list[Markup], boxes: list[Box], edges: list[Edge]
) -> Markup:
    said = "; ".join(f"{e.source} to {e.target} as {e.role}" for e in edges)
    label = f"Pipeline of {len(boxes)} stages. {said}"
    return Markup(
        '<svg class="{}" viewBox="-2 -2 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(css, _r(width + 4), _r(height + 4), label, Markup("").join(parts))


def _arrow(edge: Edge, path: str, x: float, y: float, down: bool = False) -> Markup:
    """A wire along `path` with its tip at (x, y), pointing right or down."""
    x, y = round(x, 1), round(y, 1)
    tip = f"M{x - 4} {y - 1}l4 7 4 -7z" if down else f"M{x - 1} {y - 4}l7 4 -7 4z"
    return Markup(
        '<g class="arrow r-{}"><path class="wire" d="{}"/><path class="tip" d="{}"/></g>'
    ).format(edge.flow, path, tip)


def _flow(role: str, family: str) -> str:
    """What an arrow carries, from its role and the family of the stage it leaves."""
    if family == "data" or role in ("data", "prompts", "pairs", "samples"):
        return "data"
    if family == "reward" or role in ("reward", "reward_model", "teacher", "reference"):
        return "judge"
    return "weights"


def _bend(x1: float, y1: float, x2: float, y2: float) -> str:
    half = (x1 + x2) / 2
    return f"L{x1:.1f} {y1:.1f}C{half:.1f} {y1:.1f} {half:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"


def _label(edge: Edge, x: float, y: float, width: float) -> Markup:
    """The role before an arrow's tip, its words under one another where they are too long."""
    role = spoken(edge.role)
    lines = [role] if _width(role, 9) <= width else role.split(" ")
    texts = [
        _text("role", x, y - 11 * (len(lines) - 1 - i), _clipped(line, width, 9), "end")
        for i, line in enumerate(lines)
    ]
    return Markup("").join(texts)


def _text(css: str, x: float, y: float, text: str, anchor: str = "start") -> Markup:
    if not text:
        return Markup("")
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        css, _r(x), _r(y), anchor, escape(text)
    )


def _wrapped(name: str, width: float, size: float) -> list[str]:
    """A name in at most two lines, broken where the longer one is shortest."""
    if _width(name, size) <= width:
        return [name]
    breaks = [i + 1 for i, c in enumerate(name[:-1]) if c in "_-. /"]
    at = min(breaks, key=lambda i: max(i, len(name) - i), default=len(name))
    return [_clipped(part, width + 6, size) for part in (name[:at], name[at:]) if part]


def _clipped(text: str, width: float, size: float) -> str:
    if _width(text, size) <= width:
        return text
    while text and _width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def _width(text: str, size: float) -> float:
    """Rough width of a text: sans-serif letters are 0.56 em wide, Chinese ones 1 em."""
    return size * sum(1.0 if ord(c) > 0x2E7F else 0.56 for c in text)


def _r(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

"""The scatter chart of a `pareto` stage: places, fillings, words."""

import re

import pytest

from posttrain_jax.report.fronts import BOTTOM, HEIGHT, LEFT, MARGIN, RIGHT, TOP, WIDTH, fronts
from posttrain_jax.report.page import render_page
from posttrain_jax.report.records import Input, Metric, Run, Stage

METRICS = {
    "hypervolume": Metric(20.0), "hypervolume/sweep": Metric(18.5),
    "first/a": Metric(0.5, 0.0, 9), "second/a": Metric(30.0, 0.0, 9), "on_front/a": Metric(1.0),
    "first/b": Metric(0.9, 0.0, 9), "second/b": Metric(10.0, 0.0, 9), "on_front/b": Metric(0.0),
}  # fmt: skip


@pytest.fixture
def run():
    inputs = (Input("a", "eval_a"), Input("b", "eval_b"))
    stage = Stage("front", "pareto", status="done", metrics=METRICS, inputs=inputs)
    settings = {"objectives": ["pass@1", "-length"], "series": {"sweep": ["a", "b"]}}
    return Run("here", stages=(stage,), config={"stages": {"front": settings}})


def test_points_lie_where_their_figures_say(run):
    (found,) = fronts(run)
    wide, high = WIDTH - RIGHT - LEFT, HEIGHT - BOTTOM - TOP
    edge = MARGIN / (1 + 2 * MARGIN)  # of the axis, outside of the outermost points
    circles = re.findall(r'class="(\w+)" cx="([\d.]+)" cy="([\d.]+)"', found.chart)
    assert [css for css, _, _ in circles] == ["point", "ring"]
    assert [float(v) for _, x, y in circles for v in (x, y)] == pytest.approx(
        [
            LEFT + edge * wide, TOP + edge * high,
            LEFT + wide - edge * wide, TOP + high - edge * high,
        ], abs=0.1,
    )  # fmt: skip
    assert "a (sweep): pass@1 50.0 ± 0.0 %, length 30.0 ± 0.0 tokens" in found.chart
    assert found.areas == (("sweep", "18.5"),)
    assert [p.role for p in found.points] == ["a", "b"]


def test_the_page_has_the_figures(run):
    page = render_page(run)
    assert "<h3>Trade-offs</h3>" in page and "sweep (area 18.5)" in page
    assert re.search(r">a</th><td class=\"num\">50.0 % ±0.0</td>.*on the front", page)
    assert "Trade-offs" not in render_page(Run("here", stages=run.stages))

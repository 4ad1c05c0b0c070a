"""The reliability chart, point by point, and what stands beside it."""

import re

from posttrain_jax.report.page import render_page
from posttrain_jax.report.records import Metric, Run, Stage
from posttrain_jax.report.reliability import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, trusted

METRICS = {
    "pair_accuracy": Metric(0.75, 0.02, 128),
    "pair_accuracy/safety": Metric(0.5, 0.05, 64),
    "calibration_error": Metric(0.125, 0.0, 1),
    "reliability/0": Metric(0.5, 0.1, 25),
    "confidence/0": Metric(0.55, 0.0, 25),
    "reliability/4": Metric(1.0, 0.0, 100),
    "confidence/4": Metric(0.95, 0.0, 100),
}


def run_of(**metrics):
    stages = (
        Stage("taste", "reward_model", status="done", metrics=METRICS | metrics),
        Stage("dpo", "preference", status="done", metrics={"pair_accuracy": Metric(0.5)}),
    )
    return Run("here", stages=stages)


def test_points_lie_where_their_figures_say():
    (found,) = trusted(run_of())
    circles = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', found.chart)
    wide, high = WIDTH - RIGHT - LEFT, HEIGHT - BOTTOM - TOP
    assert [tuple(map(float, c)) for c in circles] == [
        (round(LEFT + 0.1 * wide, 1), HEIGHT - BOTTOM, 3.5),  # 2 + 3 sqrt(25 / 100)
        (round(LEFT + 0.9 * wide, 1), TOP, 5.0),
    ]
    assert "50 % right at 55 % confidence, 25 cases" in found.chart
    assert 'aria-label="taste: reliability, 50 % right at 55 %; 100 % right at 95 %"' in found.chart
    assert high > 0


def test_a_bin_below_a_half_moves_the_axis_down():
    (found,) = trusted(run_of(**{"reliability/0": Metric(0.3, 0.1, 25)}))
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', found.chart)]
    high = HEIGHT - BOTTOM - TOP
    assert heights == [round(HEIGHT - BOTTOM - (0.3 - 0.25) / 0.75 * high, 1), TOP]


def test_figures_and_domains():
    (found,) = trusted(run_of(**{"squared_error/honest": Metric(0.0625, 0.01, 9)}))
    assert [f[:2] for f in found.figures] == [
        ("pair accuracy", "75.0 % ±2.0"), ("calibration error", "12.5 %")
    ]  # fmt: skip
    assert found.domains == (
        ("safety", "50.0 ±5.0", "64"), ("squared_error of honest", "0.0625 ±0.01", "9")
    )  # fmt: skip


def test_the_page_shows_them_and_escapes_names():
    page = render_page(run_of(**{"pair_accuracy/<b>x": Metric(0.5, 0.0, 1)}))
    assert "<h3>Reward models</h3>" in page and "confidence, %" in page
    assert "&lt;b&gt;x" in page and "<b>x" not in page
    assert "<h3>Reward models</h3>" not in render_page(Run("here"))

"""The chart and tables of a `compute_curves` stage, from metrics made by hand."""

import re

import pytest

from posttrain_jax.report.compute import compute_curves
from posttrain_jax.report.fronts import LEFT, MARGIN, RIGHT, WIDTH
from posttrain_jax.report.markdown import render_markdown
from posttrain_jax.report.page import render_page
from posttrain_jax.report.records import Metric, Run, Stage

OPTIONS = {
    "vote/1": (10, 0.5), "vote/4": (40, 0.7), "vote/2": (20, 0.6), "beam/wide": (80, 0.8),
    "compute_optimal/10": (10, 0.5), "compute_optimal/80": (50, 0.85),
}  # fmt: skip


@pytest.fixture
def run():
    metrics = {f"tokens/{name}": Metric(x, 0.5, 9) for name, (x, _) in OPTIONS.items()}
    metrics |= {
        f"accuracy/{name}": Metric(y, 0.01, 9, 0.4, 0.9) for name, (_, y) in OPTIONS.items()
    }
    metrics |= {"accuracy": Metric(0.85), "tokens": Metric(50.0), "problems": Metric(9)}
    for number, rate in ((1, 0.9), (3, 0.25)):
        metrics[f"difficulty/{number}"] = Metric(rate, 0.0, 4 + number)
        metrics |= {
            f"bin{number}/{name}": Metric(rate, 0.01, 4) for name in OPTIONS if "opt" not in name
        }
        metrics[f"chosen{number}/10/vote/1"] = Metric(1.0)
    metrics |= {"chosen1/80/vote/2": Metric(1.0), "chosen3/80/beam/wide": Metric(0.5)}
    metrics["chosen3/80/vote/4"] = Metric(0.5)
    stage = Stage("compute", "compute_curves", status="done", metrics=metrics)
    return Run("here", stages=(stage, Stage("later", "compute_curves")))


def test_lines_choices_and_bins(run):
    (found,) = compute_curves(run)
    assert found.names == ("vote", "beam", "compute_optimal")
    assert found.budgets == (("10", "50.0 ±1.0 %"), ("80", "85.0 ±1.0 %"))
    assert [(b.name, b.about, b.chosen) for b in found.bins] == [
        ("bin 1 (easiest)", "5 problems, pass rate 90.0 ±0.0 %", ("vote 1", "vote 2")),
        (
            "bin 3 (hardest)", "7 problems, pass rate 25.0 ±0.0 %",
            ("vote 1", "beam wide or vote 4"),
        ),
    ]  # fmt: skip
    assert "compute optimal from 50.0 ±1.0 % at 10 to 85.0 ±1.0 % at 50 tokens" in found.chart
    assert found.bins[0].chart.count("<circle") == 4


def test_tokens_are_on_a_scale_of_doublings(run):
    (found,) = compute_curves(run)
    first, *_ = re.findall(r'class="joined s0" points="([^"]+)"', found.chart)
    across = [float(point.split(",")[0]) for point in first.split()]
    unit = (WIDTH - RIGHT - LEFT) / 3 / (1 + 2 * MARGIN)  # of three doublings, 10 to 80
    start = LEFT + 3 * MARGIN * unit
    assert across == pytest.approx([start + i * unit for i in range(3)], abs=0.1)
    ticks = re.findall(r'text-anchor="middle">(\d+)</text>', found.chart)
    assert ticks == ["10", "20", "40", "80"]


def test_page_and_markdown(run):
    page = render_page(run)
    assert "<h3>Test-time compute</h3>" in page
    assert re.search(r'<th scope="row">80</th><td>vote 2</td><td>beam wide or vote 4</td>', page)
    assert "| 80 | vote 2 | beam wide or vote 4 | 85.0 ±1.0 % |" in render_markdown(run)
    assert "Test-time compute" not in render_page(Run("here"))

"""Curves, layout, counters and times, against values worked out by hand."""

import itertools
import math

import pytest

from posttrain_jax.report.charts import panel_svg, ticks
from posttrain_jax.report.counters import counts, warnings
from posttrain_jax.report.curves import constants, panels, smoothed, thinned
from posttrain_jax.report.graph import pipeline
from posttrain_jax.report.layout import lanes, place
from posttrain_jax.report.reader import read_run
from posttrain_jax.report.records import Run, Stage
from posttrain_jax.report.timing import bars
from posttrain_jax.report.vocabulary import duration, plain, show, term


def test_smoothing_keeps_a_straight_line_and_its_ends():
    steps = [float(i) for i in range(40)]
    values = [3.0 - 0.25 * s for s in steps]
    assert smoothed(steps, values, 9, range(40)) == pytest.approx(values)


def test_smoothing_by_hand():
    # around step 1 of (0, 1, 2): reach 1.0001, so the tricube weights of the ends are
    # (1 - (1/1.0001)^3)^3 = 2.7e-11: the middle value alone counts
    assert smoothed([0, 1, 2], [0.0, 6.0, 0.0], 3, [1]) == pytest.approx([6.0], abs=1e-6)
    # five values, middle at 2: weights of steps 1 and 3 are (1 - 1/8)^3 = 0.6699
    expected = (0.669921875 * 3 + 6) / (1 + 2 * 0.669921875)
    got = smoothed([0, 1, 2, 3, 4], [0.0, 0.0, 6.0, 3.0, 0.0], 5, [2])
    assert got == pytest.approx([expected], abs=2e-3)


def test_smoothing_of_noise_is_nearer_to_the_truth():
    steps = [float(i) for i in range(200)]
    truth = [math.sin(s / 40) for s in steps]
    noisy = [t + (0.3 if i % 2 else -0.3) for i, t in enumerate(truth)]
    smooth = smoothed(steps, noisy, 33, range(200))
    assert max(abs(a - b) for a, b in zip(smooth, truth, strict=True)) < 0.12


def test_thinning_keeps_spikes():
    values = [0.0] * 5000
    values[1234], values[4321] = 7.0, -3.0
    steps, kept = thinned(range(5000), values, 100)
    assert len(kept) <= 100
    assert (kept[steps.index(1234)], kept[steps.index(4321)]) == (7.0, -3.0)
    assert list(steps) == sorted(steps)


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 27, [0, 10, 20]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0.0031, 0.0049, [0.0035, 0.004, 0.0045]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_panels_group_reward_parts_and_leave_out_what_never_moves(run_folder):
    stage = read_run(run_folder()).stage("reasoning_rl")
    assert stage is not None
    made = panels(stage)
    assert [p.title for p in made][:4] == ["accuracy", "reward", "reward parts", "length"]
    parts = next(p for p in made if p.title == "reward parts")
    assert [s.label for s in parts.series] == ["accuracy", "format", "language"]
    assert constants(stage) == [("masked", 0.0)]
    assert not any(p.name == "masked" or p.name.startswith("seconds") for p in made)


def test_gap_panel_shows_the_limit_on_a_log_scale():
    rows = tuple({"step": float(i), "logprob_gap": 1e-6 * 10**i} for i in range(3))
    (panel,) = panels(Stage("rl", "rl", steps=rows))
    assert panel.log and panel.low < 1e-6 and panel.high > 1e-4 == panel.limit
    svg = panel_svg(panel)
    assert 'class="limit"' in svg and ">1e-4<" in svg
    # a log axis puts equal factors at equal distances
    heights = [
        float(p.split(",")[1]) for p in svg.split('raw s0" points="')[1].split('"')[0].split()
    ]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.15)


def test_layers_follow_inputs_and_sources_stand_before_their_reader():
    names = ["base", "cold", "rl", "student", "distill"]
    edges = [("base", "cold"), ("cold", "rl"), ("rl", "distill"), ("student", "distill")]
    layout = place(names, edges, box=100, gap=20, passage=10)
    assert layout.layers == {"base": 0, "cold": 1, "rl": 2, "student": 2, "distill": 3}


def test_boxes_do_not_overlap():
    names = [f"s{i}" for i in range(9)]
    edges = [("s0", f"s{i}") for i in range(1, 9)] + [("s1", "s2"), ("s2", "s3"), ("s3", "s8")]
    layout = place(names, edges, box=100, gap=20, passage=10)
    for layer in set(layout.layers.values()):
        column = sorted((y, layout.layers[n]) for (n, at), y in layout.y.items() if at == layer)
        for (above, first), (below, second) in itertools.pairwise(column):
            half = sum(50 if own == layer else 5 for own in (first, second))
            assert below - above >= half


def test_an_arrow_over_many_layers_runs_straight():
    names = ["base", "a", "b", "c", "d", "end"]
    edges = [*itertools.pairwise(names), ("base", "end"), ("base", "c")]
    layout = place(names, edges, box=100, gap=20, passage=10)
    passing = {y for (name, at), y in layout.y.items() if name == "base" and at > 0}
    assert len([stop for stop in layout.y if stop[0] == "base"]) == 5
    assert len(passing) == 1


def test_lanes_are_shared_only_when_free():
    names = list("abcdefg")
    edges = [("a", "b"), ("a", "d"), ("b", "e"), ("d", "f"), ("f", "g")]
    assert lanes(names, edges) == {"a": 0, "b": 1, "d": 0}


def test_pipeline_folds_evaluations_and_draws_every_input(run_folder):
    boxes, edges = pipeline(read_run(run_folder()))
    assert len(boxes) == 11
    assert len(edges) == 12
    assert {(e.source, e.target, e.flow) for e in edges} >= {
        ("pretrain", "sft_from_base", "weights"),
        ("kept", "sft_from_base", "data"),
        ("preference_model", "all_scenarios_rl", "judge"),
    }
    zero = next(b for b in boxes if b.name == "r1_zero")
    assert (zero.figure, zero.caption, zero.time) == ("73.6 %", "pass@1 ±1.9", "30 s")


def test_input_from_outside_the_run_gets_a_box(run_folder):
    stages = [("tuned", "sft", {"policy": "released_model"}, 1.0, (0.5, 0.5, 9.0, 1.0))]
    boxes, edges = pipeline(read_run(run_folder(stages=stages)))
    assert [(b.name, b.kind) for b in boxes] == [("released_model", "outside"), ("tuned", "sft")]
    assert edges[0].source == "released_model"


def test_counters_by_hand():
    rows = tuple({"step": float(i), "truncated": t} for i, t in enumerate((0.5, 0.25, 0.0)))
    found = {c.name: c for c in counts(Run("r", stages=(Stage("rl", "rl", steps=rows),)))}
    assert (found["truncated"].overall, found["truncated"].worst) == (
        "25.0 % on average",
        "50.0 % at step 0",
    )
    assert found["truncated"].level == "some"
    assert {found[n].overall for n in ("masked", "all_equal_groups", "skipped")} == {"not recorded"}


def test_warning_on_a_log_prob_gap_above_the_limit():
    rows = tuple({"step": float(i), "logprob_gap": g} for i, g in enumerate((1e-5, 7.0, 2e-4)))
    (said,) = warnings(Run("r", stages=(Stage("rl", "rl", steps=rows),)))
    assert said == (
        "rl: sampler and trainer disagree by up to 7 nats (step 1; 2 of 3 steps above 1e-4)."
    )


def test_bars_add_up_to_the_stage_and_leave_out_the_compiling_step():
    rows = tuple({"step": float(i), "tokens_per_second": r} for i, r in enumerate((9.0, 100, 300)))
    stage = Stage("rl", "rl", seconds=10.0, phases={"update": 4.0, "compile": 3.0}, steps=rows)
    (bar,) = bars(Run("r", stages=(stage,)))
    assert bar.segments == (("compile", 3.0), ("update", 4.0), ("other", 3.0))
    assert bar.rate == 200


def test_evaluations_share_one_bar(run_folder):
    *_, last = bars(read_run(run_folder()))
    assert (last.name, last.seconds) == ("8 evaluations", 8 * 2.5)


def test_numbers_are_written_shortly():
    numbers = (0.0, 1.0, 12.346, 0.01234, 1234.5, 1e-4, 2.5e7)
    assert [plain(v) for v in numbers] == ["0", "1", "12.35", "0.0123", "1,234", "1e-4", "2.5e7"]
    assert [show("pass@8", 0.7362), show("length", 27.14), show("loss", 1.5)] == [
        "73.6",
        "27.1",
        "1.5",
    ]
    assert [duration(s) for s in (None, 1.26, 59.7, 95, 7325)] == [
        "–", "1.3 s", "1 min 00 s", "1 min 35 s", "2 h 02 min",
    ]  # fmt: skip


def test_unknown_metrics_are_shown_as_they_are():
    assert term("my_new_number") == ("my new number", "", False, "")
    assert term("greedy/word_problem")[:3] == ("word problem", "%", True)
    assert term("pass@1 (other)")[:3] == ("pass@1 (other)", "%", True)


def test_skipped_updates_count_from_the_start_and_are_not_summed():
    rows = tuple({"step": float(i), "skipped": s, "masked": 3.0} for i, s in enumerate((0, 1, 2)))
    stage = Stage("kept", "reject", steps=rows)
    found = {c.name: c.overall for c in counts(Run("r", stages=(stage,)))}
    assert found == {"skipped": "2", "masked": "9"}


def test_skipped_prompts_are_no_record_of_skipped_updates():
    rows = ({"step": 0.0, "skipped_prompts": 4.0},)
    found = {c.name: c.overall for c in counts(Run("r", stages=(Stage("a", "rl", steps=rows),)))}
    assert (found["skipped_prompts"], found["skipped"]) == ("4", "not recorded")

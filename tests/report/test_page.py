"""The page: nothing from outside, hostile text stays text, the figures of the run are in it."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from posttrain_jax.report import write_report
from posttrain_jax.report.records import Sample, Stage
from posttrain_jax.report.samples import choose, highlighted, reward_range, visible


class Page(HTMLParser):
    """Every tag with its attributes, and the text of the page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data):
        self.text += data


def test_page_loads_nothing_from_outside(run_folder):
    text = write_report(run_folder()).read_text()
    assert not re.search(r"(?:https?|wss?|ftp|file):|//\w+\.\w", text)
    assert "url(" not in text and "@import" not in text
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base", "use", "image")
        assert "src" not in attributes and "xlink:href" not in attributes
        assert attributes.get("href", "#").startswith("#")


def test_hostile_text_stays_text(run_folder):
    text = write_report(run_folder(hostile=True)).read_text()
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert('x')</script><img src=https://evil.example/x.png" in page.text
    assert "\u202e" not in text and "\x00" not in text and "U+202E" in text


def test_hostile_names_stay_text(run_folder):
    name = '"><script>alert(1)</script>'
    stages = [(f"a{name.replace('/', '')}", "rl", {name: "b"}, 1.0, (0.5, 0.5, 1.0, 1.0))]
    page = Page(write_report(run_folder(steps=9, stages=stages)).read_text())
    assert sum(tag == "script" for tag, _ in page.tags) == 1


def test_only_our_script_may_run(run_folder):
    text = write_report(run_folder(hostile=True)).read_text()
    body = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    policy = next(a["content"] for t, a in Page(text).tags if t == "meta" and "content" in a)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_markdown_fences_are_longer_than_the_text_can_close(run_folder):
    folder = run_folder(hostile=True)
    write_report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("<script>"))
    assert lines[at - 1] == "````text"
    outside = "\n".join(lines[: at - 1])
    assert "<script" not in outside


def test_normal_run_stays_below_two_megabytes(run_folder):
    assert write_report(run_folder(steps=600)).stat().st_size < 2_000_000


def test_page_shows_what_was_measured(run_folder):
    text = Page(write_report(run_folder()).read_text()).text
    for said in ("73.6 ±1.9 %", "+55.8", "log-prob gap", "pair accuracy", "not recorded", "70c70c"):
        assert said in text
    assert "8 evaluation stages are shown inside the policy they measured" in " ".join(text.split())


def test_figures_have_text_for_those_who_cannot_see_them(run_folder):
    page = Page(write_report(run_folder()).read_text())
    drawings = [a for t, a in page.tags if t == "svg"]
    assert drawings and all(a["role"] == "img" and a["aria-label"] for a in drawings)
    ids = {a["id"] for _, a in page.tags if "id" in a}
    for _, attributes in page.tags:
        assert attributes.get("href", "#config")[1:] in ids
        assert attributes.get("aria-labelledby", "config") in ids


def test_rollouts_are_those_of_the_last_step_sorted_with_best_and_worst():
    early = [Sample(0, "", "", 50.0) for _ in range(30)]
    stage = Stage("rl", samples=(*early, *(Sample(20, "", "", r / 10) for r in range(100))))
    chosen = choose(stage, 12)
    rewards = [s.reward or 0.0 for s in chosen]
    assert rewards == sorted(rewards, reverse=True)
    assert (len(chosen), rewards[0], rewards[-1]) == (12, 9.9, 0.0)
    assert {s.step for s in chosen} == {20}


def test_colours_ignore_an_outlier():
    rewards = [0.0, *[1.0] * 50, *[2.0] * 48, 1000.0]
    low, high = reward_range([Sample(0, "", "", r) for r in rewards])
    assert (low, high) == (1.0, 2.0)


def test_tags_are_marked_and_the_rest_escaped():
    html = highlighted("a<b <think>x & y</think><answer>8</answer><|im_end|>")
    assert html == (
        '<span class="in-text">a&lt;b </span><span class="tag">&lt;think&gt;</span>'
        '<span class="in-think">x &amp; y</span><span class="tag">&lt;/think&gt;</span>'
        '<span class="tag">&lt;answer&gt;</span><span class="in-answer">8</span>'
        '<span class="tag">&lt;/answer&gt;</span><span class="tag">&lt;|im_end|&gt;</span>'
    )


def test_long_text_is_cut_with_a_count():
    assert str(highlighted("x" * 5000)).endswith("… 2,000 more characters</span>")


def test_invisible_characters_become_visible():
    assert visible("a\u202eb\x00c\x1b\ud800\n") == "a⌈U+202E⌉b␀c␛⌈U+D800⌉\n"


def test_markdown_escapes_only_what_markdown_reads(run_folder):
    folder = run_folder(stages=[("a_b", "rl", {}, 1.0, (0.5, 0.5, 1.0, 1.0))])
    record = (folder / "run.json").read_text().replace("r1.py", "_x_|<b>*y*`")
    (folder / "run.json").write_text(record)
    write_report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    assert lines[0] == r"# \_x\_\|&lt;b&gt;\*y\*\`:tiny"
    assert any(line.startswith("| a_b | 50.0 ±2.2 |") for line in lines)

"""The forms of graded responses, and what is refused."""

import math

import pytest

from posttrain_jax.data.graded import read_graded


def shown(groups):
    return [(g.responses, g.grades, g.margin) for g in groups]


def test_pairs_and_edited_ones_are_ranked():
    rows = [
        {"prompt": "p", "chosen": "c", "rejected": "r", "strength": 2},
        {"prompt": "p", "chosen": "c", "rejected": "r", "edited": "e", "strength": 1.5},
    ]
    groups, _ = read_graded(rows, margin=0.5, margin_field="strength")
    assert shown(groups) == [
        (("c", "r"), ((1.0,), (0.0,)), 2.5),
        (("e", "c", "r"), ((2.0,), (1.0,), (0.0,)), 2.0),
    ]
    assert [g.responses for g in groups[1].apart()] == [("e",), ("c",), ("r",)]


def test_rows_of_a_prompt_are_a_group():
    rows = [
        {"prompt": "p", "source": "a", "index": i, "response": text, "masked": text == "x",
         "scores": {"accuracy": grade}}
        for i, text, grade in ((0, "r", 1.0), (1, "s", 0.0), (0, "t", 0.0), (1, "x", 1.0))
    ]  # fmt: skip
    groups, counts = read_graded(rows, label="scores.accuracy")
    assert shown(groups) == [
        (("r", "t"), ((1.0,), (0.0,)), 0.0), (("s",), ((0.0,),), 0.0)
    ]  # fmt: skip
    assert counts == {"dropped_masked": 1}


def test_responses_may_be_messages():
    asked = [{"role": "user", "content": "q"}]
    said = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    rows = [
        {"id": 1, "prompt": "q", "chosen": [*asked, said("c")], "rejected": [*asked, said("r")]},
        {"id": 2, "prompt": "q", "chosen": said("c"), "rejected": "r"},
        {"id": 3, "messages": asked, "response": said("c"), "label": 1},
        {"id": 4, "messages": asked, "response": "d", "label": 0},
    ]
    groups, _ = read_graded(rows)
    assert [g.responses for g in groups] == [("c", "r"), ("c", "r"), ("c", "d")]
    assert groups[0].example["messages"] == asked and "prompt" not in groups[0].example
    assert groups[1].example == rows[1]
    other = [{"role": "user", "content": "other"}]
    for bad, words in (
        ({"chosen": [*asked, said("c")], "rejected": [*other, said("r")]}, "different"),
        ({"chosen": asked, "rejected": "r"}, "a text of the assistant"),
        ({"chosen": [], "rejected": "r"}, "a text of the assistant"),
    ):
        with pytest.raises(ValueError, match=f"example 5: .*{words}"):
            read_graded([{"id": 5, "prompt": "q", **bad}])


def test_lists_and_ratings():
    groups, _ = read_graded([{"prompt": "p", "responses": ["a", "b"], "labels": [True, 0.5]}])
    assert shown(groups) == [(("a", "b"), ((1.0,), (0.5,)), 0.0)]
    rows = [{"prompt": "p", "responses": ["a", "b"], "ratings": [{"safe": 1}, {"kind": 0.5}]}]
    groups, _ = read_graded(rows, objectives=("kind", "safe"))
    (missing, safe), (kind, other) = groups[0].grades
    assert (safe, kind) == (1.0, 0.5) and math.isnan(missing) and math.isnan(other)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"chosen": "c"}, {}, "'x' has no chosen and rejected response"),
        ({"response": "r"}, {}, "'x': label is None, expected a number"),
        ({"response": "r", "label": "safe"}, {}, "'x': label is 'safe', expected a number"),
        ({"response": "r", "label": float("nan")}, {}, "'x': label is nan, expected a number"),
        ({"responses": ["a", "b"], "labels": [1]}, {}, "2 responses need as many labels, got"),
        ({"response": "r", "ratings": {"a": 1}}, {"objectives": ("b",)}, "expected some of"),
        ({"chosen": "c", "rejected": "r"}, {"objectives": ("b",)}, "'x' has no .* ratings"),
        ({"chosen": "c", "rejected": "r"}, {"margin_field": "gap"}, "'x': gap is None, expected"),
    ],
)
def test_what_is_refused_names_the_example(row, options, message):
    with pytest.raises(ValueError, match=message):
        read_graded([{"id": "x", "prompt": "p", **row}], **options)

"""Rejection sampling by hand: who is left out and why, and who is preferred."""

import pytest

from posttrain_jax.stages.reject import select, spoilt


def row(response, *, index=0, accuracy=1.0, format=1.0, length=3, **flags):
    state = {"masked": False, "finished": True, "forged": False, **flags}
    scores = {"accuracy": accuracy, "format": format}
    return {"response": response, "index": index, "length": length, "scores": scores, **state}


def kept(rows, *, per_prompt=0, prefer="first", keep=None):
    found, counts = select(rows, {"accuracy": 1.0} if keep is None else keep, per_prompt, prefer)
    assert counts["kept"] == len(found)
    left_out = sum(v for k, v in counts.items() if k not in ("sampled", "kept"))
    assert counts["sampled"] == len(rows) == counts["kept"] + left_out  # each row counts once
    return "".join(r["response"] for r in found), counts


def test_each_reason_is_counted_once():
    rows = [
        row("a"),
        row("b", masked=True, finished=False, accuracy=0.0),
        row("c", finished=False, forged=True),
        row("d", forged=True, accuracy=0.0),
        row("e", accuracy=0.9, format=0.0),
        row("f", format=0.4),
        row("a"),
    ]
    found, counts = kept(rows, keep={"accuracy": 1.0, "format": 0.5})
    assert found == "a"
    assert counts == {
        "sampled": 7, "masked": 1, "unfinished": 1, "forged": 1, "below_accuracy": 1,
        "below_format": 1, "repeated": 1, "surplus": 0, "kept": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prefer", "per_prompt", "expected"),
    [("first", 0, "wxyz"), ("first", 2, "wxz"), ("short", 2, "yxz"), ("long", 1, "wz"),
     ("short", 0, "yxwz")],
)  # fmt: skip
def test_preferences_hold_within_each_prompt(prefer, per_prompt, expected):
    rows = [row("w", length=9), row("x", length=5), row("y", length=2), row("z", index=1)]
    assert kept(rows, per_prompt=per_prompt, prefer=prefer)[0] == expected


def test_a_score_can_be_preferred():
    rows = [row("w", format=0.2), row("x", format=0.9), row("y", format=0.5), row("z", index=1)]
    assert kept(rows, per_prompt=2, prefer="format")[0] == "xyz"


def test_the_same_response_to_another_prompt_is_no_repeat():
    found, counts = kept([row("a"), row("a", index=1), row("a")])
    assert (found, counts["repeated"], counts["surplus"]) == ("aa", 1, 0)


def test_a_repeat_does_not_use_up_the_room_of_its_prompt():
    found, counts = kept([row("a"), row("a"), row("b"), row("c")], per_prompt=2)
    assert (found, counts["repeated"], counts["surplus"]) == ("ab", 1, 1)


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match=r"scores \['lang'\]; the samples have \['accuracy', 'f"):
        select([row("a")], {"lang": 1.0}, 0, "first")
    with pytest.raises(ValueError, match=r"prefer='best': expected one of .*'short'"):
        select([row("a")], {}, 0, "best")
    assert select([], {}, 0, "first")[1]["kept"] == 0


def test_spoilt_samples_are_not_mixed_in():
    rows = [row("a"), row("b", forged=True), row("c", finished=False), row("d", accuracy=0.0)]
    assert [spoilt(r) for r in rows] == [False, True, True, False]
    assert not spoilt({"prompt": "p", "solution": "of a task, not a sample"})

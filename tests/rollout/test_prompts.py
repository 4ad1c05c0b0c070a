"""The prompts of an RL stage: shares by group, groups that join later, the same after a resume."""

import collections
import itertools
import json

import pytest
from ml_collections import ConfigDict

from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.policy import Text
from posttrain_jax.rollout.prompts import NOTHING_DRAWN, Drawn, PromptStream


@pytest.fixture(scope="module")
def make_stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    for name, count in (("a", 10), ("b", 4)):
        rows = [{"id": f"{name}{i}", "prompt": f"{name} {i}", "group": name} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer("tiny")
    text = Text(tokenizer, load_template("tiny", tokenizer))

    def make(groups, **changes):
        prompts = {
            name: {"data": {"file": {"path": str(folder / f"{name}.jsonl")}}, **group}
            for name, group in groups.items()
        }
        sizes = {"rollout_size": 16, "group_size": 2, "batch_size": 8, "prompt_length": 16}
        config = {"prompts": prompts, "seed": 0, "system": "", **sizes, **changes}
        return PromptStream(ConfigDict(config), {}, text)

    return make


def ids(prompts):
    return [example["id"] for example in prompts.examples]


def rollouts(stream, count, drawn=NOTHING_DRAWN, first=0):
    """The prompts of rollouts one after the other, two updates each; how far the stream is then."""
    found = []
    for number in range(first, first + count):
        prompts, drawn = stream.draw(2 * number, drawn)
        found.append(ids(prompts))
    return found, drawn


def test_shares_and_late_groups(make_stream):
    stream = make_stream({"a": {"share": 3.0}, "b": {"share": 1.0, "start_step": 4}})
    assert stream.counts(0) == {"a": 8}
    assert stream.counts(3) == {"a": 8}
    assert stream.counts(4) == {"a": 6, "b": 2}
    drawn, after = rollouts(stream, 6)
    found = [collections.Counter(i[0] for i in part) for part in drawn]
    assert found == [{"a": 8}] * 2 + [{"a": 6, "b": 2}] * 4
    assert after == (6, {"a": 40, "b": 8})


def test_every_prompt_of_a_group_comes_once_an_epoch(make_stream):
    """Also across rollouts, and where the number a rollout takes changes on the way."""
    stream = make_stream({"a": {"share": 3.0}, "b": {"share": 1.0, "start_step": 4}})
    drawn = list(itertools.chain(*rollouts(stream, 7)[0]))
    first = [i for i in drawn if i[0] == "a"]
    for epoch in range(4):
        assert sorted(first[10 * epoch : 10 * epoch + 10]) == sorted(f"a{i}" for i in range(10))
    assert first[:10] != first[10:20]
    late = [i for i in drawn if i[0] == "b"]
    assert sorted(late[:4]) == sorted(late[4:8]) == ["b0", "b1", "b2", "b3"]


def test_a_draw_is_a_function_of_how_far_the_stream_is(make_stream):
    one, other = make_stream({"a": {}, "b": {}}), make_stream({"a": {}, "b": {}})
    expected, _ = rollouts(one, 3)
    _, drawn = rollouts(one, 2)
    kept = Drawn(*json.loads(json.dumps(drawn)))  # as a checkpoint has it
    assert rollouts(other, 1, kept, first=2)[0] == expected[2:]
    assert rollouts(make_stream({"a": {}, "b": {}}, seed=1), 1)[0] != expected[:1]


def test_no_group_raises(make_stream):
    with pytest.raises(ValueError, match="prompts is empty"):
        make_stream({})
    with pytest.raises(ValueError, match=r"no group of prompts is active at step 0.*start_step"):
        make_stream({"a": {"start_step": 1}}).draw(0)


def test_prompts_that_are_too_long_are_counted(make_stream):
    shortest = make_stream({"b": {}}, prompt_length=40)
    assert shortest.skipped == 0
    length = int(shortest.draw(0)[0].segments.sum(axis=1).min())
    with pytest.raises(ValueError, match=f"prompt_length={length - 1}"):
        make_stream({"b": {}}, prompt_length=length - 1)

"""Prompts to arrays and back: padding, filled-up batches, what a response's text leaves out."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from posttrain_jax.api import Rollout
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.mesh import make_mesh, shard_rows
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.row_settings import make_rows
from posttrain_jax.rollout.sampling import Sampling

EXAMPLES = [{"prompt": text} for text in ("What is 2 + 3?", "Hi", "List: " + "A B C " * 20)]


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer("tiny")
    return tokenizer, load_template("tiny", tokenizer)


def test_prompts_are_left_padded_and_end_with_the_generation_prompt(text):
    tokenizer, template = text
    prompts = engine.encode_prompts(EXAMPLES, *text, 24)
    assert prompts.examples == EXAMPLES[:2]
    assert prompts.skipped == 1
    for row, (tokens, segments) in enumerate(zip(prompts.tokens, prompts.segments, strict=True)):
        real = tokens[segments > 0].tolist()
        turn = [{"role": "user", "content": EXAMPLES[row]["prompt"]}]
        assert tokenizer.decode(real) == template.render(turn, add_generation_prompt=True)
        assert (np.diff(segments) >= 0).all()  # padding to the left only
        assert (tokens[segments == 0] == tokenizer.pad_id).all()


def test_the_system_prompt_comes_first(text):
    prompts = engine.encode_prompts(EXAMPLES[:2], *text, 40, "Be brief.")
    for tokens in prompts.tokens:
        found = text[0].decode(tokens[tokens != text[0].pad_id].tolist())
        assert found.index("Be brief.") < found.index("<|user|>")


def test_no_prompt_that_fits_raises_with_the_setting(text):
    with pytest.raises(ValueError, match=r"all 3 prompts are longer than prompt_length=2 tokens"):
        engine.encode_prompts(EXAMPLES, *text, 2)


@pytest.mark.parametrize(
    "asked",
    [{"prompt": ""}, {"prompt": " \n"}, {"messages": []}, {"prompt": "", "system": "Be brief."},
     {"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": ""}]}],
)  # fmt: skip
def test_an_empty_prompt_is_refused_with_its_row(text, asked):
    with pytest.raises(ValueError, match=r"example 'x' \(row 1\) has an empty prompt: .* got \["):
        engine.encode_prompts([EXAMPLES[0], {"id": "x", **asked}], *text, 24, "Answer.")


def table(count, skipped=0):
    tokens = np.arange(count)[:, None].astype(np.int32)
    return engine.Prompts([{"id": i} for i in range(count)], tokens, tokens * 0 + 1, skipped)


@pytest.mark.parametrize(
    ("count", "start", "expected"),
    [
        (4, 0, [([0, 1], 2), ([2, 3], 2)]),
        (5, 0, [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]),
        (5, 2, [([4, 4], 1)]),
        (1, 0, [([0, 0], 1)]),
        (4, 2, []),
    ],
)
def test_batches_are_all_of_one_size(count, start, expected):
    found = list(engine.batches(table(count), 2, start))
    assert [(b.tokens[:, 0].tolist(), real) for b, real in found] == expected
    assert [[e["id"] for e in b.examples] for b, _ in found] == [rows for rows, _ in expected]


def test_concat_keeps_rows_beside_their_examples():
    joined = engine.concat([table(3, 1).take([2, 0]), table(2, 4)])
    assert [e["id"] for e in joined.examples] == joined.tokens[:, 0].tolist() == [2, 0, 0, 1]
    assert joined.skipped == 4


def test_responses_are_the_completions_without_the_end_of_sequence(text):
    tokenizer = text[0]
    prompt = tokenizer.encode("question")
    answers = ["<think>one</think><answer>2</answer>", "cut off"]
    rows = [
        prompt + tokenizer.encode(answers[0]) + [tokenizer.eos_id],
        prompt + tokenizer.encode(answers[1]),
    ]
    width = max(map(len, rows)) + 2
    tokens = np.full((2, width), tokenizer.pad_id, np.int32)
    mask = np.zeros((2, width), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, len(prompt) : len(row)] = row, True
    none = np.zeros((2, width), np.float32)
    rollout = Rollout(tokens, tokens, tokens, mask, none, none, np.array([True, False]))
    assert engine.responses(shard_rows(make_mesh(), rollout), tokenizer) == answers


def asked_of(small, prompts, **options):
    sizes = {"seed": 0, "first_uid": 0, "group_size": 2, "max_new": 9, **options}
    tokenizer = SimpleNamespace(
        eos_id=2, pad_id=9, vocab_size=32, decode=lambda ids: " ".join(map(str, ids))
    )
    return engine.job(prompts, small.mesh, tokenizer, **sizes), tokenizer


def test_a_job_numbers_the_rows_and_stops_at_the_end_of_sequence(small):
    job, _ = asked_of(small, table(3), sampling=Sampling(stop=(5,)), first_uid=2**32 - 2)
    assert np.asarray(job.asked.uids_B).tolist() == [2**32 - 2, 2**32 - 1, 0, 1, 2, 3]
    assert set(job.rules.sampling.stop) == {5, 2}
    assert (job.rules.group_size, job.rules.max_new, job.rules.pad_id) == (2, 9, 9)


@pytest.mark.parametrize("stretch", [1, 4, 20])
def test_a_stream_is_the_rollout_and_tells_of_each_sequence_once(small, stretch):
    """Rows are told as soon as a look of the host can see that they ended."""
    stops = Sampling(stop=(3, 4, 5, 6, 7))
    job, tokenizer = asked_of(small, table(4), sampling=stops)
    whole = jax.device_get(engine.roll_out(small.model, small.params, job))
    told = []
    streamed = engine.stream(
        small.model, small.params, job, tokenizer, told.append, stretch=stretch
    )
    assert whole.experts_BTLA is None and streamed.experts_BTLA is None  # a dense model
    for field, one, other in zip(Rollout._fields, whole, jax.device_get(streamed), strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=field)
    lengths = whole.completion_mask_BT.sum(axis=1)
    rows = [int(row) for part in told for row in part.rows]
    assert sorted(rows) == list(range(8))
    by_row = dict(zip(rows, [text for part in told for text in part.responses], strict=True))
    assert [by_row[i] for i in range(8)] == engine.responses(streamed, tokenizer)
    for part in told:
        assert part.lengths.tolist() == lengths[part.rows].tolist()
        assert part.finished.tolist() == whole.finished_B[part.rows].tolist()
    looks = -(-(lengths - 1) // stretch)  # at which look of the host a row's end can be seen
    seen = [set(looks[part.rows]) for part in told]
    assert all(max(one) < min(next_) for one, next_ in itertools.pairwise(seen))
    assert len(told) == len(set(looks)) > (1 if stretch < 9 else 0)


def test_a_queue_gives_the_same_rollout_and_tells_of_each_sequence_once(small):
    stops = Sampling(stop=(3, 4, 5, 6, 7))
    plain, tokenizer = asked_of(small, table(4), sampling=stops)
    queued, _ = asked_of(small, table(4), sampling=stops, slots=3)
    assert queued.sizes is not None and queued.sizes.slots == 3 and plain.sizes is None
    assert asked_of(small, table(4), sampling=stops, slots=8)[0].sizes is None  # all fit
    told = []
    found = engine.stream(small.model, small.params, queued, tokenizer, told.append, stretch=4)
    whole = engine.roll_out(small.model, small.params, plain)
    for field, one, other in zip(Rollout._fields, whole, found, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=field)
    rows = np.concatenate([part.rows for part in told])
    assert len(told) > 1 and sorted(rows) == list(range(8))
    texts, finished = engine.responses(whole, tokenizer), np.asarray(whole.finished_B)
    for part in told:
        assert part.responses == [texts[row] for row in part.rows]
        assert part.finished.tolist() == finished[part.rows].tolist()


def test_a_cache_of_another_type_is_a_queues(small):
    job, _ = asked_of(small, table(4), sampling=Sampling(), slots=8, cache_dtype="int8")
    assert job.sizes is not None and job.rules.cache_dtype == "int8"
    with pytest.raises(ValueError, match="slots=0: set slots to how many"):
        asked_of(small, table(4), sampling=Sampling(), cache_dtype="int8")
    with pytest.raises(ValueError, match=r"cache_dtype='int4': expected one of \('', 'bfloat16'"):
        asked_of(small, table(4), sampling=Sampling(), slots=3, cache_dtype="int4")


def test_a_queue_records_experts_where_it_is_asked_to(small):
    job, _ = asked_of(small, table(4), sampling=Sampling(), slots=3, record_experts=True)
    assert job.sizes is not None and job.rules.record_experts
    assert engine.roll_out(small.model, small.params, job).experts_BTLA is None  # a dense model


@pytest.mark.parametrize("slots", [0, 5])
def test_rollouts_of_all_lengths_compile_once(small, slots):
    compiled = []

    def listen(event, _seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about.get("fun_name"))

    def roll_out(number):
        job, tokenizer = asked_of(
            small, table(4), sampling=Sampling(stop=(3,)), slots=slots, seed=number,
            rows=make_rows(8, max_new=np.random.default_rng(number).integers(1, 9, 8)),
        )  # fmt: skip
        lengths = []
        engine.stream(
            small.model, small.params, job, tokenizer, lambda e: lengths.extend(e.lengths),
            stretch=3,
        )  # fmt: skip
        return tuple(lengths)

    roll_out(0)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = {roll_out(number) for number in range(1, 21)}
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(found) > 10 and not compiled

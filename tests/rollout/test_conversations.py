"""Calls and answers in the queue, against one sequence at a time by the plain loop."""

import threading

import jax
import numpy as np
import pytest

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models.config import Experts
from posttrain_jax.policy import Text
from posttrain_jax.rollout.continuous import Sizes
from posttrain_jax.rollout.conversations import Host, roll_out
from posttrain_jax.rollout.draw_state import make_tables
from posttrain_jax.rollout.partners import Answer, Partner, Partners
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

pytestmark = pytest.mark.usefixtures("quick_compile", "small_pages")
PROMPTS, GROUP, WIDTH, NEW, LONGEST = 4, 2, 5, 40, 12
TINY = load_tokenizer("tiny")
CALL = tuple("abcdefgh一二三")
SAMPLING = Sampling(1.1, stop=(TINY.eos_id, *range(300, 330)), call_strings=CALL)


@pytest.fixture(scope="module")
def policy(make_small):
    return make_small(vocab_size=TINY.vocab_size, pad_id=TINY.pad_id, max_length=64)


@pytest.fixture(scope="module")
def local(make_small):
    """A policy whose first layer sees three places, which is less than an answer."""
    return make_small(
        vocab_size=TINY.vocab_size, pad_id=TINY.pad_id, max_length=64, window=3, global_every=2
    )


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(0)
    segments = (np.arange(WIDTH) >= rng.integers(0, WIDTH, (PROMPTS, 1))).astype(np.int32)
    tokens = (segments * rng.integers(20, TINY.vocab_size, segments.shape)).astype(np.int32)
    uids = np.arange(PROMPTS * GROUP, dtype=np.uint32)
    tables = make_tables(TINY, SAMPLING, TINY.vocab_size)
    return Asked(tokens, segments, jax.random.key(3), uids, tables=tables)


def rules(turns=False):
    return Rules(SAMPLING, NEW, GROUP, TINY.pad_id, inserts=LONGEST, turns=turns)


def says(said, ended):
    """An answer that depends on what was said; some are empty, some end the conversation."""
    if ended:
        return Answer([50, 51]) if len(said) % 2 else None
    size = len(said) % 4
    return Answer([60 + i for i in range(size * 4)][:LONGEST])


def partners(reply=says, wait=20.0, turns=False):
    text = Text(TINY, None)
    late = Answer([77], broken=True)
    return Partners(lambda example: Partner(reply), text, CALL, turns, LONGEST, wait, late)


def one_by_one(policy, asked, turns):
    """The same conversations: the plain loop from each point where the host was asked."""
    plain = Sampling(SAMPLING.temperature, stop=SAMPLING.stop, stop_strings=CALL)
    tables = make_tables(TINY, plain, TINY.vocab_size)
    length = WIDTH + NEW
    for uid in range(PROMPTS * GROUP):
        prompt = asked.prompts_PT[uid // GROUP][asked.segments_PT[uid // GROUP] != 0].tolist()
        said, free, heard = [], [], 0
        while True:
            held = prompt + said
            tokens, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
            tokens[0, length - len(held) :], segments[0, length - len(held) :] = held, 1
            request = Asked(tokens, segments, asked.key, np.uint32([uid]), tables=tables)
            found = jax.device_get(
                sample(policy.model, policy.params, request, Rules(plain, NEW, 1, TINY.pad_id))
            )
            new = found.tokens_BT[0][found.completion_mask_BT[0]].tolist()[: NEW - len(said)]
            said, free = said + new, free + [True] * len(new)
            ended = said[-1] in SAMPLING.stop
            whole = len(said) >= NEW
            if whole or (ended and not turns):
                break
            spoken = TINY.decode([t for t in said[heard:] if t != TINY.eos_id])
            answer = says(spoken, ended)
            if answer is None:
                break
            said, free = said + answer.ids, free + [False] * len(answer.ids)
            said, free = said[:NEW], free[:NEW]
            heard = len(said) if answer.ids else heard
            ended = False
            if len(said) >= NEW:
                break
        yield said, free, ended


@pytest.mark.parametrize("turns", [False, True])
def test_conversations_are_those_of_a_plain_loop(local, asked, turns):
    policy = local
    expected = list(one_by_one(policy, asked, turns))
    few, many = (0, 3) if turns else (3, 0)  # drafts
    for sizes, stretch in ((Sizes(3, 14, 2, 1, 1, few), 5), (Sizes(8, 80, 4, 2, 1, many), 100)):
        host = Host(partners(turns=turns), [{}] * PROMPTS * GROUP, rules(turns), policy.mesh)
        rollout = jax.device_get(
            roll_out(
                policy.model, policy.params, asked, rules(turns), sizes, stretch=stretch, host=host
            )
        )
        for row, (said, free, ended) in enumerate(expected):
            whole = rollout.response_mask_BT[row]
            assert rollout.tokens_BT[row][whole].tolist() == said, row
            assert rollout.completion_mask_BT[row][whole].tolist() == free, row
            assert bool(rollout.finished_B[row]) == ended
        assert rollout.sound_B.all()
    forced = [sum(not f for f in free) for _, free, _ in expected]
    assert sum(forced) > 30 and 0 in forced


def test_log_probs_behind_answers_are_those_of_the_whole_sequence(policy, asked, logp_float64):
    host = Host(partners(), [{}] * PROMPTS * GROUP, rules(), policy.mesh)
    sizes = Sizes(4, 60, 4, 2, 1)
    rollout = jax.device_get(
        roll_out(policy.model, policy.params, asked, rules(), sizes, stretch=8, host=host)
    )
    checked = 0
    for row in range(PROMPTS * GROUP):
        held = np.flatnonzero(rollout.segments_BT[row])
        logp = logp_float64(policy.exact, policy.model.config, rollout.tokens_BT[row, held])
        for at, place in enumerate(held):
            token = rollout.tokens_BT[row, place]
            if rollout.completion_mask_BT[row, place]:
                found = rollout.model_logp_BT[row, place]
                assert found == pytest.approx(logp[at - 1, token], abs=1e-4)
                checked += not rollout.completion_mask_BT[row, place - 1]
            elif rollout.response_mask_BT[row, place]:
                assert rollout.behaviour_logp_BT[row, place] == 0
    assert checked > PROMPTS * GROUP


def test_the_experts_of_answers_are_recorded_too(make_small, asked):
    """Against the whole sequences at once; some slots are lost for want of pages."""
    policy = make_small(
        vocab_size=TINY.vocab_size, pad_id=TINY.pad_id, max_length=64, layers=1,
        experts=Experts(count=6, active=2, ffn=5),
    )  # fmt: skip
    told, sizes = rules()._replace(record_experts=True), Sizes(4, 14, 2, 1, 1)
    host = Host(partners(), [{}] * PROMPTS * GROUP, told, policy.mesh)
    found = roll_out(policy.model, policy.params, asked, told, sizes, stretch=8, host=host)
    chosen = policy.model.routed(
        policy.params, found.tokens_BT, positions_BT=found.positions_BT,
        segments_BT=found.segments_BT,
    )[2].experts_LBTA  # fmt: skip
    real = np.asarray(found.segments_BT) > 0
    fed = real & np.pad(real[:, 1:], ((0, 0), (0, 1)))
    record = np.asarray(found.experts_BTLA)
    np.testing.assert_array_equal(record[fed], np.moveaxis(np.asarray(chosen), 0, 2)[fed])
    assert (record[~fed] == -1).all()
    assert (fed & found.response_mask_BT & ~found.completion_mask_BT).sum() > 30


def test_one_who_hangs_or_raises_harms_only_its_own(policy, asked):
    sizes, examples = Sizes(8, 80, 4, 2, 1), [{"row": i} for i in range(PROMPTS * GROUP)]

    hung, came_back = threading.Event(), []

    def opened(example):
        def reply(said, ended):
            if example["row"] == 1:
                hung.wait(600)
                came_back.append(said)
            if example["row"] == 2:
                raise KeyError("gone")
            return says(said, ended)

        return Partner(reply)

    def run(given):
        host = Host(given, examples, rules(), policy.mesh)
        return jax.device_get(
            roll_out(policy.model, policy.params, asked, rules(), sizes, stretch=50, host=host)
        )

    found = run(partners(wait=0.5)._replace(open=opened))
    assert not came_back
    hung.set()
    expected = run(partners())
    called = ~expected.completion_mask_BT & expected.response_mask_BT
    assert called[1].any() and called[2].any()
    assert found.sound_B.tolist() == [row not in (1, 2) for row in range(PROMPTS * GROUP)]
    forced = ~found.completion_mask_BT[1] & found.response_mask_BT[1]
    assert set(found.tokens_BT[1][forced]) == {77}
    for row in (0, 3, 4, 5, 6, 7):
        np.testing.assert_array_equal(found.tokens_BT[row], expected.tokens_BT[row])


def test_the_queue_in_stretches_is_the_queue(policy, asked):
    plain = Rules(Sampling(stop=SAMPLING.stop), NEW, GROUP, TINY.pad_id)
    given, sizes, looks = asked._replace(tables=make_tables(TINY, plain.sampling, 656)), None, []
    expected = jax.device_get(sample(policy.model, policy.params, given, plain))
    sizes = Sizes(8, 40, 2, 2, 1)
    found = jax.device_get(
        roll_out(
            policy.model, policy.params, given, plain, sizes, stretch=6,
            look=lambda seen: looks.append(np.asarray(seen.ended_N).sum()),
        )
    )  # fmt: skip
    for name, one, other in zip(found._fields, found, expected, strict=True):
        if other is not None:
            np.testing.assert_allclose(one, other, atol=3e-5, err_msg=name)
    assert looks == sorted(looks) and len(set(looks)) > 2 and looks[-1] == PROMPTS * GROUP

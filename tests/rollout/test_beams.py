"""Beam search: which beams go on by hand, and the search of a very small model."""

import copy
import itertools

import jax
import numpy as np
import pytest

from posttrain_jax import process_reward, reward_model
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import heads
from posttrain_jax.policy import Text
from posttrain_jax.rollout import beams, engine
from posttrain_jax.rollout.beams import Beam, Limits, Searcher, score, search, select
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.steps import Writer, prompt_rows, step_stops

LIMITS = Limits(beams=4, width=2, rounds=3)
PROMPT, MAX_NEW = 8, 10


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer("tiny")
    return Text(tokenizer, load_template("tiny", tokenizer))


@pytest.fixture(scope="module")
def policy(make_small, text):
    return make_small(
        vocab_size=text.tokenizer.vocab_size, pad_id=text.tokenizer.pad_id, tied=False
    )


@pytest.fixture(scope="module")
def make_searcher(policy, text):
    """`(limits, stops, temperature, max_step) -> Searcher`, judged by a random head."""
    params = reward_model.add_head(policy.model, policy.params, policy.mesh, 1, heads.PROCESS)
    judge = process_reward.ProcessModel(policy.model, params, 18, (".",))

    def make(limits=LIMITS, stops=(), temperature=1.0, max_step=3):
        sampling = Sampling(temperature, stop=(*stops, text.tokenizer.eos_id))
        writer = Writer(
            policy.model, policy.params, policy.mesh, text.tokenizer, stops, sampling, 0, PROMPT,
            max_step, MAX_NEW,
        )  # fmt: skip
        return Searcher(writer, judge, limits)

    return make


def beam(chance, stopped=False):
    return Beam([5], [chance], stopped, stopped)


def test_the_best_go_on_and_the_ended_keep_their_places():
    limits = LIMITS._replace(beams=8, width=4)
    every = [beam(c) for c in (0.1, 0.9, 0.3, 0.8, 0.2, 0.5, 0.4, 0.6)]
    ended, chosen = select(every, limits)
    assert not ended and [(b.chances, n) for b, n in chosen] == [([0.9], 4), ([0.8], 4)]
    some = [beam(0.99, True), *every[1:6], beam(0.0, True), beam(0.7, True)]
    ended, chosen = select(some, limits)
    assert len(ended) == 3  # five places: the best with four, the second with one
    assert [(b.chances, n) for b, n in chosen] == [([0.9], 4), ([0.8], 1)]
    few = [beam(0.5), *(beam(0.9, True) for _ in range(1))]
    ended, chosen = select(few, limits)  # one live beam has all seven places
    assert [(b.chances, n) for b, n in chosen] == [([0.5], 4), ([0.5], 3)]
    assert select([beam(0.9, True)] * 8, limits)[1] == []


def test_beams_are_compared_by_the_aggregate_and_ties_keep_their_order():
    limits = LIMITS._replace(beams=2, width=2, aggregate="product")
    a, b, c = Beam([1], [0.5, 0.9]), Beam([2], [0.9, 0.6]), Beam([3], [0.6, 0.9])
    assert select([a, b], limits)[1][0][0] is b
    assert select([a, b], limits._replace(aggregate="last"))[1][0][0] is a
    assert select([b, c], limits)[1][0][0] is b


def test_what_is_ahead_stands_for_the_last_step():
    plain, ahead = Beam([1, 2], [0.5, 0.9]), Beam([1, 2], [0.5, 0.9], ahead=0.2)
    assert [score(plain, how) for how in ("last", "product", "min")] == [0.9, 0.45, 0.5]
    assert [score(ahead, how) for how in ("last", "product", "min")] == [0.2, 0.1, 0.2]
    assert select([plain, ahead], LIMITS._replace(beams=2))[1][0][0] is plain
    assert score(Beam(), "last") == 0.0


def test_tokens_that_end_a_step(text):
    stops = step_stops(text.tokenizer, (".", "。"))
    assert stops and all(text.tokenizer.decode([i]).strip() in (".", "。") for i in stops)
    with pytest.raises(ValueError, match="no token of the tokenizer ends with one of"):
        step_stops(text.tokenizer, ("no token says this",))


def chance_of(searcher, tokens):
    """The chance at the last token, of one row by itself."""
    rows, mesh = [np.array(tokens, np.int32)], searcher.writer.mesh
    return process_reward.chances_local(searcher.judge, rows, mesh)[0, len(tokens) - 1]


def prompts_of(text, *said):
    return engine.encode_prompts([{"prompt": p} for p in said], *text, PROMPT)


def test_greedy_beams_are_the_greedy_completion_in_steps(make_searcher, text):
    """At temperature 0 all beams are what one call of the sampler writes; chances are those of
    the steps' last tokens."""
    whole, prompts = MAX_NEW, prompts_of(text, "3", "3 + 4")
    plain = make_searcher(temperature=0.0).writer
    job = engine.job(
        prompts, plain.mesh, text.tokenizer, sampling=Sampling(0.0), seed=0, first_uid=0,
        group_size=1, max_new=whole,
    )  # fmt: skip
    rollout = engine.roll_out(plain.model, plain.params, job)
    said = np.asarray(rollout.tokens_BT)[:, PROMPT:]
    # What the model says second ends a step.
    stops = tuple({int(row[1]) for row in said})
    searcher = make_searcher(LIMITS._replace(rounds=6), stops, temperature=0.0)
    found, _ = search(searcher, prompts, 0)
    for row, mine in enumerate(found):
        ids = prompts.tokens[row][prompts.segments[row] > 0].tolist()
        assert len(mine.beams) == LIMITS.beams
        for each in mine.beams:
            assert each.tokens == said[row][: len(each.tokens)].tolist()
            assert len(each.tokens) >= 2 and each.tokens[1] in stops
            assert each.chances[-1] == pytest.approx(
                chance_of(searcher, ids + each.tokens), abs=1e-5
            )


def test_a_search_extends_the_best_beams_of_each_round(make_searcher, text, monkeypatch):
    """With all tokens as stops a step is a token: every round's beams extend the two best."""
    stops = tuple(i for i in range(8, text.tokenizer.vocab_size))
    searcher, rounds = make_searcher(stops=stops), []
    kept = beams.judge

    def judge(searcher, prefixes, grown):
        kept(searcher, prefixes, grown)
        rounds.append([[Beam(list(b.tokens), list(b.chances), b.finished, b.stopped) for b in mine]
                       for mine in grown])  # fmt: skip

    monkeypatch.setattr(beams, "judge", judge)
    prompts = prompts_of(text, "3", "3 + 4")
    found, number = search(searcher, prompts, 0)
    assert number == 3 and len(rounds) == 3
    for problem in range(2):
        for before, after in itertools.pairwise(rounds):
            live = [b for b in before[problem] if not b.stopped]
            best = sorted(live, key=lambda b: -b.chances[-1])[:2]
            parents = [b.tokens for b in best]
            for b in after[problem]:
                assert b.tokens[: len(b.tokens) - (not b.finished)] in parents
        assert found[problem].sampled == sum(len(r[problem]) for r in rounds)  # a token each
    # The same prompt in another batch is searched alike.
    alone, _ = search(searcher, prompts.take([1]), 1)
    assert [b.tokens for b in alone[0].beams] == [b.tokens for b in found[1].beams]


def test_beams_are_chosen_by_what_the_greedy_steps_ahead_are_worth(
    make_searcher, policy, text, logp_float64, monkeypatch
):
    """Two steps of a token each, as the same model in float64 says them, row by row."""
    stops = tuple(i for i in range(8, text.tokenizer.vocab_size))
    searcher = make_searcher(LIMITS._replace(lookahead=2), stops, max_step=1)
    rounds, kept = [], beams.look_ahead

    def look_ahead(searcher, prefixes, grown):
        spent = kept(searcher, prefixes, grown)
        rounds.append((copy.deepcopy(grown), spent))
        return spent

    monkeypatch.setattr(beams, "look_ahead", look_ahead)
    prompts = prompts_of(text, "3", "3 + 4")
    found, _ = search(searcher, prompts, 0)
    further = 0
    for problem, prefix in enumerate(prompt_rows(prompts)):
        counted = 0
        for number, (grown, spent) in enumerate(rounds):
            steps = 0
            for beam in grown[problem]:
                ids, stopped = [*prefix, *beam.tokens], beam.stopped
                for _ in range(2):
                    if stopped:
                        continue
                    logp = logp_float64(policy.exact, policy.model.config, ids)[-1]
                    token, steps = int(logp.argmax()), steps + 1
                    ids += [token] if token != text.tokenizer.eos_id else []
                    stopped = token not in stops or len(ids) - len(prefix) + 1 > MAX_NEW
                assert beam.ahead == pytest.approx(chance_of(searcher, ids), abs=1e-5)
                further += len(ids) > len(prefix) + len(beam.tokens)
            assert steps == spent[problem]
            counted += len(grown[problem]) + steps  # a token a step
            if number + 1 < len(rounds):
                live = [b for b in grown[problem] if not b.stopped]
                best = [b.tokens for b in sorted(live, key=lambda b: -b.ahead)[:2]]
                for b in rounds[number + 1][0][problem]:
                    assert b.tokens[: len(b.tokens) - (not b.finished)] in best
        assert found[problem].sampled == counted
    assert further > 12


def test_limits_stop_a_beam(make_searcher, text):
    searcher = make_searcher(LIMITS._replace(rounds=5), max_step=4)  # only the end ends a step
    found, _ = search(searcher, prompts_of(text, "3"), 0)
    for each in found[0].beams:
        assert each.stopped and len(each.tokens) <= 4
        assert each.finished == (len(each.tokens) < 4) or each.finished
    assert jax.tree.leaves([b.chances for b in found[0].beams])

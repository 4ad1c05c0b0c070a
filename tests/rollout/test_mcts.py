"""Trees that grow in lockstep: what is sampled, how it is judged, and what it costs."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from posttrain_jax import process_reward, reward_model
from posttrain_jax.models import heads
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.mcts import Explorer, search
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.steps import Writer
from posttrain_jax.rollout.tree_search import ROOT, Plan, chances_to, tokens_to

EOS, STOPS, PROMPT, MAX_STEP, MAX_NEW = 1, tuple(range(6, 32, 2)), 5, 3, 9
PLAN = Plan(iterations=4, candidates=3, depth=3, c_puct=2.0, rollouts=0)
TEXT = SimpleNamespace(
    eos_id=EOS, pad_id=0, vocab_size=32, decode=lambda ids: " ".join(map(str, ids)), markers={}
)  # fmt: skip


@pytest.fixture(scope="module")
def policy(make_small):
    """A model that ends often: the logit of the end is four times as large."""
    found = make_small(tied=False)
    head = found.params["head"]
    return found._replace(params=found.params | {"head": head.at[:, EOS].multiply(4.0)})


@pytest.fixture(scope="module")
def make_explorer(policy):
    """`(plan, verify, judged, how) -> Explorer`."""
    params = reward_model.add_head(policy.model, policy.params, policy.mesh, 1, heads.PROCESS)
    judge = process_reward.ProcessModel(policy.model, params, PROMPT + MAX_NEW, (".",))
    sampling = Sampling(1.0, stop=(*STOPS, EOS))
    writer = Writer(
        policy.model, policy.params, policy.mesh, TEXT, STOPS, sampling, 3, PROMPT, MAX_STEP,
        MAX_NEW,
    )  # fmt: skip

    def make(plan=PLAN, verify=None, judged=True, how="last"):
        return Explorer(writer, judge if judged else None, how, plan, verify)

    return make


def prompts_of(*rows):
    tokens = np.zeros((len(rows), PROMPT), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, PROMPT - len(ids) :] = ids
    examples = [{"id": str(i), "prompt": "?"} for i in range(len(rows))]
    return Prompts(examples, tokens, (tokens > 0).astype(np.int32), 0)


@pytest.fixture
def calls(monkeypatch):
    """The jobs of the sampler and what came of each, as they were asked for."""
    found, roll_out = [], engine.roll_out

    def record(model, params, job):
        rollout = roll_out(model, params, job)
        found.append((job, rollout))
        return rollout

    monkeypatch.setattr(engine, "roll_out", record)
    return found


def shape(call):
    job, _ = call
    return job.asked.prompts_PT.shape, job.rules


ROWS, FIRSTS = ([3, 9, 4], [7, 2]), (0, 4, 6, 8)


def right(said, examples):
    """Even sums are right; every response that has a 5 breaks the verifier."""
    sums = [sum(map(int, text.split())) for text in said]
    return np.array([1.0 - s % 2 for s in sums]), np.array(["5" not in t.split() for t in said])


def test_every_round_is_one_call_and_costs_what_was_sampled(make_explorer, calls):
    """The rows of a call that are a problem's own count, not those that fill its places."""
    explorer, uneven = make_explorer(verify=right), 0
    most = PLAN.iterations * PLAN.depth * PLAN.candidates
    for first in FIRSTS:
        calls.clear()
        walks, rounds = search(explorer, prompts_of(*ROWS), first)
        assert len({shape(call) for call in calls}) == 1 and len(calls) == rounds
        assert rounds == max(walk.expanded for walk in walks)
        uneven += walks[0].expanded != walks[1].expanded
        counted, uids = [0, 0], [[], []]
        for number, (job, rollout) in enumerate(calls):
            lengths = np.asarray(rollout.completion_mask_BT).sum(axis=1).reshape(2, 3)
            asked = np.asarray(job.asked.uids_B).reshape(2, 3)
            for place, i in enumerate(i for i in range(2) if number < walks[i].expanded):
                counted[i] += int(lengths[place].sum())
                uids[i] += asked[place].tolist()
        assert [walk.sampled for walk in walks] == counted
        for i, mine in enumerate(uids):  # each sample has its own, by problem, node and candidate
            assert mine == list(range((first + i) * most, (first + i) * most + len(mine)))
    assert uneven


def test_the_first_steps_are_a_group_of_the_sampler(make_explorer):
    explorer = make_explorer(verify=right)
    walks, _ = search(explorer, prompts_of(*ROWS), 4)
    writer, uid = explorer.writer, 5 * PLAN.iterations * PLAN.depth * PLAN.candidates
    job = engine.job(
        prompts_of(ROWS[1]), writer.mesh, TEXT, sampling=writer.sampling, seed=3, first_uid=uid,
        group_size=3, max_new=MAX_STEP,
    )  # fmt: skip
    said = engine.responses(engine.roll_out(writer.model, writer.params, job), TEXT)
    nodes = walks[1].nodes
    priors = {TEXT.decode(nodes[n].step): nodes[n].prior for n in nodes[ROOT].children}
    assert priors == {text: pytest.approx(said.count(text) / 3) for text in set(said)}


def check_node(explorer, prefix, nodes, number, one_row):
    """What is known of a node, from its tokens alone; the values of its own end."""
    node, tokens = nodes[number], tokens_to(nodes, number)
    if node.step:
        assert node.chance == pytest.approx(one_row(prefix + tokens), abs=1e-5)
    else:
        assert node.chance is None and node.finished
    cut = len(tokens) + MAX_STEP > MAX_NEW or node.step[-1:] not in [(s,) for s in STOPS]
    over = node.finished or node.depth == PLAN.depth or cut
    if node.children:
        assert not over and node.guess is not None
    elif over:
        assert node.closed and node.guess is None
    return over


@pytest.mark.parametrize("how", ["last", "product"])
def test_the_process_model_judges_steps_and_ends(make_explorer, how):
    explorer, prompts = make_explorer(how=how), prompts_of(*ROWS)

    def one_row(ids):
        row = [np.array(ids, np.int32)]
        found = process_reward.chances_local(explorer.judge, row, explorer.writer.mesh)
        return found[0, len(ids) - 1]

    walks, _ = search(explorer, prompts, 0)
    finished = 0
    for prefix, walk in zip(ROWS, walks, strict=True):
        nodes = walk.nodes
        for number in range(1, len(nodes)):
            node = nodes[number]
            over = check_node(explorer, prefix, nodes, number, one_row)
            chances = chances_to(nodes, number) or [one_row(prefix)]
            value = {"last": chances[-1], "product": np.prod(chances)}[how]
            if not over:
                assert node.guess == pytest.approx(value)
            elif node.ends:
                finished += node.finished
                expected = value if node.finished else 0.0
                assert node.right / node.ends == pytest.approx(expected, abs=1e-5)
        leaves = [n for n in nodes[1:] if not n.children]
        assert nodes[ROOT].ends == sum(n.ends for n in leaves) > 0
        assert walk.iterations == PLAN.iterations or nodes[ROOT].closed
    assert finished > 3


def said_by(call):
    """The completion of each row."""
    _, rollout = call
    tokens, mask = np.asarray(rollout.tokens_BT), np.asarray(rollout.completion_mask_BT)
    return [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]


def uids_of(call):
    return np.asarray(call[0].asked.uids_B).tolist()


class Ledger:
    """What is to be known of the nodes of a tree, by (tokens, finished), from raw samples."""

    def __init__(self):
        self.chains, self.values = {}, {((), False): []}
        self.seen = dict.fromkeys(KINDS, 0)

    def candidate(self, before, said):
        """Enter a step; (its key, whether it goes on)."""
        finished = said[-1] == EOS
        tokens = before + tuple(said[: len(said) - finished])
        key = tokens, finished
        self.values.setdefault(key, [])
        self.chains[key] = [*self.chains.get((before, False), []), key]
        last = len(self.chains[key]) == PLAN.depth
        stops = last or said[-1] not in STOPS or len(tokens) + MAX_STEP > MAX_NEW
        if finished:
            self.judge(key, tokens)
        elif stops:
            self.count(key, 0.0, "limit")
        return key, not finished and not stops

    def rollout(self, key, said):
        tokens = key[0] + tuple(said[: len(said) - (said[-1] == EOS)])
        if said[-1] != EOS or len(tokens) > MAX_NEW:
            self.count(key, 0.0, "late" if said[-1] == EOS else "cut")
        else:
            self.judge(key, tokens)

    def judge(self, key, tokens):
        if 5 in tokens:
            self.seen["broken"] += 1
        else:
            self.count(key, float(sum(tokens) % 2 == 0), "judged")

    def count(self, key, value, kind):
        self.seen[kind] += 1
        for place in [((), False), *self.chains[key]]:
            self.values[place].append(value)


KINDS = "limit", "cut", "late", "broken", "judged"


def test_ends_and_rollouts_are_verified(make_explorer, calls):
    """Without a process model: what is known of every node, from the rows of the sampler."""
    explorer, seen = make_explorer(PLAN._replace(rollouts=2), right, judged=False), set()
    for first in FIRSTS:
        calls.clear()
        walks, rounds = search(explorer, prompts_of(*ROWS), first)
        steps, rollouts = calls[::2], calls[1::2]
        assert len(steps) == len(rollouts) == rounds
        assert len({shape(c) for c in steps}) == len({shape(c) for c in rollouts}) == 1
        ledgers, spent = keep_books(walks, steps, rollouts)
        assert [walk.sampled for walk in walks] == spent
        for walk, ledger in zip(walks, ledgers, strict=True):
            seen |= {kind for kind, count in ledger.seen.items() if count}
            for number, node in enumerate(walk.nodes):
                known = ledger.values[tuple(tokens_to(walk.nodes, number)), node.finished]
                assert (node.ends, node.right) == (len(known), sum(known))
                assert node.guess is None and node.chance is None
    assert seen == set(KINDS)


def keep_books(walks, steps, rollouts):
    """A ledger for each problem, and the tokens that were sampled for it."""
    ledgers, spent, uids = [Ledger(), Ledger()], [0, 0], []
    for number, (drawn, completed) in enumerate(zip(steps, rollouts, strict=True)):
        job, _ = drawn
        rows = np.asarray(job.asked.prompts_PT) * np.asarray(job.asked.segments_PT)
        going = [i for i in range(2) if number < walks[i].expanded]
        further = iter(zip(said_by(completed), uids_of(completed), strict=True))
        uids += uids_of(drawn)[: 3 * len(going)]
        for place, i in enumerate(going):
            before = tuple(rows[place][rows[place] > 0].tolist())[len(ROWS[i]) :]
            for said in said_by(drawn)[place * 3 : place * 3 + 3]:
                spent[i] += len(said)
                key, more = ledgers[i].candidate(before, said)
                for completion, uid in itertools.islice(further, 2 * more):
                    uids.append(uid)
                    spent[i] += len(completion)
                    ledgers[i].rollout(key, completion)
    assert len(set(uids)) == len(uids)  # else two samples would share their noise
    return ledgers, spent

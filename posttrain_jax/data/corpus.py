"""The pretraining text of the tiny base model: documents drawn by weight from a few kinds.

A base for reinforcement learning must hold the ability to reason without using it reliably, as a
web-trained model does. So the text has, in both languages: tables of the step functions, lists
written several times in changing order (they teach the look-up by label), and problems answered at
once, in short, or step by step; with slips, some of them corrected; in the other language or in
both; in the tagged format, in broken tags, or in plain words; and some chat with good and bad
replies. Every problem is from the training split.

The whole recipe hangs on one ability, looking an operation up by its label: `probes` are the
questions that measure it. Lists and worked solutions teach it; the recipe's curriculum says how
much of which document comes when.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from posttrain_jax.data import chains
from posttrain_jax.data.chains import ANSWER, END, END_ANSWER, END_THINK, GIVES, STOP, THINK, Chain
from posttrain_jax.data.tasks import arithmetic, chat, logic, safety, word_problem

MAX_TOKENS = 64
"""No document is longer, in tokens of the tiny tokenizer."""
TABLE_HEAD = {"en": "Facts:", "zh": "口诀："}
LIST_HEAD = {"en": "List:", "zh": "列表："}
STYLE_SHARES = {"none": 0.44, "short": 0.14, "full": 0.42}
SLIP = {"en": 0.08, "zh": 0.04}
"""Chance of a wrong result in a step. English text slips more often, so the language in which a
model thinks matters to its reward, and reinforcement learning has a reason to mix them."""
CORRECTED = 0.15
TAGGED = 0.65
BROKEN = 0.1
TASKS = (arithmetic, word_problem, logic)
PROBE_KINDS = ("lookup", "step", "carry")


def _pick(rng: random.Random, shares: Mapping[str, float]) -> str:
    return rng.choices(tuple(shares), tuple(shares.values()))[0]


def table(rng: random.Random, language: str, rows: int = 9) -> str:
    """Steps without a problem, each from where the last one ended: `Facts: 8 #1 -2 gives 6. ...`"""
    moves = chains.CUP_MOVES if rng.random() < 0.25 else chains.NUMBER_MOVES
    states, uniform = tuple(moves), rng.random
    gives, stop, labels = GIVES[language], STOP[language], chains.LABELS
    before = states[int(uniform() * len(states))]
    text = [TABLE_HEAD[language]]
    for i in range(rows):
        operation, after = moves[before][int(uniform() * len(moves[before]))]
        text.append(before + labels[i % len(labels)] + operation + gives + after + stop)
        before = after
    return "".join(text) + END


def repeated_list(rng: random.Random, language: str) -> str:
    """A list of all labels as problems have it, then spelled out: `List: #1AB #2+5 ... #2 +5 ...`

    The last label is as frequent here as the first; in problems it is rare, and some models that
    saw lists of three to five never learnt to look it up.
    """
    operations, size = chains.OPERATIONS, len(chains.LABELS)
    items = [(label, operations[int(rng.random() * len(operations))]) for label in chains.LABELS]
    text = [LIST_HEAD[language], *(chains.item(*pair) for pair in items), STOP[language]]
    for _ in range((MAX_TOKENS - 5 - size) // (2 * size + 1)):
        rng.shuffle(items)
        text += [label + operation for label, operation in items] + [STOP[language]]
    return "".join(text) + END


def _other(language: str) -> str:
    return "zh" if language == "en" else "en"


def _slip(rng: random.Random, right: str) -> str:
    states = chains.CUPS if right in chains.CUPS else chains.NUMBERS
    while True:
        wrong = states[int(rng.random() * len(states))]
        if wrong != right:
            return wrong


def noisy_thought(rng: random.Random, chain: Chain, style: str, language: str) -> tuple[str, str]:
    """A chain of thought as people write it: with slips, and in one language, the other or both.

    Returns:
      The text, and the state that it ends in (a slip that isn't corrected is carried along).
    """
    uniform = rng.random
    mixing = uniform()
    home = _other(language) if mixing < 0.15 else language
    mixed = mixing > 0.75
    state, corrected, text = chain.states[0], False, []
    for label, operation in zip(chains.LABELS, chain.operations, strict=False):
        tongue = home if not mixed or uniform() < 0.5 else _other(home)
        right = chains.RESULT.get((state, operation)) or _slip(rng, "")
        wrong = uniform() < SLIP[tongue]
        written = _slip(rng, right) if wrong else right
        fix = wrong and not corrected and uniform() < CORRECTED
        if style != "none":
            head = state + label + operation if style == "full" else label
            text.append(head + GIVES[tongue] + written + STOP[tongue])
            if fix:
                corrected = True
                text.append(chains.WAIT[tongue] + head + GIVES[tongue] + right + STOP[tongue])
        state = right if fix else written
    return "".join(text), state


def _broken_tags(rng: random.Random, thought: str, answer: str) -> str:
    kinds = (
        f"{THINK}{thought}{ANSWER}{answer}{END_ANSWER}",
        f"{THINK}{thought}{END_THINK}{answer}",
        f"{thought}{END_THINK}{ANSWER}{answer}{END_ANSWER}",
        f"{THINK}{thought}{END_THINK}{ANSWER}{answer}",
    )
    return kinds[int(rng.random() * len(kinds))]


def _dress(rng: random.Random, language: str, thought: str, answer: str) -> str:
    """Thought and answer in the tagged format, in broken tags, or in plain words."""
    point = rng.random()
    if point >= TAGGED:
        return thought + chains.PLAIN_ANSWER[language] + answer + STOP[language]
    if point < TAGGED * BROKEN:
        return _broken_tags(rng, thought, answer)
    return chains.tagged(thought, answer)


def problem(rng: random.Random, language: str) -> str:
    """A training problem with an answer: at once, in short or step by step, right or wrong."""
    task = TASKS[int(rng.random() * len(TASKS))]
    chain = chains.make_chain(rng, task.MOVES, split="train")
    thought, answer = noisy_thought(rng, chain, _pick(rng, STYLE_SHARES), language)
    prompt = task.make_prompt(rng, language, chain)
    return chains.render(prompt, _dress(rng, language, thought, answer))


def worked(rng: random.Random, language: str) -> str:
    """A training problem with a right and full solution, sometimes in the other language."""
    task = TASKS[int(rng.random() * len(TASKS))]
    chain = chains.make_chain(rng, task.MOVES, split="train")
    tongue = language if rng.random() < 0.7 else _other(language)
    prompt = task.make_prompt(rng, language, chain)
    solution = chains.thought(chain, tongue)
    return chains.render(prompt, _dress(rng, language, solution, chain.states[-1]))


def conversation(rng: random.Random, language: str) -> str:
    """A chat or safety request with a good reply (70 %) or a bad one; a third without tags."""
    module = chat if rng.random() < 0.5 else safety
    example = module.make_example(rng, language, split="train")
    reply = example["chosen" if rng.random() < 0.7 else "rejected"]
    if rng.random() < 0.33:
        reply = reply.split(ANSWER)[1].removesuffix(END_ANSWER)
    return chains.render(example["prompt"], reply)


KINDS: dict[str, Callable[[random.Random, str], str]] = {
    "table": table,
    "list": repeated_list,
    "problem": problem,
    "worked": worked,
    "chat": conversation,
}


def stream(seed: int, mix: Mapping[str, float]) -> Iterator[str]:
    """Documents without end; each is at most MAX_TOKENS tokens, the end token included.

    Args:
      mix: weight of each kind of document, a key of KINDS.

    Raises:
      ValueError: an unknown kind of document.
    """
    if unknown := set(mix) - set(KINDS):
        raise ValueError(f"unknown kinds of document {sorted(unknown)}: `mix` takes {list(KINDS)}")
    rng = random.Random(f"corpus/{seed}")
    while True:
        yield KINDS[_pick(rng, mix)](rng, "en" if rng.random() < 0.5 else "zh")


def documents(seed: int, count: int, mix: Mapping[str, float]) -> list[str]:
    """The first `count` documents of `stream`."""
    source = stream(seed, mix)
    return [next(source) for _ in range(count)]


class Probe(NamedTuple):
    """A question about the next token: after `prefix` a trained base must expect `target`.

    Attributes:
      kind: `lookup` (the operation behind a label), `step` (the result of an operation) or `carry`
        (the state that the next step starts from).
      task: the task of the problem.
    """

    prefix: str
    target: str
    kind: str
    task: str


def probes(seed: int, count: int) -> list[Probe]:
    """`count` questions over held-out problems: tasks, languages and kinds in turn.

    Each is one position of a clean, fully worked solution; `probe_accuracy` and `is_learnt` make
    a criterion to stop on: the likeliest next token is the target in a share of each kind.
    """
    rng = random.Random(f"probes/{seed}")
    result = []
    for i in range(count):
        task, language = TASKS[i % 3], chains.LANGUAGES[i // 3 % 2]
        kind = PROBE_KINDS[i // 6 % 3]
        chain = chains.make_chain(rng, task.MOVES, split="heldout")
        at = rng.randrange(1 if kind == "carry" else 0, len(chain.operations))
        prompt = task.make_prompt(rng, language, chain)
        done = Chain(chain.operations[:at], chain.states[: at + 1])
        prefix = chains.render(prompt, THINK + chains.thought(done, language), end=False)
        before, label, operation = chain.states[at], chains.LABELS[at], chain.operations[at]
        if kind == "lookup":
            prefix, target = prefix + before + label, operation
        elif kind == "step":
            prefix += before + label + operation + GIVES[language]
            target = chain.states[at + 1]
        else:
            target = before
        result.append(Probe(prefix, target, kind, task.__name__.rsplit(".", 1)[1]))
    return result


def probe_accuracy(probes: Sequence[Probe], hits: Sequence[bool]) -> dict[str, float]:
    """Share of right answers for each `<kind>/<task>`; `hits[i]` says if the likeliest next token
    after `probes[i].prefix` is its target.

    Raises:
      ValueError: not one hit a probe.
    """
    if len(probes) != len(hits):
        raise ValueError(f"expected one hit a probe, got {len(hits)} for {len(probes)} probes")
    groups: dict[str, list[bool]] = {}
    for probe, hit in zip(probes, hits, strict=True):
        groups.setdefault(f"{probe.kind}/{probe.task}", []).append(bool(hit))
    return {name: sum(group) / len(group) for name, group in groups.items()}


def is_learnt(accuracy: Mapping[str, float], kinds: Sequence[str], threshold: float) -> bool:
    """Whether each of these kinds of probe reaches the threshold in the mean over tasks."""
    groups = [[v for name, v in accuracy.items() if name.split("/")[0] == kind] for kind in kinds]
    return all(sum(group) / len(group) >= threshold for group in groups)

"""Judges that are models of ours on the mesh, and the judges that the terms of a reward name.

Every host judges its own rows. A model on the mesh takes them in rounds of one fixed size, and as
many rounds on every host as the busiest one needs, so that nothing compiles twice and nobody waits
for a host that has nothing to ask. A judge here reads and writes through the stage's tokenizer and
chat template; one that has its own belongs behind an endpoint.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import process_reward
from posttrain_jax import reward_model as reward_models
from posttrain_jax.api import Artifact, Model, Params, Verdict
from posttrain_jax.checkpoint import model_kind
from posttrain_jax.conversations import without_markers
from posttrain_jax.data.chat import encode_prompt
from posttrain_jax.data.examples import messages
from posttrain_jax.data.steps import Steps
from posttrain_jax.mesh import batch_shards, from_local_rows, local_rows, total
from posttrain_jax.policy import Text, load_policy
from posttrain_jax.process_reward import AGGREGATES
from posttrain_jax.rewards import Term
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.verifiers.judging.endpoint import open_endpoint
from posttrain_jax.verifiers.judging.judge import Judge, Reply, Source, make_judge, seed_of

Item = TypeVar("Item")
Result = TypeVar("Result")


def open_judges(
    terms: Sequence[Term], inputs: Mapping[str, Artifact], mesh: Mesh, text: Text
) -> dict[str, Judge]:
    """The judges of the terms that have one, by the terms' names.

    Raises:
      ValueError: a setting that is wrong, or an input that the stage doesn't have.
    """
    found = {}
    for term in terms:
        try:
            if term.reward_model:
                artifact = _input(inputs, term.reward_model)
                if model_kind(artifact.path) == "process_reward":
                    made = process_reward.load(artifact, mesh)
                    how = term.transform if term.transform in AGGREGATES else made.aggregate
                    found[term.name] = process_judge(made._replace(aggregate=how), text, mesh)
                    continue
                model = reward_models.load(artifact, mesh)
                found[term.name] = reward_model_judge(
                    model, text, mesh, transform=term.transform, scale=term.scale
                )
            elif term.judge:
                found[term.name] = _open_judge(term.judge, inputs, mesh, text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the term {term.name!r}: {error}") from error
    return found


def _open_judge(
    settings: Mapping[str, Any], inputs: Mapping[str, Artifact], mesh: Mesh, text: Text
) -> Judge:
    """From {"form": ..., "mesh": {...} or "endpoint": {...}, <options of make_judge>}."""
    options = {k: v for k, v in settings.items() if k not in ("mesh", "endpoint")}
    if "endpoint" in settings:
        return make_judge(open_endpoint(**settings["endpoint"]), **options)
    where = dict(settings["mesh"])
    model, params = load_policy(_input(inputs, where.pop("input", "")), mesh)
    params = engine.for_sampling(params, model, mesh)
    return make_judge(mesh_source(model, params, text, mesh, **where), **options)


def _input(inputs: Mapping[str, Artifact], role: str) -> Artifact:
    if role not in inputs:
        raise ValueError(f"no input {role!r}; the stage has {sorted(inputs)}")
    return inputs[role]


def reward_model_judge(
    model: reward_models.RewardModel,
    text: Text,
    mesh: Mesh,
    *,
    transform: str = "sigmoid",
    scale: float = 1.0,
    batch_size: int = 64,
) -> Judge:
    """A trained Bradley-Terry reward model as a judge.

    Args:
      transform: of the score times `scale`: `sigmoid` or `none`.
      batch_size: rows of all hosts in a round, rounded up to what the mesh divides.
    """

    def run(pairs: list[tuple[Mapping[str, Any], str]]) -> list[float]:
        found = scale * reward_models.score_local(model, pairs, text, mesh)
        return local_rows(jax.nn.sigmoid(found) if transform == "sigmoid" else found).tolist()

    def score(examples: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[Verdict]:
        pairs = list(zip(examples, responses, strict=True))
        found = in_rounds(pairs, ({"prompt": "-"}, "-"), mesh, batch_size, run)
        return [
            Verdict(s) if np.isfinite(s) else Verdict(0.0, "infra_error", f"a score of {s}")
            for s in found
        ]

    return Judge(score)


def process_chances(
    model: process_reward.ProcessModel, solutions: Sequence[Steps], mesh: Mesh, batch_size: int = 64
) -> list[list[float]]:
    """The chance that each step is right, NaN where its end can't be read; every host its own.

    Args:
      batch_size: rows of all hosts in a round, rounded up to what the mesh divides.
    """

    def run(part: list[Steps]) -> list[list[float]]:
        chance_BT = process_reward.chances_local(model, [steps.tokens for steps in part], mesh)
        return [
            [float(row[end]) if 0 <= end < model.length else math.nan for end in steps.ends]
            for row, steps in zip(chance_BT, part, strict=True)
        ]

    filler = Steps(np.ones(1, np.int32), 0, ())
    return in_rounds(list(solutions), filler, mesh, batch_size, run)


def process_judge(
    model: process_reward.ProcessModel, text: Text, mesh: Mesh, *, batch_size: int = 64
) -> Judge:
    """A process reward model as a judge: its `aggregate` of the steps' chances, from 0 to 1.

    An empty response, which has no step, scores 0; one whose steps can't be read (behind a prompt
    of `length` tokens) is an infra_error.
    """

    def score(examples: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[Verdict]:
        solutions = process_reward.encode(model, list(zip(examples, responses, strict=True)), text)
        verdicts = []
        for chances in process_chances(model, solutions, mesh, batch_size):
            if not chances:
                verdicts.append(Verdict(0.0, "fail", "no step"))
                continue
            seen = [c for c in chances if np.isfinite(c)]
            if seen:
                value = process_reward.aggregate(seen, model.aggregate)
                said = " ".join(f"{c:.2f}" for c in chances)
                verdicts.append(Verdict(value, "pass" if value >= 0.5 else "fail", said))
            else:
                verdicts.append(Verdict(0.0, "infra_error", "no step can be read"))
        return verdicts

    return Judge(score)


def mesh_source(
    model: Model,
    params: Params,
    text: Text,
    mesh: Mesh,
    *,
    prompt_length: int,
    max_new: int = 512,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
) -> Source:
    """A source of replies on the mesh. A reply depends on its question and `seed` only.

    Args:
      params: laid out for sampling.
      prompt_length: the longest question in tokens; a longer one gets an error for a reply.
      batch_size: questions of all hosts in a round, rounded up to what the mesh divides.
    """
    sampling = Sampling(temperature, top_p=top_p, stop=(text.tokenizer.eos_id,))

    def place(part: list[Encoded]) -> tuple[jax.Array, jax.Array]:
        tokens, segments = _left_padded([ids for _, ids in part], prompt_length, text)
        return from_local_rows(mesh, tokens), from_local_rows(mesh, segments)

    def sample(votes: int, part: list[Encoded]) -> list[list[Reply]]:
        uids = np.array([seed_of(p, vote) for p, _ in part for vote in range(votes)], np.uint32)
        asked = Asked(*place(part), jax.random.key(seed), from_local_rows(mesh, uids))
        rules = Rules(sampling, max_new, votes, text.tokenizer.pad_id)
        rollout = engine.roll_out(model, params, engine.Job(asked, rules))
        replies = [Reply(said) for said in engine.responses(rollout, text.tokenizer)]
        return [replies[i : i + votes] for i in range(0, len(replies), votes)]

    def write(prompts: Sequence[str], votes: int) -> list[list[Reply]]:
        run = functools.partial(sample, votes)
        found = _where_it_fits(prompts, prompt_length, text, mesh, batch_size, run)
        return [[r] * votes if isinstance(r, Reply) else r for r in found]

    def chance(prompts: Sequence[str], words: tuple[str, str]) -> list[Reply]:
        first, _ = first_tokens(words, text)

        def run(part: list[Encoded]) -> list[Reply]:
            found = local_rows(_first_token_chance(model, params, *place(part), first))
            return [Reply(value=min(float(p), 1.0)) for p in found]

        return _where_it_fits(prompts, prompt_length, text, mesh, batch_size, run)

    return Source(write, chance)


Encoded = tuple[str, list[int]]
"""A question and its tokens."""


def first_tokens(words: tuple[str, str], text: Text) -> tuple[int, int]:
    """The tokens that the two words begin with where the assistant speaks.

    Raises:
      ValueError: both begin with the same token, or the word changes the tokens before it.
    """
    turn = messages({"prompt": "?"})
    before = encode_prompt(*text, turn)
    rendered = text.template.render(turn, add_generation_prompt=True)
    found = []
    for word in words:
        tokens = text.tokenizer.encode(rendered + word)
        if tokens[: len(before)] != before or len(tokens) == len(before):
            raise ValueError(f"the word {word!r} merges with the generation prompt before it")
        found.append(tokens[len(before)])
    if found[0] == found[1]:
        raise ValueError(f"the words {words} begin with the same token: a probability can't tell")
    return found[0], found[1]


@functools.partial(jax.jit, static_argnames="model")
def _first_token_chance(model: Model, params: Params, tokens_BT, segments_BT, token) -> jax.Array:
    """The probability of a token after each left-padded row -> [B]."""
    positions = jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0)
    hidden, _ = model.apply(params, tokens_BT, positions_BT=positions, segments_BT=segments_BT)
    logits_BV = model.logits(params, hidden[:, -1]).astype(jnp.float32)
    return jnp.exp(logits_BV[:, token] - jax.nn.logsumexp(logits_BV, axis=-1))


def _where_it_fits(
    prompts: Sequence[str],
    length: int,
    text: Text,
    mesh: Mesh,
    batch_size: int,
    run: Callable[[list[Encoded]], Sequence[Any]],
) -> list[Any]:
    """What `run` makes of each question, and an error for those longer than `length` tokens."""
    encoded = []
    for prompt in prompts:
        turn = messages({"prompt": without_markers(prompt, text)})
        encoded.append((prompt, encode_prompt(*text, turn)))
    fits = [pair for pair in encoded if len(pair[1]) <= length]
    found = iter(in_rounds(fits, ("", [text.tokenizer.eos_id]), mesh, batch_size, run))
    return [
        next(found)
        if len(ids) <= length
        else Reply(error=f"the question has {len(ids)} tokens, over prompt_length={length}")
        for _, ids in encoded
    ]


def _left_padded(rows: Sequence[list[int]], width: int, text: Text):
    tokens = np.full((len(rows), width), text.tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate(rows):
        tokens[row, width - len(ids) :] = ids
        segments[row, width - len(ids) :] = 1
    return tokens, segments


def in_rounds(
    items: Sequence[Item],
    filler: Item,
    mesh: Mesh,
    batch_size: int,
    run: Callable[[list[Item]], Sequence[Result]],
) -> list[Result]:
    """`run` on this host's items, in rounds of one size, the same number of rounds on every host.

    Args:
      filler: fills up a round; what `run` makes of it is dropped.
      batch_size: items of all hosts in a round, rounded up to a multiple of data x fsdp x expert.
    """
    shards, hosts = batch_shards(mesh), jax.process_count()
    share = -(-batch_size // shards) * shards // hosts
    wanted = np.zeros(hosts, np.int64)
    wanted[jax.process_index()] = -(-len(items) // share)
    found: list[Result] = []
    for first in range(0, int(total(wanted).max()) * share, share):
        part = list(items[first : first + share])
        found += list(run(part + [filler] * (share - len(part))))[: len(part)]
    return found

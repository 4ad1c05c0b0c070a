"""The host side of rollouts: prompts to arrays, arrays to responses; each host its own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from posttrain_jax.api import Array, Model, Params, Rollout
from posttrain_jax.data.chat import ChatTemplate, encode_prompt
from posttrain_jax.data.examples import messages
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.mesh import (
    batch_shards,
    check_batch,
    host_batch,
    is_axes,
    local_rows,
    local_slice,
    shard_rows,
    spec,
)
from posttrain_jax.rollout import carry, continuous, conversations, limits, sampler, serving
from posttrain_jax.rollout.carry import Carry, Said
from posttrain_jax.rollout.draw_state import make_tables
from posttrain_jax.rollout.partners import Partners
from posttrain_jax.rollout.pools import CACHE_DTYPES
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.row_settings import RowSettings
from posttrain_jax.rollout.sampler import Seen
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.stop_strings import trim


class Prompts(NamedTuple):
    """Encoded prompts, left-padded to one width.

    Attributes:
      examples: what each row was made from.
      tokens, segments: int32 [rows, width]; segments are 0 on padding.
      skipped: how many prompts were longer than the width and left out.
    """

    examples: list[Mapping[str, Any]]
    tokens: np.ndarray
    segments: np.ndarray
    skipped: int

    def take(self, rows: Sequence[int]) -> Prompts:
        """The given rows, in the given order."""
        chosen = list(rows)
        return Prompts(
            [self.examples[i] for i in chosen], self.tokens[chosen], self.segments[chosen], 0
        )


def encode_prompts(
    examples: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    width: int,
    system: str = "",
) -> Prompts:
    """Render and encode prompts; those longer than `width` tokens are skipped and counted.

    Raises:
      ValueError: every prompt is too long, or one asks nothing.
    """
    turns = [_asked(row, example, system) for row, example in enumerate(examples)]
    encoded = [encode_prompt(tokenizer, template, asked) for asked in turns]
    kept = [i for i, tokens in enumerate(encoded) if len(tokens) <= width]
    if not kept:
        raise ValueError(
            f"all {len(examples)} prompts are longer than prompt_length={width} tokens (the "
            f"shortest has {min((len(t) for t in encoded), default=0)}): raise prompt_length"
        )
    tokens = np.full((len(kept), width), tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for row, i in enumerate(kept):
        tokens[row, width - len(encoded[i]) :] = encoded[i]
        segments[row, width - len(encoded[i]) :] = 1
    return Prompts([examples[i] for i in kept], tokens, segments, len(examples) - len(kept))


def _asked(row: int, example: Mapping[str, Any], system: str) -> list[dict]:
    """The conversation that asks for a response; refused where that says nothing."""
    turns = messages(example, system=system)
    last = turns[-1] if turns else {}
    if not str(last.get("content") or "").strip() and last.get("role") != "tool":
        raise ValueError(
            f"example {example.get('id')!r} (row {row}) has an empty prompt: expected text in its "
            f"prompt or last message, got {turns[-1:]}; leave it out of the data"
        )
    return turns


def batches(prompts: Prompts, size: int, start: int = 0) -> Iterator[tuple[Prompts, int]]:
    """Batches of exactly `size` prompts from batch number `start`, each with how many are real.

    The last batch is filled up with its first prompts, so that one compiled program serves all.
    """
    count = len(prompts.examples)
    for first in range(start * size, count, size):
        rows = list(range(first, min(first + size, count)))
        filled = rows + [rows[i % len(rows)] for i in range(size - len(rows))]
        yield prompts.take(filled), len(rows)


def concat(parts: Sequence[Prompts]) -> Prompts:
    """Several prompt tables as one."""
    return Prompts(
        [example for part in parts for example in part.examples],
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.segments for part in parts]),
        sum(part.skipped for part in parts),
    )


class Ended(NamedTuple):
    """Sequences of this host that have ended or met `max_new`.

    Attributes:
      rows: their places in the rollout, among this host's rows.
      lengths: in tokens.
      finished: False where `max_new` cut the sequence off.
    """

    rows: np.ndarray
    responses: list[str]
    lengths: np.ndarray
    finished: np.ndarray


STRETCH = 64
"""Steps between two looks of the host at calls, where nothing else sets it: ours."""


class Job(NamedTuple):
    """A rollout that is to be made; see `job`.

    Attributes:
      sizes: of a shard's slots and pools, where sequences come from a queue; None: all are sampled
        at once.
      partners: who answers calls; None: nobody.
      examples: what each sequence answers, for partners.
      mesh: where; None: nobody asks whether the job fits it (limits.py).
      said, source_P: of sequences that go on, and which prompts all of them have; see `go_on`.
    """

    asked: Asked
    rules: Rules
    sizes: continuous.Sizes | None = None
    partners: Partners | None = None
    examples: Sequence[Mapping[str, Any]] = ()
    mesh: Mesh | None = None
    said: Said | None = None
    source_P: Array | None = None


def job(
    prompts: Prompts,
    mesh: Mesh,
    tokenizer: Tokenizer,
    *,
    sampling: Sampling,
    seed: int,
    first_uid: int,
    group_size: int,
    max_new: int,
    record_experts: bool = False,
    slots: int = 0,
    drafts: int = 0,
    cache_dtype: str = "",
    rows: RowSettings | None = None,
    vocab_size: int = 0,
    partners: Partners | None = None,
) -> Job:
    """A group of completions for each prompt, asked for; row b has the uid `first_uid + b`.

    Args:
      prompts: the same on every host; each host puts only its part on its devices.
      sampling: the end-of-sequence token is added to its stop tokens.
      record_experts: see `Rules`.
      slots: how many sequences to decode at once, the others wait (continuous.py); 0: all.
      drafts: tokens that the queue guesses of each sequence (drafts.py); it needs `slots`.
      cache_dtype: see `Rules`; sequences then come from a queue, whatever their number.
      rows: settings of single rows, of `make_rows`.
      vocab_size: the model's, where it is not the tokenizer's.
      partners: answer calls; sequences then come from a queue, of as many slots as there are
        sequences where `slots` is 0.

    Raises:
      ValueError: prompts or slots that the mesh can't split; drafts or a type of the cache without
        a queue; settings of sampling that mean nothing, a stop string that no tokens spell.
    """
    check_batch(mesh, "prompts of a rollout", len(prompts.examples))
    count, ways = len(prompts.examples) * group_size, batch_shards(mesh)
    if group_size > 1 and sampling.temperature == 0 and (rows is None or rows.temperature is None):
        limits.say_greedy(group_size)
    answered = partners is not None
    queued = answered or drafts != 0 or cache_dtype != "" or 0 < slots < count
    _check_queue(mesh, slots, drafts, cache_dtype, answered)
    uids = np.arange(count, dtype=np.uint32) + np.uint32(first_uid % 2**32)
    place = lambda array: host_batch(mesh, array.shape, lambda index: array[index])  # noqa: E731
    sampling = sampling._replace(stop=(*sampling.stop, tokenizer.eos_id))
    inserts, turns = 0, False
    if partners is not None:
        inserts, turns = partners.longest, partners.turns
        sampling = sampling._replace(call_strings=partners.call_strings)
    rules = Rules(
        sampling, max_new, group_size, tokenizer.pad_id, record_experts, inserts, turns, cache_dtype
    )  # fmt: skip
    asked = Asked(
        place(prompts.tokens), place(prompts.segments), jax.random.key(seed), place(uids),
        jax.tree.map(place, rows or RowSettings()),
        make_tables(tokenizer, sampling, vocab_size or tokenizer.vocab_size),
    )  # fmt: skip
    if not queued:
        return Job(asked, rules, mesh=mesh)
    sizes = continuous.plan_sizes(
        (slots or count) // ways, len(prompts.examples) // ways, rules, drafts=drafts
    )
    examples = [e for e in prompts.examples for _ in range(group_size)]
    return Job(asked, rules, sizes, partners, examples if partners else (), mesh)


def leave_all(job: Job, model: Model, rows: Sequence[int], mesh: Mesh) -> Carry:
    """All groups of a job, unbegun, for `go_on`.

    Args:
      rows: the numbers of their prompts.
    """
    return carry.begin(model, job.asked, job.rules, shard_rows(mesh, np.array(rows, np.int32)))


def go_on(job: Job, left: Carry, rows: Sequence[int], mesh: Mesh) -> Job:
    """The job of a queue with groups that another rollout has left in front of it, for `stream_on`.

    Args:
      rows: the numbers of the job's own prompts.
    """
    assert job.sizes is not None
    asked, source_P = carry.join(job.asked, shard_rows(mesh, np.array(rows, np.int32)), left)
    spare = len(left.source_P) // batch_shards(mesh)
    sizes = job.sizes._replace(spare=spare)
    return job._replace(asked=asked, sizes=sizes, said=left.said, source_P=source_P)


def _check_queue(mesh: Mesh, slots: int, drafts: int, cache_dtype: str, answered: bool) -> None:
    """Refuse what a queue can't do."""
    if cache_dtype not in CACHE_DTYPES:
        raise ValueError(f"cache_dtype={cache_dtype!r}: expected one of {CACHE_DTYPES}")
    if drafts and not slots:
        raise ValueError(
            f"drafts={drafts} needs a queue, got slots=0 (all sequences at once): set slots, or "
            "drafts=0"
        )
    if cache_dtype and not slots and not answered:
        raise ValueError(
            f"cache_dtype={cache_dtype!r} is of a queue's cache, and slots=0: set slots to how "
            "many sequences to sample at once, or leave cache_dtype empty"
        )
    if slots:
        check_batch(mesh, "slots", slots)


def roll_out(model: Model, params: Params, job: Job) -> Rollout:
    """The rollout of a job, by one call on the device, or with a host that answers calls.

    Raises:
      ValueError: it does not fit the model or the device (limits.py).
    """
    if job.mesh is not None:
        limits.check(model, params, job)
    if job.sizes is None:
        return sampler.sample(model, params, job.asked, job.rules)
    if job.partners is None:
        return continuous.sample_queue(model, params, job.asked, job.rules, job.sizes)[0]
    return _serve(model, params, job, STRETCH)


def _serve(model: Model, params: Params, job: Job, stretch: int, **look: Any) -> Rollout:
    assert job.sizes is not None
    host = None
    if job.partners is not None:
        assert job.mesh is not None
        host = conversations.Host(job.partners, job.examples, job.rules, job.mesh)
    return conversations.roll_out(
        model, params, job.asked, job.rules, job.sizes, stretch=stretch, host=host, **look
    )


def stream(
    model: Model,
    params: Params,
    job: Job,
    tokenizer: Tokenizer,
    ended: Callable[[Ended], None],
    *,
    stretch: int,
) -> Rollout:
    """As `roll_out`; tells of sequences as they end, while the device goes on with the others.

    Args:
      ended: called with this host's sequences that have ended; every one comes once.
      stretch: tokens between two looks of the host.
    """
    if job.mesh is not None:
        limits.check(model, params, job)
    if job.sizes is not None:
        return _serve(model, params, job, stretch, look=_looking(job, tokenizer, ended))
    strings, told = job.rules.sampling.stop_strings, np.zeros(0, bool)
    params, asked = sampler.layers_apart(params), (job.asked, job.rules)
    loop, seen = sampler.start(model, params, *asked)
    while bool(seen.more):
        loop, following = sampler.advance(model, params, loop, *asked, stretch=stretch)
        told = _tell(seen, told, tokenizer, ended, strings)
        seen = following
    rollout = sampler.finish(loop, *asked)
    _tell(seen, told, tokenizer, ended, strings, last=True)
    return rollout


def stream_on(
    model: Model,
    params: Params,
    job: Job,
    tokenizer: Tokenizer,
    ended: Callable[[Ended], None],
    *,
    stretch: int,
    version: int,
) -> tuple[Rollout, Carry, np.ndarray]:
    """As `stream`, of a job of `go_on`, until enough groups are whole.

    Args:
      version: how many updates the policy has had.

    Returns:
      the groups to learn from, those to go on with, and which of this host's sequences the former
      are.
    """
    assert job.sizes is not None and job.source_P is not None and job.said is not None
    if job.mesh is not None:
        limits.check(model, params, job)
    request = (job.asked, job.rules, job.sizes)
    state = serving.begin(model, *request, job.said)
    state = conversations.drive(
        model, params, *request, state, stretch=stretch, look=_looking(job, tokenizer, ended)
    )
    rollout, left, rows_B = carry.part(state, *request, job.source_P, job.said, np.int32(version))
    return rollout, left, local_rows(rows_B) - local_slice(job.asked.uids_B).start


def _looking(job: Job, tokenizer: Tokenizer, ended) -> Callable[[serving.Served], None]:
    """Tells of what has ended whenever a queue is looked at."""
    told, strings = np.zeros(0, bool), job.rules.sampling.stop_strings

    def look(seen: serving.Served) -> None:
        nonlocal told
        shown = (seen.finished_N, seen.tokens_NC, seen.mask_NC)
        given = Seen(seen.busy, ~seen.ended_N, *shown)
        told = _tell(given, told, tokenizer, ended, strings)

    return look


def _tell(
    seen: Seen, told, tokenizer: Tokenizer, ended, strings: Sequence[str], last: bool = False
) -> np.ndarray:
    """Report the rows that ended since the last time; which rows are told by now."""
    live = local_rows(seen.live_B)
    told = told if len(told) else np.zeros(len(live), bool)
    rows = np.flatnonzero(~told) if last else np.flatnonzero(~live & ~told)
    if len(rows):
        tokens, mask = local_rows(seen.tokens_BC)[rows], local_rows(seen.mask_BC)[rows]
        finished = local_rows(seen.finished_B)[rows]
        texts = decode(tokens, mask, tokenizer, strings)
        ended(Ended(rows, texts, mask.sum(axis=1), finished))
        told[rows] = True
    return told


def sound(rollout: Rollout) -> np.ndarray:
    """Which of this host's sequences nobody failed while they were made, bool [B]."""
    if rollout.sound_B is None:
        return np.ones(len(local_rows(rollout.finished_B)), bool)
    return local_rows(rollout.sound_B)


def responses(
    rollout: Rollout, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()
) -> list[str]:
    """The text of this host's responses, in row order; see `decode`."""
    tokens = local_rows(rollout.tokens_BT)
    return decode(tokens, local_rows(rollout.response_mask_BT), tokenizer, stop_strings)


def decode(
    tokens: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()
) -> list[str]:
    """The text of the masked tokens of each row, without the end-of-sequence token.

    Args:
      stop_strings: the text ends before the first of them.
    """
    kept = (row[marked].tolist() for row, marked in zip(tokens, mask, strict=True))
    texts = (tokenizer.decode([t for t in ids if t != tokenizer.eos_id]) for ids in kept)
    return [trim(text, stop_strings) for text in texts]


def for_sampling(params: Params, model: Model, mesh: Mesh) -> Params:
    """The weights laid out for decoding: split over `tensor` only, by one jitted reshard."""
    return params if mesh.shape["fsdp"] == 1 else _reshard(mesh, model)(params)


@lru_cache(maxsize=8)
def _reshard(mesh: Mesh, model: Model):
    gathered = ("embed", "latent")
    decoding = lambda axes: spec(*(None if name in gathered else name for name in axes))  # noqa: E731
    where = jax.tree.map(
        lambda axes: NamedSharding(mesh, decoding(axes)), model.axes(), is_leaf=is_axes
    )
    return jax.jit(lambda params: params, out_shardings=where)

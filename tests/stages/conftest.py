"""Texts as the rollout that they could come from; RL on a very small model without artifacts."""

import ast
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from posttrain_jax import artifacts, registry
from posttrain_jax.api import Rollout
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.mesh import shard_rows
from posttrain_jax.metrics import read_rows
from posttrain_jax.policy import Text
from posttrain_jax.rewards import make_terms
from posttrain_jax.rollout import collect
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.experience import make_mix
from posttrain_jax.rollout.prompts import NOTHING_DRAWN, Drawn
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.scoring import Judges
from posttrain_jax.settings import defaults_of
from posttrain_jax.stages import rl


@pytest.fixture
def as_rollout(small):
    """`(texts, finished) -> (rollout on the mesh, its tokens row by row, the tokenizer)`."""
    tokenizer = load_tokenizer("tiny")

    def make(texts, finished):
        rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        shape = len(rows), max(map(len, rows))
        tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = row, True
        logp = np.zeros(shape, np.float32)
        whole = Rollout(tokens, tokens, tokens, mask, logp, logp, np.array(finished))
        return shard_rows(small.mesh, whole), rows, tokenizer

    return make


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Programs that were compiled before in this module are taken from a folder."""
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


class Scorer:
    """`score(response, example) -> reward` in the place of a verifier pool; one term."""

    def __init__(self, score):
        self._score, self.counts = score, {}

    def submit(self, responses, examples):
        return [self._score(r, e) for r, e in zip(responses, examples, strict=True)]

    def gather(self, parts):
        rewards = np.zeros((sum(len(rows) for rows, _ in parts), 1), np.float32)
        for rows, found in parts:
            rewards[rows, 0] = found
        return Scores(rewards, np.ones(len(rewards), bool))


class Scores(NamedTuple):
    """As of `verifiers.pool.Verdicts`."""

    rewards_BW: np.ndarray
    mask_B: np.ndarray

    def take(self, rows):
        return Scores(self.rewards_BW[rows], self.mask_B[rows])


class Stream:
    """Random prompts of two to five tokens; draw n is a function of n, prompt i of `take` of i."""

    skipped = 0

    def __init__(self, prompts: int):
        self._prompts = prompts

    def draw(self, step, drawn=NOTHING_DRAWN):
        rng = np.random.default_rng(drawn.draws)
        segments = (np.arange(5) >= rng.integers(0, 4, (self._prompts, 1))).astype(np.int32)
        tokens = segments * rng.integers(2, 32, (self._prompts, 5), np.int32)
        examples = [{"id": f"{drawn.draws}-{i}", "prompt": "?"} for i in range(self._prompts)]
        return Prompts(examples, tokens, segments, 0), Drawn(drawn.draws + 1, {})

    def rows(self, step, drawn=NOTHING_DRAWN, count=None):
        first, count = drawn.taken.get("", 0), count or self._prompts
        return list(range(first, first + count)), Drawn(drawn.draws + 1, {"": first + count})

    def take(self, rows):
        rngs = [np.random.default_rng(row) for row in rows]
        segments = np.stack([np.arange(5) >= r.integers(0, 4) for r in rngs]).astype(np.int32)
        tokens = segments * np.stack([r.integers(2, 32, 5, np.int32) for r in rngs])
        return Prompts([{"id": str(i), "prompt": "?"} for i in rows], tokens, segments, 0)


def good(response: str, example) -> float:
    """How many of a response's tokens, at most four, are 3, 4, 5 or 6."""
    return float(sum(token in (3, 4, 5, 6) for token in ast.literal_eval(response)))


class Trained(NamedTuple):
    """What `train_rl` made: the trained parameters, the rows of metrics.jsonl, the notes."""

    params: Any
    rows: list[dict]
    last: dict


@pytest.fixture
def rl_setting(small):
    """`(score=good, **changes) -> (setting, stream)` of an RL stage on the very small model.

    `value_model` and `teacher_model` are of `Setting`, all other changes are the stage's settings.
    """

    def make(score=good, *, needs=(), value_model=None, teacher_model=None, terms=None, **changes):
        config = ConfigDict({
            **defaults_of("rl"), "seed": 0, "group_size": 4, "rollout_size": 16,
            "batch_size": 8, "steps": 4, "prompt_length": 5, "max_new": 4, "looks": 2, "lr": 1e-2,
            "samples_every": 1000, "microbatches": 2,
        })  # fmt: skip
        for name, change in changes.items():
            config.update({name: change})
        text = Text(SimpleNamespace(eos_id=1, pad_id=0, decode=str), None)
        terms = terms or make_terms({"good": {"verifier": "unused"}}).terms
        sampling = Sampling(temperature=config.temperature)
        setting = collect.Setting(
            config, small.mesh, text, small.model, Judges(terms, Scorer(score), {}), sampling,
            config.temperature, rl.make_credit(config), make_mix(terms), frozenset(needs), None,
            value_model, teacher_model,
        )  # fmt: skip
        return setting, Stream(config.rollout_size // config.group_size)

    return make


@pytest.fixture
def train_rl(small, rl_setting):
    """`(folder, params=None, value_params=None, **as of rl_setting) -> Trained`."""

    def train(folder, params=None, value_params=None, **settings):
        setting, stream = rl_setting(**settings)
        with jax.set_mesh(small.mesh):
            begun = jax.tree.map(jnp.copy, small.params if params is None else params)
            trained, _, last = rl.train(setting, folder, begun, value_params, stream)
        rows = [
            {k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per"))}
            for row in read_rows(folder / "metrics.jsonl")
        ]
        return Trained(trained, rows, last)

    return train


@pytest.fixture
def run_stage(tmp_path):
    """`(kind, settings, inputs, name=kind) -> the sealed artifact`, as the pipeline runs a stage.

    Called again with a name it continues what is there.
    """

    def run(kind, settings, inputs, name=None):
        name = name or kind
        module = registry.load("stages", kind)
        given = {**defaults_of(module.__name__.rpartition(".")[2]), **settings}
        config = ConfigDict({
            "kind": kind, "seed": 0, "tokenizer": "tiny", "chat_template": "tiny",
            "mesh": {"data": 1}, **given,
        })  # fmt: skip
        folder = tmp_path / f"{name}-1"
        hashes = {"tokenizer_hash": "", "template_hash": "", "code": ""}
        record = artifacts.Record(
            name, kind, "1" * 64, config=config.to_dict(), inputs={}, **hashes
        )
        artifacts.prepare(folder, record)
        module.run(config, folder, inputs)
        artifacts.seal(folder)
        return artifacts.load(folder)

    return run

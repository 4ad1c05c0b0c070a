"""The searches that a stage can name: their settings, and the models that they run with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from posttrain_jax import process_reward
from posttrain_jax.api import Artifact
from posttrain_jax.policy import Text, load_policy
from posttrain_jax.process_reward import AGGREGATES, ProcessModel
from posttrain_jax.rollout import beams, engine, limits, mcts
from posttrain_jax.rollout.engine import Prompts
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.search_rows import (
    Reading,
    Searched,
    from_beams,
    from_trees,
    step_rows,
)
from posttrain_jax.rollout.steps import Writer, step_stops
from posttrain_jax.rollout.tree_search import Plan
from posttrain_jax.verifiers.pool import Pool

METHODS = ("beam", "lookahead", "mcts")
ENDS = ("process", "verifier")
Search = Callable[[Prompts, int], Searched]
"""From the prompts of a batch and the number of the first to what was found for them."""


def check(config: Any, inputs: Mapping[str, Artifact]) -> None:
    """Raise ValueError for settings that don't fit together."""
    for name, value, known in (
        ("method", config.method, METHODS), ("mcts.ends", config.mcts.ends, ENDS),
        ("aggregate", config.aggregate, AGGREGATES),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    if config.width < 1 or config.beams % config.width:
        raise ValueError(
            f"width={config.width} does not divide beams={config.beams}: beams / width are kept"
        )
    if config.lookahead < 1:
        raise ValueError(f"lookahead={config.lookahead}: expected at least 1; method='beam' has 0")
    least = {"iterations": 1, "candidates": 1, "depth": 1, "traces": 1}
    for name in (*least, "c_puct", "rollouts", "pairs"):
        if config.mcts[name] < least.get(name, 0):
            raise ValueError(
                f"mcts.{name}={config.mcts[name]}: expected at least {least.get(name, 0)}"
            )
    if config.mcts.rollouts and not verified(config):
        raise ValueError(
            f"mcts.rollouts={config.mcts.rollouts} are judged by the verifier: they need "
            "method='mcts' and mcts.ends='verifier'"
        )
    if "process_reward" not in inputs and not verified(config):
        raise ValueError(
            f"method={config.method!r} needs an input process_reward; only 'mcts' with "
            "mcts.ends='verifier' does without"
        )


def solutions(config: Any) -> int:
    """How many rows a problem has."""
    return config.mcts.traces if config.method == "mcts" else config.beams


def verified(config: Any) -> bool:
    """Whether the verifier judges ends while the search goes on, which gives labels of steps."""
    return config.method == "mcts" and config.mcts.ends == "verifier"


def open_search(
    config: Any, inputs: Mapping[str, Artifact], mesh: Mesh, text: Text, pool: Pool
) -> tuple[Search, Reading]:
    """The search of the settings, and how its solutions are read."""
    judge = open_judge(config, inputs, mesh) if "process_reward" in inputs else None
    separators = judge.separators if judge else tuple(config.separators)
    if not separators or (config.separators and tuple(config.separators) != separators):
        raise ValueError(
            f"separators={tuple(config.separators)}: expected "
            + (f"those of the process model, {separators}" if judge else "texts that end a step")
        )
    writer = open_writer(config, inputs, mesh, text, separators)
    reading = Reading(text.tokenizer, separators, config.aggregate if judge else "")
    if config.method == "mcts":
        return by_tree(config, writer, judge, pool), reading
    assert judge is not None
    ahead = config.lookahead if config.method == "lookahead" else 0
    limits = beams.Limits(config.beams, config.width, config.rounds, config.aggregate, ahead)
    searcher = beams.Searcher(writer, judge, limits)
    return (lambda prompts, first: from_beams(*beams.search(searcher, prompts, first))), reading


def by_tree(config: Any, writer: Writer, judge: ProcessModel | None, pool: Pool) -> Search:
    """Monte Carlo tree search."""
    sizes = config.mcts.to_dict()
    plan = Plan(**{name: sizes[name] for name in Plan._fields})

    def verify(said: Sequence[str], examples: Sequence[Mapping[str, Any]]):
        scores, sound = pool(said, examples)
        return scores[:, 0], sound

    known, pairs = (verify, sizes["pairs"]) if verified(config) else (None, 0)
    explorer = mcts.Explorer(writer, judge, config.aggregate, plan, known)

    def search(prompts: Prompts, first: int) -> Searched:
        walks, rounds = mcts.search(explorer, prompts, first)
        steps = step_rows(writer.tokenizer, prompts.examples, walks, pairs)
        return from_trees(walks, rounds, sizes["traces"], known is None, steps)

    return search


def open_judge(config: Any, inputs: Mapping[str, Artifact], mesh: Mesh) -> ProcessModel:
    """The process model.

    Raises:
      ValueError: one with a marker (its steps end where a token is put in, which the policy can't
        say), or too short for what the policy may write.
    """
    judge = process_reward.load(inputs["process_reward"], mesh)
    if judge.marker:
        raise ValueError(f"the process model reads a marker, {judge.marker!r}; search needs none")
    if (most := config.prompt_length + config.max_new) > judge.length:
        raise ValueError(
            f"prompt_length + max_new = {most}, over the process model's length={judge.length}"
        )
    return judge


def open_writer(
    config: Any, inputs: Mapping[str, Artifact], mesh: Mesh, text: Text, separators: Sequence[str]
) -> Writer:
    """The policy, with the tokens that end a step.

    Raises:
      ValueError: sequences longer than the model reads.
    """
    model, params = load_policy(inputs["policy"], mesh, **config.model_options)
    limits.check_window(model, config.prompt_length, config.max_new)
    stops = step_stops(text.tokenizer, separators)
    sampling = Sampling(
        config.temperature, top_p=config.top_p, stop=(*stops, text.tokenizer.eos_id)
    )
    return Writer(
        model, engine.for_sampling(params, model, mesh), mesh, text.tokenizer, stops, sampling,
        config.seed, config.prompt_length, config.max_step, config.max_new,
    )  # fmt: skip

"""A process reward model as a function from solutions to scores of their steps.

The chance that a step is right is read at its last token, from a head of two classes (wrong,
right): Qwen2.5-Math-PRM, arXiv 2501.07301. One score of a solution is the product of the chances
(there, section 2.3), the least of them, or that of the last step, which that paper found better for
labels by sampling, and Snell et al. 2024 (arXiv 2408.03314, section 5.1) too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import checkpoint, reward_model
from posttrain_jax.api import Artifact, Batch, Model, Params
from posttrain_jax.conversations import without_markers
from posttrain_jax.data.chat import ChatTemplate
from posttrain_jax.data.steps import Steps, encode_steps, split_steps
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.mesh import from_local_rows, local_rows
from posttrain_jax.models import ModelConfig, heads, make_model
from posttrain_jax.models.head_files import load_with_head, save_with_head
from posttrain_jax.models.heads import HeadConfig
from posttrain_jax.models.streaming import put_lazy, put_sharded
from posttrain_jax.policy import Text

AGGREGATES = ("product", "min", "last")


class ProcessModel(NamedTuple):
    """A decoder with a head of two classes.

    Attributes:
      params: {"backbone": ..., "head": ...}.
      length: the longest solution with its prompt, in tokens; steps behind it are not seen.
      separators: the texts that end a step.
      aggregate: how the scores of steps become one, see `aggregate`.
      marker: a token that is put behind each step, to be read there; empty: none.
    """

    model: Model
    params: Params
    length: int
    separators: tuple[str, ...]
    aggregate: str = "product"
    marker: str = ""
    head: HeadConfig = heads.PROCESS


def aggregate(chances: Sequence[float], how: str) -> float:
    """One score of a solution from the chances of its steps; NaN where it has none.

    Raises:
      ValueError: an unknown `how`.
    """
    if how not in AGGREGATES:
        raise ValueError(f"aggregate={how!r}: expected one of {', '.join(AGGREGATES)}")
    if not len(chances):
        return float("nan")
    return float({"product": np.prod, "min": np.min, "last": lambda c: c[-1]}[how](chances))


def check_head(head: HeadConfig) -> None:
    """Raise ValueError for a head that does not tell wrong from right."""
    if head.outputs != 2:
        raise ValueError(f"head.outputs={head.outputs}: a process reward model has 2, wrong, right")


def save(folder: Path, found: ProcessModel) -> None:
    """Write a process reward model into an artifact."""
    about = {
        "config": dataclasses.asdict(found.model.config),
        "head": dataclasses.asdict(found.head),
        "length": found.length,
        "separators": list(found.separators),
        "aggregate": found.aggregate,
        "marker": found.marker,
    }
    checkpoint.save_params(folder, found.params, about)


def load(artifact: Artifact, mesh: Mesh) -> ProcessModel:
    """The process reward model of an artifact, read into its shards.

    Raises:
      ValueError: the artifact holds none.
    """
    if (kind := checkpoint.model_kind(artifact.path)) != "process_reward":
        raise ValueError(
            f"{artifact.path} of stage {artifact.stage!r} ({artifact.kind}) holds a {kind}: "
            "expected a process_reward"
        )
    about = checkpoint.load_about(artifact.path)
    model, head = make_model(ModelConfig(**about["config"])), HeadConfig(**about["head"])
    where = reward_model.param_shardings(model, head, mesh)
    shapes = reward_model.param_shapes(model, head)
    params = checkpoint.load_params(artifact.path, shapes, where)
    return ProcessModel(
        model, params, about["length"], tuple(about["separators"]), about["aggregate"],
        about["marker"], head,
    )  # fmt: skip


def from_folder(
    folder: str | Path, mesh: Mesh, separators: Sequence[str] = ("\n\n",), *,
    aggregate: str = "product", marker: str = "", dtype: str | None = None,
) -> ProcessModel:  # fmt: skip
    """A process reward model of others, from a folder in Hugging Face's layout.

    Qwen2.5-Math-PRM takes marker="<extra_0>".

    Raises:
      FileNotFoundError, ValueError: as `models.head_files.load_with_head`; a head that is read once
        a conversation, or that has no two classes.
    """
    lazy = load_with_head(folder, put_lazy, dtype=dtype)
    if lazy.reads != "token":
        raise ValueError(f"{folder}: its head scores whole conversations, not tokens (steps)")
    check_head(lazy.head)
    model = make_model(ModelConfig(**{**lazy.fields, "dtype": lazy.fields["param_dtype"]}))
    put = put_sharded(reward_model.param_shardings(model, lazy.head, mesh))
    params = jax.tree.map_with_path(
        lambda path, leaf: put(tuple(step.key for step in path), leaf), lazy.params
    )
    length = model.config.max_length
    return ProcessModel(model, params, length, tuple(separators), aggregate, marker, lazy.head)


def export(
    artifact: Artifact, mesh: Mesh, folder: Path, tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
) -> None:  # fmt: skip
    """Write the process reward model of an artifact as `transformers` and others load it.

    Raises:
      ValueError: as `models.head_files.save_with_head`.
    """
    found = load(artifact, mesh)
    save_with_head(
        folder, found.model.config, found.params, found.head, tokenizer, template,
        reads="token",
    )  # fmt: skip


def encode(
    found: ProcessModel, pairs: Sequence[tuple[Mapping[str, Any], str]], text: Text
) -> list[Steps]:
    """The (example, response)s as a process reward model reads them."""
    encoded = []
    for example, response in pairs:
        steps = split_steps(without_markers(response, text), found.separators)
        encoded.append(
            encode_steps(*text, example, steps, length=found.length, marker=found.marker)
        )
    return encoded


def chances_local(found: ProcessModel, rows: Sequence[np.ndarray], mesh: Mesh) -> np.ndarray:
    """The chance that a step which ends at a token is right, for every token of this host's rows.

    All hosts call with as many rows each; -> float32 [rows, length], aligned with the tokens.
    """
    tokens = np.zeros((len(rows), found.length), np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate(rows):
        kept = ids[: found.length]
        tokens[row, : len(kept)], segments[row, : len(kept)] = kept, 1
    placed = (from_local_rows(mesh, array) for array in (tokens, segments))
    return local_rows(_chances(found.model, found.params, *placed))


@functools.partial(jax.jit, static_argnames="model")
def _chances(model: Model, params: Params, tokens_BT, segments_BT) -> jax.Array:
    place_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    batch = Batch(tokens_BT, place_BT, segments_BT, segments_BT)
    return heads.right_chance(heads.read(model, params, batch, place_BT))

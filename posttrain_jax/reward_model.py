"""A trained reward model as a function from conversations to scores."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import checkpoint
from posttrain_jax.api import Artifact, Batch, Model, Params
from posttrain_jax.data.chat import encode_chat
from posttrain_jax.data.examples import messages
from posttrain_jax.mesh import check_divides, from_local_rows, shardings
from posttrain_jax.models import ModelConfig, heads, make_model
from posttrain_jax.models.head_files import load_with_head, save_with_head
from posttrain_jax.models.heads import HeadConfig
from posttrain_jax.models.streaming import put_lazy, put_sharded
from posttrain_jax.policy import Text, load_policy
from posttrain_jax.verifiers.terms import cut


class RewardModel(NamedTuple):
    """A decoder and its score head.

    Attributes:
      params: {"backbone": ..., "head": ...}.
      length: the longest conversation it was trained on, in tokens.
      span: what of a response is scored, one of `verifiers.terms.SPANS`. DeepSeek-R1's helpful
        model scores the final summary, `answer`, its safety model the whole response (Nature 645,
        2025, Methods). A chain of thought that never ends has no summary: the empty response is
        scored, not the chain.
    """

    model: Model
    params: Params
    length: int
    span: str
    head: HeadConfig = heads.SCORE


def param_axes(model: Model, head: HeadConfig) -> Any:
    """The logical axes of a decoder with a head."""
    return {"backbone": heads.without_lm_head(model.axes()), "head": heads.axes(head)}


def param_shapes(model: Model, head: HeadConfig) -> Any:
    """The abstract parameters of a decoder with a head."""
    key = jax.random.key(0)
    make = functools.partial(heads.init, head=head, width=model.config.width)
    backbone = heads.without_lm_head(jax.eval_shape(model.init, key))
    return {"backbone": backbone, "head": jax.eval_shape(make, key)}


def param_shardings(model: Model, head: HeadConfig, mesh: Mesh) -> Any:
    """Where the parameters of a decoder with a head live.

    Raises:
      ValueError: a dimension that its mesh axes don't divide.
    """
    axes = param_axes(model, head)
    check_divides(mesh, axes, param_shapes(model, head))
    return shardings(mesh, axes)


def add_head(
    model: Model, policy: Params, mesh: Mesh, seed: int, head: HeadConfig = heads.SCORE
) -> Params:
    """A policy's parameters with a new head in the place of the LM head."""
    make = jax.jit(
        functools.partial(heads.init, head=head, width=model.config.width),
        out_shardings=param_shardings(model, head, mesh)["head"],
    )
    return {"backbone": heads.without_lm_head(policy), "head": make(jax.random.key(seed))}


def save(folder: Path, reward_model: RewardModel) -> None:
    """Write a reward model into an artifact."""
    about = {
        "config": dataclasses.asdict(reward_model.model.config),
        "head": dataclasses.asdict(reward_model.head),
        "length": reward_model.length,
        "span": reward_model.span,
    }
    checkpoint.save_params(folder, reward_model.params, about)


def load(artifact: Artifact, mesh: Mesh) -> RewardModel:
    """The reward model of an artifact, read into its shards."""
    about = checkpoint.load_about(artifact.path)
    model, head = make_model(ModelConfig(**about["config"])), HeadConfig(**about["head"])
    where = param_shardings(model, head, mesh)
    params = checkpoint.load_params(artifact.path, param_shapes(model, head), where)
    return RewardModel(model, params, about["length"], about["span"], head)


def from_folder(
    folder: str | Path, mesh: Mesh, span: str = "whole", dtype: str | None = None
) -> RewardModel:
    """A reward model of others, from a folder in Hugging Face's layout (`models/head_files.py`).

    Args:
      folder: its tokenizer is `load_tokenizer(folder)`.
      mesh: where its parameters go, straight from the file into their shards.
      span: what of a response it scores.
      dtype: of the backbone's parameters and maths; default what they are stored in.

    Raises:
      FileNotFoundError, ValueError: as `models.head_files.load_with_head`; a head that is read at
        every token; a mesh that does not divide a parameter.
    """
    lazy = load_with_head(folder, put_lazy, dtype=dtype)
    if lazy.reads != "sequence":
        raise ValueError(f"{folder}: its head scores tokens (steps), not whole conversations")
    model = make_model(ModelConfig(**{**lazy.fields, "dtype": lazy.fields["param_dtype"]}))
    put = put_sharded(param_shardings(model, lazy.head, mesh))
    params = jax.tree.map_with_path(
        lambda path, leaf: put(tuple(step.key for step in path), leaf), lazy.params
    )
    return RewardModel(model, params, model.config.max_length, span, lazy.head)


def export(artifact: Artifact, mesh: Mesh, folder: Path, text: Text) -> None:
    """Write the reward model of an artifact as `transformers` and others load it.

    Raises:
      ValueError: as `models.head_files.save_with_head`.
    """
    found = load(artifact, mesh)
    save_with_head(
        folder, found.model.config, found.params, found.head, text.tokenizer, text.template
    )


def load_value(artifact: Artifact, mesh: Mesh, seed: int) -> tuple[Model, Params]:
    """A value model (`heads.values`) to start PPO from.

    From a reward model it is that model, head included (Tülu 3, arXiv 2411.15124, section 6.2);
    from a policy it is the policy with a head that says 0.

    Raises:
      ValueError: a reward model with several outputs.
    """
    if artifact.kind != "reward_model":
        model, policy = load_policy(artifact, mesh)
        return model, add_head(model, policy, mesh, seed, heads.VALUE)
    found = load(artifact, mesh)
    if found.head.outputs != 1:
        raise ValueError(
            f"the reward model {artifact.stage!r} has {found.head.outputs} outputs; a value model "
            "starts from one with head.outputs=1"
        )
    return found.model, found.params


def without_markers(content: str, text: Text) -> str:
    """A text without the turn markers of a tokenizer, which would forge a turn.

    Where taking them out makes new ones of what stood around them, spaces take their places.
    """
    markers = re.compile("|".join(map(re.escape, text.tokenizer.markers)) or "(?!)")
    content = markers.sub("", content)
    return markers.sub(" ", content)


def encode(
    pairs: Sequence[tuple[Mapping[str, Any], str]], text: Text, length: int, span: str
) -> tuple[list[np.ndarray], int]:
    """The tokens of each (example, response), and how many were cut to `length`.

    Turn markers that a policy wrote into its response are taken out: they must not forge a turn.
    """
    sequences, too_long = [], 0
    for example, response in pairs:
        said = cut(without_markers(response, text), span)
        if span != "whole":  # white space at its start could merge with the generation prompt
            said = said.strip()
        ids, _ = encode_chat(*text, messages(example, said))
        too_long += len(ids) > length
        sequences.append(np.array(ids[:length], np.int32))
    return sequences, too_long


def encode_rows(
    pairs: Sequence[tuple[Mapping[str, Any], str]], text: Text, length: int, span: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Conversations as right-padded rows (tokens, segments), and how many were cut to `length`."""
    sequences, too_long = encode(pairs, text, length, span)
    tokens = np.full((len(pairs), length), text.tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)] = ids
        segments[row, : len(ids)] = 1
    return tokens, segments, too_long


@functools.partial(jax.jit, static_argnames="model")
def _scores(model: Model, params: Params, tokens_BT, segments_BT):
    positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    ends_BT = heads.last_tokens(segments_BT)
    batch = Batch(tokens_BT, positions, segments_BT, ends_BT)
    place_B1, _ = heads.places(ends_BT, 1)
    return heads.read(model, params, batch, place_B1)[:, 0, 0]


def score_local(
    reward_model: RewardModel,
    pairs: Sequence[tuple[Mapping[str, Any], str]],
    text: Text,
    mesh: Mesh,
) -> jax.Array:
    """Scores of all hosts' conversations; each host passes its own rows -> global [B]."""
    tokens, segments, _ = encode_rows(pairs, text, reward_model.length, reward_model.span)
    placed = (from_local_rows(mesh, tokens), from_local_rows(mesh, segments))
    return _scores(reward_model.model, reward_model.params, *placed)

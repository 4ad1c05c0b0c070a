"""A reward model as a function from conversations to scores.

A head of several outputs rates several objectives. A gate over it makes them one score, by weights
that depend on the prompt (ArmoRM: Wang et al. 2024, arXiv 2406.12845, section 3.2):

  score = exp(log_scale) * sum_O softmax(gate(h_prompt))_O * head(h_response)_O

with h_prompt and h_response the hidden states at the last tokens of prompt and response. Left out:
ArmoRM's correction for verbosity.
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

from posttrain_jax import checkpoint
from posttrain_jax.api import Artifact, Batch, Model, Params
from posttrain_jax.conversations import encode_rows
from posttrain_jax.data.chat import ChatTemplate
from posttrain_jax.data.tokenizer import Tokenizer
from posttrain_jax.mesh import (
    all_rows,
    batch_shards,
    check_divides,
    from_local_rows,
    host_batch,
    local_rows,
    local_slice,
    shardings,
)
from posttrain_jax.models import ModelConfig, heads, make_model
from posttrain_jax.models.head_files import load_with_head, save_with_head
from posttrain_jax.models.heads import HeadConfig
from posttrain_jax.models.streaming import put_lazy, put_sharded
from posttrain_jax.policy import Text, load_policy


class RewardModel(NamedTuple):
    """A decoder and its score head.

    Attributes:
      params: {"backbone": ..., "head": ...}, and "gate" where there is one.
      length: the longest conversation it was trained on, in tokens.
      span: what of a response is scored, one of `verifiers.terms.SPANS`. DeepSeek-R1's helpful
        model scores the final summary, `answer`, its safety model the whole response (Nature 645,
        2025, Methods). A chain of thought that never ends has no summary: the empty response is
        scored, not the chain.
      gate: what its gate is, whose outputs are the head's; None of one score.
      objectives: the names of the head's outputs, where it has several.
    """

    model: Model
    params: Params
    length: int
    span: str
    head: HeadConfig = heads.SCORE
    gate: HeadConfig | None = None
    objectives: tuple[str, ...] = ()


def param_axes(model: Model, head: HeadConfig, gate: HeadConfig | None = None) -> Any:
    """The logical axes of a decoder with a head."""
    axes = {"backbone": heads.without_lm_head(model.axes()), "head": heads.axes(head)}
    return axes | ({"gate": {**heads.axes(gate), "log_scale": ()}} if gate else {})


def param_shapes(model: Model, head: HeadConfig, gate: HeadConfig | None = None) -> Any:
    """The abstract parameters of a decoder with a head."""
    key, width = jax.random.key(0), model.config.width
    backbone = heads.without_lm_head(jax.eval_shape(model.init, key))
    shapes = {"backbone": backbone}
    for name, what in (("head", head), ("gate", gate)):
        if what:
            make = _new_gate if name == "gate" else heads.init
            shapes[name] = jax.eval_shape(functools.partial(make, head=what, width=width), key)
    return shapes


def param_shardings(
    model: Model, head: HeadConfig, mesh: Mesh, gate: HeadConfig | None = None
) -> Any:
    """Where the parameters of a decoder with a head live.

    Raises:
      ValueError: a dimension that its mesh axes don't divide.
    """
    axes = param_axes(model, head, gate)
    check_divides(mesh, axes, param_shapes(model, head, gate))
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


def _new_gate(key: jax.Array, head: HeadConfig, width: int) -> Params:
    return {**heads.init(key, head, width), "log_scale": jnp.zeros(())}


def add_gate(found: RewardModel, mesh: Mesh, seed: int, gate: Mapping[str, Any]) -> RewardModel:
    """A reward model of several objectives with a new gate, which weighs them all alike.

    Args:
      gate: fields of the gate's `HeadConfig`; by default two layers, the last of which starts at 0.

    Raises:
      ValueError: it has one objective, or a gate already.
    """
    if found.head.outputs < 2 or found.gate:
        raise ValueError(
            f"a gate weighs several objectives; the reward model has head.outputs="
            f"{found.head.outputs}{' and a gate already' if found.gate else ''}"
        )
    wanted = HeadConfig(**{"layers": 2, "init_std": 0.0, **gate, "outputs": found.head.outputs})
    where = param_shardings(found.model, found.head, mesh, wanted)["gate"]
    make = functools.partial(_new_gate, head=wanted, width=found.model.config.width)
    new = jax.jit(make, out_shardings=where)(jax.random.key(seed))
    return found._replace(params={**found.params, "gate": new}, gate=wanted)


def outputs(model: Model, params: Params, batch: Batch, place_BM, prompt_BM) -> jax.Array:
    """What a reward model says at places of each row -> float32 [B, M, O]; O is 1 with a gate.

    Args:
      prompt_BM: the last tokens of the prompts, which a gate reads.
    """
    if "gate" not in params:
        return heads.read(model, params, batch, place_BM)
    both = jnp.concatenate([place_BM, prompt_BM], axis=1)
    ends_BMD, prompts_BMD = jnp.split(heads.hidden_at(model, params, batch, both), 2, axis=1)
    rated_BMO = heads.apply(params["head"], ends_BMD)
    weight_BMO = jax.nn.softmax(heads.apply(params["gate"], prompts_BMD), axis=-1)
    score_BM1 = jnp.sum(weight_BMO * rated_BMO, axis=-1, keepdims=True)
    return jnp.exp(params["gate"]["log_scale"]) * score_BM1


def save(folder: Path, reward_model: RewardModel) -> None:
    """Write a reward model into an artifact."""
    about = {
        "config": dataclasses.asdict(reward_model.model.config),
        "head": dataclasses.asdict(reward_model.head),
        "length": reward_model.length,
        "span": reward_model.span,
        "gate": reward_model.gate and dataclasses.asdict(reward_model.gate),
        "objectives": reward_model.objectives,
    }
    checkpoint.save_params(folder, reward_model.params, about)


def load(artifact: Artifact, mesh: Mesh) -> RewardModel:
    """The reward model of an artifact, read into its shards.

    Raises:
      ValueError: the artifact holds none.
    """
    if (kind := checkpoint.model_kind(artifact.path)) != "reward_model":
        raise ValueError(
            f"{artifact.path} of stage {artifact.stage!r} ({artifact.kind}) holds a {kind}: "
            "expected a reward_model"
        )
    about = checkpoint.load_about(artifact.path)
    model, head = make_model(ModelConfig(**about["config"])), HeadConfig(**about["head"])
    gate = HeadConfig(**about["gate"]) if about["gate"] else None
    where = param_shardings(model, head, mesh, gate)
    params = checkpoint.load_params(artifact.path, param_shapes(model, head, gate), where)
    named = tuple(about["objectives"])
    return RewardModel(model, params, about["length"], about["span"], head, gate, named)


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


def export(
    artifact: Artifact, mesh: Mesh, folder: Path, tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
) -> None:  # fmt: skip
    """Write the reward model of an artifact as `transformers` and others load it.

    Raises:
      ValueError: as `models.head_files.save_with_head`; it has a gate, as no class of others has.
    """
    found = load(artifact, mesh)
    if found.gate:
        raise ValueError(f"{artifact.path} has a gate, and no Hugging Face class holds one")
    save_with_head(folder, found.model.config, found.params, found.head, tokenizer, template)


def load_value(artifact: Artifact, mesh: Mesh, seed: int) -> tuple[Model, Params]:
    """A value model (`heads.values`) to start PPO from.

    From a reward model it is that model, head included (Tülu 3, arXiv 2411.15124, section 6.2);
    from a policy it is the policy with a head that says 0.

    Raises:
      ValueError: a reward model with several outputs.
    """
    if checkpoint.model_kind(artifact.path) != "reward_model":
        model, policy = load_policy(artifact, mesh)
        return model, add_head(model, policy, mesh, seed, heads.VALUE)
    found = load(artifact, mesh)
    if found.head.outputs != 1:
        raise ValueError(
            f"the reward model {artifact.stage!r} has {found.head.outputs} outputs; a value model "
            "starts from one with head.outputs=1"
        )
    return found.model, found.params


@functools.partial(jax.jit, static_argnames="model")
def _outputs(model: Model, params: Params, tokens_BT, segments_BT, prompt_B):
    positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    ends_BT = heads.last_tokens(segments_BT)
    batch = Batch(tokens_BT, positions, segments_BT, ends_BT)
    place_B1, _ = heads.places(ends_BT, 1)
    return outputs(model, params, batch, place_B1, jnp.maximum(prompt_B - 1, 0)[:, None])[:, 0]


def outputs_local(
    reward_model: RewardModel,
    pairs: Sequence[tuple[Mapping[str, Any], str]],
    text: Text,
    mesh: Mesh,
) -> jax.Array:
    """All hosts' conversations, each host its own rows -> global [B, O]."""
    *rows, _ = encode_rows(pairs, text, reward_model.length, reward_model.span)
    placed = (from_local_rows(mesh, array) for array in rows)
    return _outputs(reward_model.model, reward_model.params, *placed)


def score_local(
    reward_model: RewardModel,
    pairs: Sequence[tuple[Mapping[str, Any], str]],
    text: Text,
    mesh: Mesh,
) -> jax.Array:
    """Scores of all hosts' conversations; each host passes its own rows -> global [B].

    Raises:
      ValueError: the model rates several objectives and has no gate.
    """
    found = outputs_local(reward_model, pairs, text, mesh)
    if found.shape[1] != 1:
        raise ValueError(
            f"the reward model rates {found.shape[1]} objectives {reward_model.objectives}, which "
            "is no score: train a gate on it (stages/reward_model.py, `gate`)"
        )
    return found[:, 0]


def output_all(
    reward_model: RewardModel,
    pairs: Sequence[tuple[Mapping[str, Any], str]],
    text: Text,
    mesh: Mesh,
    size: int,
) -> np.ndarray:
    """What it says of conversations that every host passes alike -> [conversations, O], on each.

    Args:
      size: conversations in a round, rounded up to what the mesh divides.
    """
    ways = batch_shards(mesh)
    size, found = -(-size // ways) * ways, []
    for first in range(0, len(pairs), size):
        part = [pairs[(first + i) % len(pairs)] for i in range(size)]
        here = local_slice(host_batch(mesh, (size,), lambda i: np.zeros(size)[i]))
        rows = local_rows(outputs_local(reward_model, part[here], text, mesh))
        found.append(all_rows(mesh, rows))
    return np.concatenate(found)[: len(pairs)]

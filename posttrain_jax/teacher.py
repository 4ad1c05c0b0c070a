"""A teacher on the mesh: what it expects at each place of a batch, be that data or samples.

On-policy distillation (Agarwal et al. 2023, arXiv 2306.13649; the second half of Qwen3's
strong-to-weak distillation, arXiv 2505.09388, section 4.5) asks it about the student's own samples.
With its k likeliest tokens a place the divergence is that of losses/distill.py; with k = 0 it only
says how likely the sampled token is, and `sampled_kl` makes an advantage of that.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from posttrain_jax import artifacts
from posttrain_jax.api import Array, Artifact, Batch, Metrics, Model, Params, Teacher
from posttrain_jax.files import read_json
from posttrain_jax.losses.common import weighted_sum
from posttrain_jax.policy import Text, load_policy


class TeacherModel(NamedTuple):
    """A teacher's model and parameters, and how many tokens its student has."""

    model: Model
    params: Params
    vocab_size: int


def open_teacher(
    artifact: Artifact, mesh: Mesh, text: Text, student: Model, **changes: Any
) -> TeacherModel:
    """The policy of an artifact as a teacher, read straight into its shards; adapters are merged.

    A vocabulary that is padded to another size than the student's is no other tokenizer.

    Args:
      text: what the student reads and writes.
      changes: as of `load_policy`.

    Raises:
      ValueError: the artifact was made with another tokenizer or chat template.
    """
    check_text(artifact, text)
    return TeacherModel(*load_policy(artifact, mesh, **changes), student.config.vocab_size)


def check_text(artifact: Artifact, text: Text) -> None:
    """Refuse a teacher of another text format: its token ids would mean other words.

    A teacher without a chat template (pretrained on plain text) is bound to none.

    Raises:
      ValueError: what differs, both hashes.
    """
    made = read_json(artifact.path / artifacts.RECORD)
    for name, key, ours in (
        ("tokenizer", "tokenizer_hash", text.tokenizer.hash),
        ("chat template", "template_hash", text.template.hash),
    ):
        if made.get(key) and made[key] != ours:
            raise ValueError(
                f"the teacher, stage {artifact.stage!r}, was made with another {name} "
                f"({made[key][:12]}) than the student's ({ours[:12]}): log-probs of tokens can't "
                "pass between them. Let it write responses (`generate`) and distil those, with "
                "retokenize=True"
            )


def likeliest(
    teacher: TeacherModel, batch: Batch, k: int, *, start: int = 1, temperature: float = 1.0
) -> Teacher:
    """The teacher's k likeliest tokens where `batch.weight_BT` is not 0, which are its weights.

    With k = 0 the batch's own tokens, whose weights are then 0: `losses/distill.py` has nothing to
    say of them.

    Args:
      start: the first place that may bear weight; the LM head starts there.
      temperature: of the teacher's distribution.
    """
    model, params, vocab_size = teacher
    if k < 0 or k > vocab_size:
        raise ValueError(f"k={k}: expected 0 to {vocab_size}, the tokens that the student has")
    return _likeliest(model, params, batch, k, start, float(temperature), vocab_size)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _likeliest(model: Model, params: Params, batch: Batch, k, start, temperature, vocab_size):
    hidden, _ = model.apply(
        params, batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT
    )
    hidden, needed = hidden[:, start - 1 : -1], batch.weight_BT[:, start:] != 0
    weight_BT = batch.weight_BT
    if k:
        tokens, logp = model.top_logprobs(params, hidden, k, temperature, needed)
    else:
        logp, _ = model.logprobs(params, hidden, batch.tokens_BT[:, start:], temperature, needed)
        tokens, logp, weight_BT = batch.tokens_BT[:, start:, None], logp[..., None], weight_BT * 0.0
    tokens, logp = (jnp.pad(x, ((0, 0), (start, 0), (0, 0))) for x in (tokens, logp))
    return within(Teacher(tokens, logp, weight_BT), vocab_size)


def within(teacher: Teacher, vocab_size: int) -> Teacher:
    """Without the tokens that a student of this many does not have."""
    known = teacher.tokens_BTJ < vocab_size
    tokens = jnp.where(known, teacher.tokens_BTJ, 0)
    return teacher._replace(
        tokens_BTJ=tokens, logp_BTJ=jnp.where(known, teacher.logp_BTJ, -jnp.inf)
    )


def annotate(
    teacher: TeacherModel, batch: Batch, k: int, *, start: int = 1, temperature: float = 1.0
) -> Batch:
    """The batch with what the teacher expects of it; see `likeliest`."""
    found = likeliest(teacher, batch, k, start=start, temperature=temperature)
    return batch._replace(teacher=found)


@jax.jit
def sampled_kl(batch: Batch) -> tuple[Array, None, Metrics]:
    """Per-token advantages log p(y) - log q(y) from a batch annotated with k = 0.

    q is the policy that sampled y (`behaviour_logp_BT`), p the teacher, at one temperature. Times
    the gradient of log q(y) and averaged over samples that is -d KL(q | p) of the next-token
    distributions: the reverse KL of GKD (arXiv 2306.13649, section 3) from one sample. A token
    answers for its own divergence only, not for what comes after it.

    Returns:
      as the estimators of advantages/: advantages [B, T], 0 off the weighted tokens; no returns;
      the weighted mean of the divergence.

    Raises:
      ValueError: a batch that lacks either log-probs.
    """
    if batch.teacher is None or batch.behaviour_logp_BT is None:
        raise ValueError("sampled_kl needs behaviour_logp_BT and a teacher (annotate, k=0)")
    gap_BT = batch.teacher.logp_BTJ[..., 0] - batch.behaviour_logp_BT
    advantage_BT = jnp.where(batch.weight_BT != 0, gap_BT, 0.0)
    share = jnp.maximum(jnp.sum(batch.weight_BT), jnp.finfo(jnp.float32).tiny)
    return advantage_BT, None, {"sampled_kl": -weighted_sum(gap_BT, batch.weight_BT) / share}

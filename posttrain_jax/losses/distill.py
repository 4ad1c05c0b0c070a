"""Distillation: a divergence between the teacher's and the student's next-token distributions.

With p the teacher's and q the student's probabilities, of each token or of the teacher's top k:

  forward          KL(p | q) = sum_v p log(p / q)          Hinton et al. 2015, arXiv 1503.02531
  reverse          KL(q | p) = sum_v q log(q / p)          Gu et al. 2023, arXiv 2306.08543, eq. 1
  jensen_shannon   beta KL(p | m) + (1 - beta) KL(q | m),  m = beta p + (1 - beta) q
                   Agarwal et al. 2023, arXiv 2306.13649, eq. 1

The last is 0 at beta = 0 and 1; divided by beta (by 1 - beta) it tends to the forward (reverse) KL
there. Of a teacher that gives J tokens a place the rest of its mass is one more outcome, or left
out; with all J = V tokens all of these are exact. Log-probs come in at one temperature T for both.
Nothing is multiplied by T^2: as in TRL, and unlike Hinton et al. (section 2), the gradient falls as
1 / T^2 at large T; weigh the loss with T^2 where that is not wanted.

Rows of other sorts mix in: this loss looks at `batch.teacher` and its weights only.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses.common import weighted_sum

REQUIRES = ("teacher",)
DIVERGENCES = ("forward", "reverse", "jensen_shannon")
TAILS = ("bucket", "renormalise")
NEVER = -1e29
"""Log-probs below this are of no token, or of one that teacher or student can't produce."""
SMALLEST_TAIL = 1e-5
"""A tail counts as no less: 1 - sum p of float32 probabilities is not known any better."""


def loss(
    out: PolicyOut, batch: Batch, *, divergence: str = "forward", beta: float = 0.5,
    tail: str = "bucket",
) -> tuple[Array, Metrics]:  # fmt: skip
    """The divergence at each place, summed with the teacher's weights.

    Args:
      divergence: which one, of those above.
      beta: the teacher's share of the mixture, in (0, 1); of `jensen_shannon` only.
      tail: what becomes of the tokens that the teacher does not name. `bucket`: together they are
        one outcome, so that the student learns their whole mass; masses below 1e-5 are taken for
        that. `renormalise`: both distributions are conditional on the named tokens; how much mass
        the student puts on others is then left to itself.

    Metrics are weighted as the loss is: `teacher_tail`, `student_tail`: the mass outside of the
    teacher's tokens; `teacher_agreement`: of the teacher's tokens both rank the same one first.

    Raises:
      ValueError: a batch without a teacher, an unknown word, a beta that is not inside (0, 1).
    """
    teacher, student_BTJ = batch.teacher, out.teacher_logp_BTJ
    if teacher is None or student_BTJ is None:
        raise ValueError(f"the distill loss needs {REQUIRES} in the batch")
    if tail not in TAILS:
        raise ValueError(f"tail={tail!r}: expected one of {TAILS}")
    weight = teacher.weight_BT
    real_BTJ = (teacher.logp_BTJ > NEVER) & (student_BTJ > NEVER)
    sides = [jnp.where(real_BTJ, x, -jnp.inf) for x in (teacher.logp_BTJ, student_BTJ)]
    tails = [1.0 - jnp.sum(jnp.exp(x), axis=-1) for x in sides]
    complete = _with_tail if tail == "bucket" else _renormalised
    logp, logq = (complete(x, real_BTJ) for x in sides)
    value = weighted_sum(_divergence(logp, logq, divergence, beta), weight)
    same_BT = jnp.argmax(sides[0], axis=-1) == jnp.argmax(sides[1], axis=-1)
    return value, {
        "loss": value,
        "teacher_tail": weighted_sum(tails[0], weight),
        "student_tail": weighted_sum(tails[1], weight),
        "teacher_agreement": weighted_sum(same_BT.astype(jnp.float32), weight),
    }


def _with_tail(logp_BTJ, real_BTJ):
    """Log-probs of the tokens and, at the end, of all others; finite."""
    rest = jnp.maximum(1.0 - jnp.sum(jnp.exp(logp_BTJ), axis=-1, keepdims=True), SMALLEST_TAIL)
    return jnp.concatenate([jnp.where(real_BTJ, logp_BTJ, NEVER), jnp.log(rest)], axis=-1)


def _renormalised(logp_BTJ, real_BTJ):
    """Log-probs given that it is one of the tokens; finite."""
    return jax.nn.log_softmax(jnp.where(real_BTJ, logp_BTJ, NEVER), axis=-1)


def _divergence(logp, logq, divergence: str, beta: float):
    """Of the teacher's p and the student's q over the last axis.

    Raises:
      ValueError: an unknown divergence, or a beta that is not inside (0, 1).
    """
    if divergence == "forward":
        return _kl(logp, logq)
    if divergence == "reverse":
        return _kl(logq, logp)
    if divergence != "jensen_shannon":
        raise ValueError(f"divergence={divergence!r}: expected one of {DIVERGENCES}")
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta={beta}: jensen_shannon needs 0 < beta < 1; the limits are divergence='forward' "
            "(beta near 0) and 'reverse' (near 1)"
        )
    logm = jnp.logaddexp(logp + math.log(beta), logq + math.log1p(-beta))
    return beta * _kl(logp, logm) + (1.0 - beta) * _kl(logq, logm)


def _kl(logp, logq):
    """KL(p | q), where outcomes that neither has cost nothing."""
    here = logp > NEVER / 2
    return jnp.sum(jnp.where(here, jnp.exp(logp) * (logp - logq), 0.0), axis=-1)

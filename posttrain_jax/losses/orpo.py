"""Odds ratio preference optimisation: imitation and a penalty on the rejected, in one stage.

  L = NLL(y_chosen) - beta log sigmoid(log odds(y_chosen) - log odds(y_rejected)),
  odds(y) = p / (1 - p),   log p = log pi(y) / |y|

Hong et al. 2024, arXiv 2403.07691, eq. 4, 6 and 7, where beta is lambda. `batch.nll_weight_BT` is
the first term: in the paper the mean over the response's tokens, in TRL the mean over the batch's
tokens, prompts included.
"""

import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses import pairwise

REQUIRES = ("nll_weight_BT",)
LEAST = 1e-6
"""Mean log-probs are kept this far below 0, where the odds are infinite."""


def log_odds(logp):
    """log(p / (1 - p)) of a log-prob; log(1 - p) by the branch that does not cancel."""
    logp = jnp.minimum(logp, -LEAST)
    small = logp < -jnp.log(2.0)  # p below a half
    inside = jnp.where(small, logp, -1.0)
    near = jnp.log(-jnp.expm1(jnp.where(small, -1.0, logp)))
    return logp - jnp.where(small, jnp.log1p(-jnp.exp(inside)), near)


def loss(
    out: PolicyOut, batch: Batch, *, sequences: int = 1, beta: float = 0.1
) -> tuple[Array, Metrics]:
    """The weighted sum over pairs and the negative log-likelihood.

    Args:
      sequences: a row has at most.
      beta: weight of the odds ratio.

    Raises:
      ValueError: a batch without weights of the likelihood, or rows that are not pairs.
    """
    if batch.nll_weight_BT is None:
        raise ValueError(f"the orpo loss needs {REQUIRES} in the batch")
    pairs = pairwise.read(out, batch, sequences)
    mean_P2 = pairs.mean(pairs.logp_P2)
    odds_P2 = log_odds(mean_P2)
    loss_P = beta * pairwise.logistic(odds_P2[:, 0] - odds_P2[:, 1])
    return pairwise.total(loss_P, beta * mean_P2, pairs, out, batch)

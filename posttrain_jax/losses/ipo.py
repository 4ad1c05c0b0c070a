"""Identity preference optimisation: the margin is led to a set size, however sure the labels are.

  L = (d_chosen - d_rejected - 1 / (2 beta))^2,   d = log pi(y) - log pi_ref(y)

Azar et al. 2023, arXiv 2310.12036, eq. 17, where beta is tau. The eq. has sums over tokens; with
means, the default, the margin asked for does not depend on the length. TRL takes means too, and
says that the paper's authors confirmed them to be what its results were made with.
"""

import jax.numpy as jnp

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses import pairwise

REQUIRES = ("reference_logp_BT",)


def loss(
    out: PolicyOut,
    batch: Batch,
    *,
    sequences: int = 1,
    beta: float = 0.1,
    length_normalised: bool = True,
) -> tuple[Array, Metrics]:
    """The weighted sum over pairs.

    Args:
      sequences: a row has at most.
      beta: the margin is led to 1 / (2 beta).
      length_normalised: d is a mean over the response's tokens, not a sum.

    Raises:
      ValueError: a batch without reference log-probs, or rows that are not pairs.
    """
    pairs = pairwise.read(out, batch, sequences)
    ratio_P2 = pairwise.ratios(pairs, "ipo")
    ratio_P2 = pairs.mean(ratio_P2) if length_normalised else ratio_P2
    loss_P = jnp.square(ratio_P2[:, 0] - ratio_P2[:, 1] - 1 / (2 * beta))
    return pairwise.total(loss_P, beta * ratio_P2, pairs, out, batch)

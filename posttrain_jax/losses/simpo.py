"""SimPO: mean log-probs as rewards, a target margin, no reference.

  L = -log sigmoid(beta (m_chosen - m_rejected) - gamma),   m = log pi(y) / |y|

Meng et al. 2024, arXiv 2405.14734, eq. 6. Sky-T1-32B-Flash: beta 2.0, gamma 0.3.
"""

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses import pairwise

REQUIRES = ()


def loss(
    out: PolicyOut,
    batch: Batch,
    *,
    sequences: int = 1,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Array, Metrics]:
    """The weighted sum over pairs.

    Args:
      sequences: a row has at most.
      beta: scales mean log-probs to rewards.
      gamma: the reward margin that is asked for.
      label_smoothing: the share of pairs taken to be labelled the wrong way round.

    Raises:
      ValueError: rows that are not pairs.
    """
    pairs = pairwise.read(out, batch, sequences)
    reward_P2 = beta * pairs.mean(pairs.logp_P2)
    loss_P = pairwise.logistic(reward_P2[:, 0] - reward_P2[:, 1] - gamma, label_smoothing)
    return pairwise.total(loss_P, reward_P2, pairs, out, batch)

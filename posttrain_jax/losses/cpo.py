"""Contrastive preference optimisation: DPO with a uniform reference, beside imitation.

  L = -log sigmoid(beta (log pi(y_chosen) - log pi(y_rejected))) + NLL(y_chosen)

Xu et al. 2024, arXiv 2401.08417, eq. 5. `batch.nll_weight_BT` is the second term: 1 a token times
the pair's weight there, the mean over the batch's tokens in TRL.
"""

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses import pairwise

REQUIRES = ("nll_weight_BT",)


def loss(
    out: PolicyOut,
    batch: Batch,
    *,
    sequences: int = 1,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[Array, Metrics]:
    """The weighted sum over pairs and the negative log-likelihood.

    Args:
      sequences: a row has at most.
      beta: scales log-probs to rewards.
      label_smoothing: the share of pairs taken to be labelled the wrong way round.

    Raises:
      ValueError: a batch without weights of the likelihood, or rows that are not pairs.
    """
    if batch.nll_weight_BT is None:
        raise ValueError(f"the cpo loss needs {REQUIRES} in the batch")
    pairs = pairwise.read(out, batch, sequences)
    reward_P2 = beta * pairs.logp_P2
    loss_P = pairwise.logistic(reward_P2[:, 0] - reward_P2[:, 1], label_smoothing)
    return pairwise.total(loss_P, reward_P2, pairs, out, batch)

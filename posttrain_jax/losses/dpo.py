"""Direct preference optimisation over pairs of a chosen and a rejected response.

  L = -log sigmoid(beta (d_chosen - d_rejected)),   d = sum_t log pi(y_t) - log pi_ref(y_t)

Rafailov et al. 2023, arXiv 2305.18290, eq. 7; pairs and their weights as in losses/pairwise.py. To
this `batch.nll_weight_BT` adds the chosen response's negative log-likelihood (Llama 3, arXiv
2407.21783, section 4.1.4; Pang et al. 2024, arXiv 2404.19733, eq. 1).
"""

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses import pairwise

REQUIRES = ("reference_logp_BT",)


def loss(
    out: PolicyOut,
    batch: Batch,
    *,
    sequences: int = 1,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    length_normalised: bool = False,
    length_coef: float = 0.0,
) -> tuple[Array, Metrics]:
    """The weighted sum over pairs.

    Args:
      sequences: a row has at most.
      beta: how strongly the policy is held to the reference.
      label_smoothing: the share of pairs taken to be labelled the wrong way round.
      length_normalised: each d is a mean over the response's tokens (Tülu 3, arXiv 2411.15124,
        eq. 6, with beta=5).
      length_coef: alpha of R-DPO, which adds alpha (|y_chosen| - |y_rejected|) to what the sigmoid
        sees: a chosen response that is longer has to win by less (Park et al. 2024, arXiv
        2403.19159).

    Raises:
      ValueError: a batch without reference log-probs, or rows that are not pairs.
    """
    pairs = pairwise.read(out, batch, sequences)
    ratio_P2 = pairwise.ratios(pairs, "dpo")
    reward_P2 = beta * (pairs.mean(ratio_P2) if length_normalised else ratio_P2)
    longer_P = pairs.tokens_P2[:, 0] - pairs.tokens_P2[:, 1]
    margin_P = reward_P2[:, 0] - reward_P2[:, 1] + length_coef * longer_P
    loss_P = pairwise.logistic(margin_P, label_smoothing)
    return pairwise.total(loss_P, reward_P2, pairs, out, batch)

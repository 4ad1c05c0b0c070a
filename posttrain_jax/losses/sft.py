"""Cross-entropy on the weighted tokens: -sum_t w_t log pi(y_t | y_<t)."""

from posttrain_jax.api import Array, Batch, Metrics, PolicyOut
from posttrain_jax.losses.common import weighted_sum

REQUIRES = ()


def loss(out: PolicyOut, batch: Batch) -> tuple[Array, Metrics]:
    """Negative log-likelihood; `batch.weight_BT` is zero on prompts and padding."""
    nll = weighted_sum(-out.logp_BT, batch.weight_BT)
    return nll, {"loss": nll, "entropy": weighted_sum(out.entropy_BT, batch.weight_BT)}

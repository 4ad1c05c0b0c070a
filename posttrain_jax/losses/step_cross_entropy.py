"""Process reward modelling: cross-entropy of (wrong, right) at the last token of each step.

Qwen2.5-Math-PRM, arXiv 2501.07301, section 2.1: two classes, hard labels; a soft label is the share
of completions from the step that end right (Math-Shepherd, arXiv 2312.08935, eq. 3 and 4).
"""

import jax
import jax.numpy as jnp

from posttrain_jax.api import Array, Metrics


def loss(outputs_BMO: Array, label_BM: Array, weight_BM: Array) -> tuple[Array, Metrics]:
    """-(y log p_right + (1 - y) log p_wrong), weighted sum over steps; O is (wrong, right).

    Args:
      label_BM: y, 1 or 0, or a share between them.
      weight_BM: sum to 1 over the batch; 0 where there is no step.
    """
    logp_BMO = jax.nn.log_softmax(outputs_BMO, axis=-1)
    cost_BM = -(label_BM * logp_BMO[..., 1] + (1 - label_BM) * logp_BMO[..., 0])
    value = jnp.sum(weight_BM * cost_BM)
    right_BM = (outputs_BMO[..., 1] > outputs_BMO[..., 0]) == (label_BM > 0.5)
    return value, {"loss": value, "step_accuracy": jnp.sum(weight_BM * right_BM)}
